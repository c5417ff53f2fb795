/* SPDX-License-Identifier: Apache-2.0 */
/* `stele run`: one answer to one prompt. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "guard.h"
#include "image.h"
#include "stats.h"
#include "stele.h"

enum print { PRINT_TEXT, PRINT_IDS, PRINT_JSON };

/* What the options say; a number that is NaN, a count that is UINT64_MAX, was not given. */
static struct {
    uint64_t tokens, top_k, seed, threads, context, chunk;
    float temperature, top_p, min_p, repeat_penalty;
    const char *ids;
    struct text_list stops;
    int kv, print;
    bool raw, bare, plain, stats, verify, raw_bytes;
} set = {.tokens = UINT64_MAX, .top_k = UINT64_MAX, .kv = -1, .print = PRINT_TEXT};

static const struct cmd_option options[] = {
    {"-n", OPTION_COUNT, &set.tokens, "N", "tokens at most; 0 only computes the prompt (default: until end of text)", 0,
     9e15, NULL},
    {"--ids", OPTION_TEXT, &set.ids, "\"1 2 3\"", "the prompt as ids; standard input is not touched", 0, 0, NULL},
    {"--raw", OPTION_FLAG, &set.raw, NULL, "the text as it is, without the model's chat template", 0, 0, NULL},
    {"--bare", OPTION_FLAG, &set.bare, NULL, "without what the tokenizer puts around a text (BOS)", 0, 0, NULL},
    {"--plain", OPTION_FLAG, &set.plain, NULL, "control tokens spelled in the text are plain text", 0, 0, NULL},
    {"--temperature", OPTION_NUMBER, &set.temperature, "T", "0 is greedy (default: the model's)", 0, 1e6, NULL},
    {"--top-k", OPTION_COUNT, &set.top_k, "K", "draw among the K likeliest; 0: off", 0, 2147483647, NULL},
    {"--top-p", OPTION_NUMBER, &set.top_p, "P", "draw among the likeliest that make up P; 1: off", 0, 1, NULL},
    {"--min-p", OPTION_NUMBER, &set.min_p, "P", "leave out what is below P times the likeliest; 0: off", 0, 1, NULL},
    {"--repeat-penalty", OPTION_NUMBER, &set.repeat_penalty, "X", "make repeated tokens unlikelier; 1: off", 1e-6, 1e6,
     NULL},
    {"--seed", OPTION_COUNT, &set.seed, "N", "the same seed gives the same answer (default 0)", 0, 18446744073709551615.0,
     NULL},
    {"--stop", OPTION_TEXTS, &set.stops, "TEXT", "end before this text; may be repeated", 0, 0, NULL},
    {"--print", OPTION_CHOICE, &set.print, NULL, "what to write (default text)", 0, 0, "text|ids|json"},
    {"--context", OPTION_COUNT, &set.context, "N", "positions at most (default: what the model was trained for)", 1,
     4294967295, NULL},
    {"--kv", OPTION_CHOICE, &set.kv, NULL, "keys and values (default f32 for f32 images, else f16)", 0, 0, "f32|f16"},
    {"--chunk", OPTION_COUNT, &set.chunk, "N", "tokens of a step at most (default 512)", 1, 65536, NULL},
    {"--threads", OPTION_COUNT, &set.threads, "N", "default: the CPUs this process may use", 1, 256, NULL},
    {"--verify", OPTION_FLAG, &set.verify, NULL, "check every byte of the image first", 0, 0, NULL},
    {"--stats", OPTION_FLAG, &set.stats, NULL, "times and memory as one JSON object on stderr", 0, 0, NULL},
    {"--raw-bytes", OPTION_FLAG, &set.raw_bytes, NULL, "do not escape control bytes on a terminal", 0, 0, NULL},
    {0},
};

const struct verb verb_run = {
    .name = "run",
    .synopsis = "IMAGE [options] [PROMPT|-]",
    .about = "Writes the model's continuation of the prompt to standard output as it is made, and nothing else there. The\n"
             "prompt is the argument, or standard input where there is none or it is \"-\".\n"
             "STELE_KERNELS=generic|avx2|avx512|neon forces a table of kernels; all give the same bits.",
    .run = cmd_run,
    .options = options,
};

/* What a run holds; all starts as zero, so closing is always safe. */
struct run {
    struct stele_image *image;
    struct stele_session *session;
    uint32_t *prompt;
    size_t prompt_count;
    struct stele_result result;
    char last;        /* last byte of the text written */
    size_t id_count;  /* written */
    FILE *ids;        /* json: the ids, gathered */
    char *id_text;
    size_t id_bytes;
    FILE *text;       /* json: the text, gathered */
    char *text_bytes;
    size_t text_length;
    struct stele_error *err;
    enum stele_status write_status;
};

