/* SPDX-License-Identifier: Apache-2.0 */
/* `stele run`: one answer to one prompt. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd_chat.h"
#include "cmd_session.h"
#include "stats.h"

enum print { PRINT_TEXT, PRINT_IDS, PRINT_JSON };
enum thoughts { THOUGHTS_HIDE, THOUGHTS_STDERR, THOUGHTS_STDOUT };

/* What the options say; a number that is NaN, a count that is UINT64_MAX, was not given. */
static struct {
    uint64_t tokens, top_k, seed;
    float temperature, top_p, min_p, repeat_penalty;
    const char *ids;
    struct text_list stops;
    int print, thoughts;
    bool stats, raw_bytes;
} set = {.tokens = UINT64_MAX, .top_k = UINT64_MAX, .print = PRINT_TEXT, .thoughts = -1};

static const struct cmd_option options[] = {
    {"-n", OPTION_COUNT, &set.tokens, "N", "tokens at most; 0 only computes the prompt (default: until end of text)", 0,
     9e15, NULL},
    {"--ids", OPTION_TEXT, &set.ids, "\"1 2 3\"", "the prompt as ids; standard input is not touched", 0, 0, NULL},
    CMD_CHAT_OPTIONS,
    CMD_RAW_OPTIONS,
    {"--thinking", OPTION_CHOICE, &set.thoughts, NULL,
     "where what the model thinks before it answers goes (default: stderr on a terminal, else hide)", 0, 0,
     "hide|stderr|stdout"},
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
    CMD_CONTEXT_OPTION,
    CMD_SESSION_OPTIONS,
    {"--stats", OPTION_FLAG, &set.stats, NULL, "times and memory as one JSON object on stderr", 0, 0, NULL},
    {"--raw-bytes", OPTION_FLAG, &set.raw_bytes, NULL, "do not escape control bytes on a terminal", 0, 0, NULL},
    {0},
};

const struct verb verb_run = {
    .name = "run",
    .synopsis = "IMAGE [options] [PROMPT|-]",
    .about = "Writes the model's answer to standard output as it is made, and nothing else there. The prompt is the argument,\n"
             "or standard input where there is none or it is \"-\". Where the model has a chat template the prompt is a user's\n"
             "message, and control tokens that are spelled in it are text; else, and with --raw, the model continues it.\n"
             "IMAGE may be a reference, as `stele pull` takes it: hf:ORG/NAME, s3://..., https://..., with #q8 behind it\n"
             "to say which weights. What the store lacks is fetched, as `stele pull REF` would, and computed from while it\n"
             "arrives; nothing is written before all of it is there and every digest matched.\n"
             "STELE_KERNELS=generic|avx2|avx512|neon forces a table of kernels; all give the same bits.\n"
             "neon is tested under emulation only.",
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
    bool chat;        /* the prompt went through the chat template */
    bool thinking;    /* and ends where the model is thinking */
    char last;        /* last byte of the text written */
    bool thought;     /* it did */
    bool thinking_alone; /* and has not answered */
    char last_thought;
    size_t id_count;  /* written */
    FILE *ids;        /* json: the ids, gathered */
    char *id_text;
    size_t id_bytes;
    FILE *text;       /* json: the text, gathered */
    char *text_bytes;
    size_t text_length;
    FILE *thoughts;   /* json: the same of what was thought */
    char *thought_bytes;
    size_t thought_length;
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
    if (cmd_chat.bare || cmd_chat.plain || r->prompt_count < 2 || r->prompt[0] != r->prompt[1])
        return;
    if (stele_tokenize(r->image, text, bytes, STELE_TEXT_BARE, &bare, &count, NULL) != STELE_OK)
        return;
    if (count && count < r->prompt_count && bare[0] == r->prompt[0])
        fprintf(stderr, "stele run: the prompt spells the token (id %u) that the tokenizer puts in front of it, so it "
                        "stands there twice; --bare leaves the tokenizer's out\n", bare[0]);
    free(bare);
}