static struct stele_sampling choose_sampling(const struct stele_image *image)
{
    struct stele_sampling s = stele_default_sampling(image);
    s.temperature = isnan(set.temperature) ? s.temperature : set.temperature;
    s.top_p = isnan(set.top_p) ? s.top_p : set.top_p > 0 ? set.top_p : FLT_MIN; /* 0 keeps one, and is not "off" */
    s.min_p = isnan(set.min_p) ? s.min_p : set.min_p;
    s.repeat_penalty = isnan(set.repeat_penalty) ? s.repeat_penalty : set.repeat_penalty;
    s.top_k = set.top_k == UINT64_MAX ? s.top_k : (uint32_t)set.top_k;
    s.seed = set.seed;
    return s;
}

/* Text that spells the token which the tokenizer puts in front gets two of it, as the library gives; seldom meant. */
static void warn_of_two(const struct run *r, const char *text, size_t bytes)
{
    uint32_t *bare;
    size_t count;
    if (set.bare || set.plain || r->prompt_count < 2 || r->prompt[0] != r->prompt[1])
        return;
    if (stele_tokenize(r->image, text, bytes, STELE_TEXT_BARE, &bare, &count, NULL) != STELE_OK)
        return;
    if (count && count < r->prompt_count && bare[0] == r->prompt[0])
        fprintf(stderr, "stele run: the prompt spells the token (id %u) that the tokenizer puts in front of it, so it "
                        "stands there twice; --bare leaves the tokenizer's out\n", bare[0]);
    free(bare);
}

static enum stele_status read_text_prompt(struct run *r, const char *operand)
{
    if (!stele_has_text(r->image))
        return stele_fail(r->err, STELE_INPUT, "%s: its checkpoint had no tokenizer, so it takes --ids instead of text",
                          ((const struct image *)r->image)->name);
    if (stele_has_template(r->image) && !set.raw)
        return stele_fail(r->err, STELE_USAGE,
                          "the model has a chat template, which this stele does not apply; --raw continues the text as it is");
    const char *text;
    size_t bytes;
    char *owned;
    enum stele_status status = cmd_text(operand, "prompt", &text, &bytes, &owned, r->err);
    unsigned flags = (set.bare ? STELE_TEXT_BARE : 0u) | (set.plain ? STELE_TEXT_PLAIN : 0u);
    if (status == STELE_OK)
        status = stele_tokenize(r->image, text, bytes, flags, &r->prompt, &r->prompt_count, r->err);
    if (status == STELE_OK)
        warn_of_two(r, text, bytes);
    free(owned);
    if (status == STELE_OK && !r->prompt_count)
        status = stele_fail(r->err, STELE_USAGE, "the prompt is empty: it has no ids to continue");
    return status;
}

static enum stele_status read_prompt(struct run *r, const char *operand)
{
    if (!set.ids)
        return read_text_prompt(r, operand);
    if (operand)
        return stele_fail(r->err, STELE_USAGE, "--ids and a PROMPT are two prompts; name one");
    enum stele_status status = cmd_ids(set.ids, &r->prompt, &r->prompt_count, r->err);
    if (status == STELE_OK && !r->prompt_count)
        status = stele_fail(r->err, STELE_USAGE, "--ids names no ids");
    return status;
}

static enum stele_status open_session(struct run *r)
{
    struct stele_options o = {
        .threads = (uint32_t)set.threads,
        .context = (uint32_t)set.context,
        .chunk = (uint32_t)set.chunk,
        .kv = set.kv < 0 ? STELE_KV_DEFAULT : set.kv == 0 ? STELE_KV_F32 : STELE_KV_F16,
        .kernels = cmd_kernels(),
    };
    return stele_session_open(&r->session, r->image, &o, r->err);
}

static bool write_ids(struct run *r, const uint32_t *ids, size_t count)
{
    char text[16];
    for (size_t i = 0; i < count; i++) {
        int n = snprintf(text, sizeof text, "%s%u", r->id_count++ ? " " : "", ids[i]);
        if (!cmd_write(text, (size_t)n, r->err))
            return false;
    }
    return true;
}

static bool deliver(void *context, const uint32_t *ids, size_t count, const char *text, size_t bytes)
{
    struct run *r = context;
    bool done = true;
    if (set.print == PRINT_TEXT) {
        done = cmd_write_text(text, bytes, set.raw_bytes, r->err);
        r->last = bytes ? text[bytes - 1] : r->last;
    } else if (set.print == PRINT_IDS)
        done = write_ids(r, ids, count);
    else {
        for (size_t i = 0; i < count; i++)
            fprintf(r->ids, "%s%u", r->id_count++ ? ", " : "", ids[i]);
        if (bytes)
            fwrite(text, 1, bytes, r->text);
    }
    r->write_status = done ? STELE_OK : STELE_SYSTEM;
    return done;
}

static bool write_json(struct run *r, enum stele_status status)
{
    static const char *const finishes[] = {"stop", "length", "context", "caller"};
    fclose(r->ids);
    fclose(r->text);
    r->ids = r->text = NULL;
    printf("{\"text\": ");
    if (stele_has_text(r->image))
        cmd_json_string(stdout, r->text_bytes, r->text_length);
    else
        fputs("null", stdout);
    printf(", \"ids\": [%s], \"prompt_tokens\": %zu, \"finish\": \"%s\"}\n", r->id_text, r->prompt_count,
           status == STELE_OK || status == STELE_FULL ? finishes[r->result.finish] : "error");
    return !fflush(stdout) || stele_fail(r->err, STELE_SYSTEM, "standard output: cannot write") == STELE_OK;
}

static enum stele_status generate(struct run *r)
{
    struct stele_generation g = {
        .prompt = r->prompt,
        .prompt_count = r->prompt_count,
        .tokens_max = set.tokens,
        .sampling = choose_sampling(r->image),
        .stops = set.stops.items,
        .stop_count = set.stops.count,
        .text = stele_has_text(r->image) && (set.print != PRINT_IDS || set.stops.count),
        .deliver = deliver,
        .context = r,
    };
    if (set.print == PRINT_JSON) {
        r->ids = open_memstream(&r->id_text, &r->id_bytes);
        r->text = open_memstream(&r->text_bytes, &r->text_length);
        if (!r->ids || !r->text)
            return stele_fail(r->err, STELE_SYSTEM, "no memory for the answer");
    } else if (set.print == PRINT_TEXT && !g.text && set.tokens)
        return stele_fail(r->err, STELE_INPUT, "the image has no tokenizer; --print ids writes ids instead of text");
    enum stele_status status = stele_generate(r->session, &g, &r->result, r->err);
    if (r->write_status != STELE_OK)
        return r->write_status;
    bool begun = r->result.prefill_end > 0;
    if (begun && set.print == PRINT_JSON && !write_json(r, status))
        return STELE_SYSTEM;
    if (begun && set.print != PRINT_JSON && set.tokens && r->last != '\n' && !cmd_write("\n", 1, r->err))
        return STELE_SYSTEM;
    return status;
}

static void print_stats(struct run *r)
{
    struct stats_line line = {
        .result = &r->result,
        .session = stele_session_info(r->session),
        .mapped_bytes = ((const struct image *)r->image)->length,
        .prefill_tokens = r->result.prefill_end > 0 ? r->prompt_count : 0,
        .seed = set.seed,
    };
    stats_print(&line);
}

static void close_run(struct run *r)
{
    if (r->ids)
        fclose(r->ids);
    if (r->text)
        fclose(r->text);
    free(r->id_text);
    free(r->text_bytes);
    free(r->prompt);
    stele_session_close(r->session);
    stele_image_close(r->image);
}

int cmd_run(int argc, char **argv)
{
    struct stele_error err = {0}, changed;
    struct run r = {.err = &err};
    const char *operands[2];
    size_t count;
    set.temperature = set.top_p = set.min_p = set.repeat_penalty = NAN;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help run` says more");
    if (status == STELE_OK)
        status = stele_image_open(&r.image, operands[0], &err);
    if (status == STELE_OK) {
        guard_image(r.image, "run");
        status = set.verify ? stele_image_verify(r.image, &err) : STELE_OK;
    }
    if (status == STELE_OK) /* before the prompt: what is wrong with the call is said before anyone types a text */
        status = open_session(&r);
    if (status == STELE_OK)
        status = read_prompt(&r, count > 1 ? operands[1] : NULL);
    if (status == STELE_OK)
        status = generate(&r);
    if ((status == STELE_OK || status == STELE_FULL) && stele_image_unchanged(r.image, &changed) != STELE_OK) {
        err = changed;
        status = changed.status;
    }
    if (status != STELE_OK)
        cmd_fail("run", &err);
    if (set.stats && r.session)
        print_stats(&r);
    close_run(&r);
    return (int)status;
}