static enum stele_status read_raw_prompt(struct run *r, const char *operand)
{
    const char *text;
    size_t bytes;
    char *owned;
    enum stele_status status = cmd_text(operand, "prompt", &text, &bytes, &owned, r->err);
    unsigned flags = (cmd_chat.bare ? STELE_TEXT_BARE : 0u) | (cmd_chat.plain ? STELE_TEXT_PLAIN : 0u);
    if (status == STELE_OK)
        status = stele_tokenize(r->image, text, bytes, flags, &r->prompt, &r->prompt_count, r->err);
    if (status == STELE_OK)
        warn_of_two(r, text, bytes);
    free(owned);
    return status;
}

static enum stele_status read_chat_prompt(struct run *r, const char *operand)
{
    struct stele_rendered rendered;
    enum stele_status status = cmd_chat_render(r->image, operand, &rendered, r->err);
    if (status == STELE_OK)
        status = stele_tokenize_rendered(r->image, &rendered, cmd_chat.trust_content, &r->prompt, &r->prompt_count, r->err);
    r->thinking = rendered.thinking;
    stele_rendered_free(&rendered);
    return status;
}

static enum stele_status read_text_prompt(struct run *r, const char *operand)
{
    if (!stele_has_text(r->image))
        return stele_fail(r->err, STELE_INPUT, "%s: its checkpoint had no tokenizer, so it takes --ids instead of text",
                          stele_image_name(r->image));
    enum stele_status status = r->chat ? read_chat_prompt(r, operand) : read_raw_prompt(r, operand);
    if (status == STELE_OK && !r->prompt_count)
        status = stele_fail(r->err, STELE_USAGE, "the prompt is empty: it has no ids to continue");
    return status;
}

static enum stele_status read_prompt(struct run *r, const char *operand)
{
    enum stele_status status = STELE_OK;
    if (set.ids && operand)
        return stele_fail(r->err, STELE_USAGE, "--ids and a PROMPT are two prompts; name one");
    cmd_chat.raw = cmd_chat.raw || set.ids;
    status = cmd_chat_applies(r->image, &r->chat, r->err);
    if (status != STELE_OK || !set.ids)
        return status != STELE_OK ? status : read_text_prompt(r, operand);
    status = cmd_ids(set.ids, &r->prompt, &r->prompt_count, r->err);
    if (status == STELE_OK && !r->prompt_count)
        status = stele_fail(r->err, STELE_USAGE, "--ids names no ids");
    return status;
}

static enum stele_status open_session(struct run *r)
{
    struct stele_options o = cmd_session_options();
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

/* Ends the last line of what was thought, so that the answer begins a line. */
static bool end_thoughts(struct run *r)
{
    bool open = r->thinking_alone && r->last_thought != '\n' && set.print == PRINT_TEXT;
    r->thinking_alone = false;
    if (open && set.thoughts == THOUGHTS_STDERR)
        fputc('\n', stderr);
    return !open || set.thoughts != THOUGHTS_STDOUT || cmd_write("\n", 1, r->err);
}

static bool deliver(void *context, const uint32_t *ids, size_t count, const char *text, size_t bytes)
{
    struct run *r = context;
    bool done = !bytes || end_thoughts(r);
    if (set.print == PRINT_TEXT) {
        done = done && cmd_write_text(STDOUT_FILENO, text, bytes, set.raw_bytes, r->err);
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

static bool think(void *context, const char *text, size_t bytes)
{
    struct run *r = context;
    bool done = true;
    r->thought = r->thinking_alone = true;
    r->last_thought = text[bytes - 1];
    if (set.print == PRINT_JSON)
        fwrite(text, 1, bytes, r->thoughts);
    else if (set.thoughts == THOUGHTS_STDERR)
        cmd_write_text(STDERR_FILENO, text, bytes, set.raw_bytes, NULL);
    else if (set.thoughts == THOUGHTS_STDOUT) {
        done = cmd_write_text(STDOUT_FILENO, text, bytes, set.raw_bytes, r->err);
        r->last = text[bytes - 1];
    }
    r->write_status = done ? STELE_OK : STELE_SYSTEM;
    return done;
}

static bool write_json(struct run *r, enum stele_status status)
{
    static const char *const finishes[] = {"stop", "length", "context", "caller"};
    fclose(r->ids);
    fclose(r->text);
    fclose(r->thoughts);
    r->ids = r->text = r->thoughts = NULL;
    printf("{\"text\": ");
    if (stele_has_text(r->image))
        cmd_json_string(stdout, r->text_bytes, r->text_length);
    else
        fputs("null", stdout);
    if (r->thought) {
        printf(", \"thinking\": ");
        cmd_json_string(stdout, r->thought_bytes, r->thought_length);
    }
    printf(", \"ids\": [%s], \"prompt_tokens\": %zu, \"finish\": \"%s\"}\n", r->id_text, r->prompt_count,
           status == STELE_OK || status == STELE_FULL ? finishes[r->result.finish] : "error");
    return !fflush(stdout) || stele_fail(r->err, STELE_SYSTEM, "standard output: cannot write") == STELE_OK;
}

static enum stele_status open_json(struct run *r)
{
    r->ids = open_memstream(&r->id_text, &r->id_bytes);
    r->text = open_memstream(&r->text_bytes, &r->text_length);
    r->thoughts = open_memstream(&r->thought_bytes, &r->thought_length);
    return r->ids && r->text && r->thoughts ? STELE_OK : stele_fail(r->err, STELE_SYSTEM, "no memory for the answer");
}

/* The lines that close what was written. */
static enum stele_status end_answer(struct run *r, enum stele_status status)
{
    const char *shows = set.thoughts == THOUGHTS_HIDE ? "; --thinking stderr shows what it thinks" : "";
    bool unanswered = r->thinking_alone && set.print == PRINT_TEXT;
    if (unanswered && set.thoughts == THOUGHTS_STDERR)
        end_thoughts(r);
    if (unanswered && r->result.finish == STELE_FINISH_LENGTH)
        fprintf(stderr, "stele run: the model was still thinking after %" PRIu64 " tokens, and -n allows more%s\n",
                r->result.tokens, shows);
    else if (unanswered && r->result.finish == STELE_FINISH_STOP)
        fprintf(stderr, "stele run: the model ended while it was thinking, without an answer%s\n", shows);
    if (set.print == PRINT_JSON)
        return write_json(r, status) ? status : STELE_SYSTEM;
    return set.tokens && r->last != '\n' && !cmd_write("\n", 1, r->err) ? STELE_SYSTEM : status;
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
        .thinking = r->chat,
        .thinking_begun = r->thinking,
        .deliver = deliver,
        .think = set.print == PRINT_IDS ? NULL : think,
        .context = r,
    };
    if (set.print == PRINT_JSON && open_json(r) != STELE_OK)
        return r->err->status;
    if (set.print == PRINT_TEXT && !g.text && set.tokens)
        return stele_fail(r->err, STELE_INPUT, "the image has no tokenizer; --print ids writes ids instead of text");
    enum stele_status status = stele_generate(r->session, &g, &r->result, r->err);
    if (r->write_status != STELE_OK)
        return r->write_status;
    bool begun = r->result.tokens || status == STELE_OK || status == STELE_FULL;
    return begun && r->result.prefill_end > 0 ? end_answer(r, status) : status;
}

static void print_stats(struct run *r)
{
    struct stats_line line = {
        .result = &r->result,
        .session = stele_session_info(r->session),
        .mapped_bytes = stele_image_info(r->image).bytes,
        .prefill_tokens = r->result.prefill_end > 0 ? r->prompt_count : 0,
        .seed = set.seed,
        .date = cmd_chat_date(),
    };
    stats_print(&line);
}

static void close_run(struct run *r)
{
    if (r->ids)
        fclose(r->ids);
    if (r->text)
        fclose(r->text);
    if (r->thoughts)
        fclose(r->thoughts);
    free(r->thought_bytes);
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
    if (set.thoughts < 0)
        set.thoughts = isatty(STDERR_FILENO) ? THOUGHTS_STDERR : THOUGHTS_HIDE;
    if (status == STELE_OK)
        status = cmd_open_image(&r.image, operands[0], "run", &err);
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
