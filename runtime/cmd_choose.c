/* SPDX-License-Identifier: Apache-2.0 */
/* `stele choose`: which of some texts the model finds likeliest behind a prompt, for one prompt or for each line of
 * standard input.
 *
 *     prompt, choice -> text -> ids of the two together; the branch point is where the choices' ids part from the prompt's
 *     items of ids   -> stele_score, a batch of lines at a time
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd_chat.h"
#include "cmd_session.h"

enum { CHOICES_MAX = 1024, BATCH_MAX = 32 };

static struct {
    const char *choices, *choices_file;
    bool each, normalize, json;
} set;

static const struct cmd_option options[] = {
    {"--choices", OPTION_TEXT, &set.choices, "A,B,...", "the texts to choose among; blanks count", 0, 0, NULL},
    {"--choices-file", OPTION_TEXT, &set.choices_file, "FILE", "the same, one a line; lines end in \\n or \\r\\n", 0, 0,
     NULL},
    {"--each", OPTION_FLAG, &set.each, NULL, "each line of standard input takes the place of {} in PROMPT; a line out for each",
     0, 0, NULL},
    {"--normalize", OPTION_FLAG, &set.normalize, NULL, "compare log-probabilities by the byte: long choices stand a chance", 0,
     0, NULL},
    {"--json", OPTION_FLAG, &set.json, NULL, "all choices with their log-probabilities and probabilities", 0, 0, NULL},
    CMD_CHAT_OPTIONS,
    CMD_RAW_OPTIONS,
    CMD_CONTEXT_OPTION,
    CMD_SESSION_OPTIONS,
    {0},
};

const struct verb verb_choose = {
    .name = "choose",
    .synopsis = "IMAGE --choices A,B,... [options] [PROMPT|-]",
    .about = "Writes the choice whose text the model finds likeliest behind the prompt: the sum of the log-probabilities of its\n"
             "tokens, the first of equals. With --each the beginning that the prompts share is computed once, and every line\n"
             "costs its own tokens; a line that fails has its error in its place (\"error: ...\"), and the exit code is that of\n"
             "the first such line.",
    .run = cmd_choose,
    .options = options,
};

struct text {
    const char *text;
    size_t bytes;
};

/* A prompt and its branches, or why there are none. */
struct question {
    struct stele_item item;
    uint32_t *ids[CHOICES_MAX]; /* of prompt and choice, owned */
    struct stele_branch_ids branches[CHOICES_MAX];
    struct stele_error err; /* status STELE_OK: none */
};

struct choosing {
    struct stele_image *image;
    struct stele_session *session;
    struct stele_error *err;
    bool chat;
    char *owned; /* what choices view */
    struct text choices[CHOICES_MAX];
    size_t choice_count;
    struct question *questions; /* [BATCH_MAX] */
    char *input;                /* of standard input: what was read and not used yet */
    size_t input_bytes, input_room;
    bool input_ended;
    uint64_t lines, failed, first_failed;
    enum stele_status failure;
};

/* ---- choices ---- */

static enum stele_status add_choice(struct choosing *c, const char *text, size_t bytes)
{
    if (!bytes)
        return stele_fail(c->err, STELE_USAGE, "choice %zu is empty", c->choice_count + 1);
    if (c->choice_count == CHOICES_MAX)
        return stele_fail(c->err, STELE_USAGE, "there are more than %d choices", CHOICES_MAX);
    for (size_t i = 0; i < c->choice_count; i++)
        if (c->choices[i].bytes == bytes && !memcmp(c->choices[i].text, text, bytes))
            return stele_fail(c->err, STELE_USAGE, "choice %zu is choice %zu again", c->choice_count + 1, i + 1);
    c->choices[c->choice_count++] = (struct text){text, bytes};
    return STELE_OK;
}

/* Bytes of a line without the \r of a \r\n. */
static size_t line_bytes(const char *line, size_t bytes)
{
    return bytes && line[bytes - 1] == '\r' ? bytes - 1 : bytes;
}

static enum stele_status read_choices(struct choosing *c)
{
    enum stele_status status = STELE_OK;
    const char *list = set.choices;
    size_t bytes = list ? strlen(list) : 0;
    char mark = set.choices ? ',' : '\n';
    if (!set.choices == !set.choices_file)
        return stele_fail(c->err, STELE_USAGE, "choices are needed: --choices A,B,... or --choices-file FILE");
    if (set.choices_file) {
        status = cmd_read_file(set.choices_file, &c->owned, &bytes, c->err);
        list = c->owned;
        bytes -= status == STELE_OK && bytes && list[bytes - 1] == '\n';
    }
    for (size_t from = 0, end; from <= bytes && status == STELE_OK; from = end + 1) {
        for (end = from; end < bytes && list[end] != mark;)
            end++;
        status = add_choice(c, list + from, set.choices_file ? line_bytes(list + from, end - from) : end - from);
    }
    if (status == STELE_OK && c->choice_count < 2)
        status = stele_fail(c->err, STELE_USAGE, "one choice leaves nothing to choose");
    return status;
}

/* ---- a question ---- */

static void close_question(struct question *q)
{
    for (size_t i = 0; i < CHOICES_MAX; i++)
        free(q->ids[i]);
    memset(q->ids, 0, sizeof q->ids);
    q->err.status = STELE_OK;
}

/* The prompt as the model reads it, in `out`, whose text has room for the longest choice behind. */
static enum stele_status make_prompt(struct choosing *c, const char *prompt, size_t bytes, struct stele_rendered *out,
                                     struct stele_error *err)
{
    size_t room = 0;
    enum stele_status status = STELE_OK;
    *out = (struct stele_rendered){0};
    if (c->chat)
        status = cmd_chat_render_text(c->image, prompt, bytes, out, err);
    if (status != STELE_OK)
        return status;
    if (out->thinking)
        status = stele_fail(err, STELE_USAGE, "the prompt ends where the model begins to think, so no choice can follow; "
                            "where the template has it, --arg enable_thinking=false, else --raw");
    for (size_t i = 0; i < c->choice_count; i++)
        room = c->choices[i].bytes > room ? c->choices[i].bytes : room;
    size_t length = c->chat ? out->bytes : bytes;
    char *text = realloc(out->text, length + room + 1);
    out->text = text ? text : out->text;
    uint8_t *content = realloc(out->content, length + room + 1);
    out->content = content ? content : out->content;
    if (status == STELE_OK && (!text || !content))
        status = stele_fail(err, STELE_SYSTEM, "no memory for a prompt of %zu bytes", length);
    if (status != STELE_OK) {
        stele_rendered_free(out);
        return status;
    }
    if (!c->chat && bytes)
        memcpy(text, prompt, bytes);
    memset(content + length, 1, room); /* choices are content */
    out->bytes = length;
    return STELE_OK;
}

static enum stele_status make_ids(const struct choosing *c, const struct stele_rendered *text, uint32_t **ids, size_t *count,
                                  struct stele_error *err)
{
    unsigned flags = (cmd_chat.bare ? STELE_TEXT_BARE : 0u) | (cmd_chat.plain ? STELE_TEXT_PLAIN : 0u);
    if (c->chat)
        return stele_tokenize_rendered(c->image, text, cmd_chat.trust_content, ids, count, err);
    return stele_tokenize(c->image, text->text, text->bytes, flags, ids, count, err);
}

static size_t common(const uint32_t *a, size_t a_count, const uint32_t *b, size_t b_count)
{
    size_t n = 0;
    while (n < a_count && n < b_count && a[n] == b[n])
        n++;
    return n;
}

/* Ids of the prompt with each choice; the item's prompt is what all of them and the prompt alone have in common. */
static enum stele_status make_branches(struct choosing *c, struct question *q, struct stele_rendered *text)
{
    uint32_t *alone;
    size_t shared, counts[CHOICES_MAX], bytes = text->bytes;
    enum stele_status status = make_ids(c, text, &alone, &shared, &q->err);
    size_t alone_count = shared, context = stele_session_info(c->session).context;
    for (size_t i = 0; i < c->choice_count && status == STELE_OK; i++) {
        memcpy(text->text + bytes, c->choices[i].text, c->choices[i].bytes);
        text->bytes = bytes + c->choices[i].bytes;
        status = make_ids(c, text, &q->ids[i], &counts[i], &q->err);
        size_t n = status == STELE_OK ? common(alone, alone_count, q->ids[i], counts[i]) : 0;
        shared = n < shared ? n : shared;
    }
    free(alone);
    if (status == STELE_OK && !shared)
        status = stele_fail(&q->err, STELE_USAGE, "the prompt is empty: it has no ids to stand behind");
    for (size_t i = 0; i < c->choice_count && status == STELE_OK; i++) {
        q->branches[i] = (struct stele_branch_ids){q->ids[i] + shared, counts[i] - shared, 0};
        if (counts[i] == shared)
            status = stele_fail(&q->err, STELE_USAGE, "choice %zu adds no id to the prompt", i + 1);
        else if (counts[i] > context + 1)
            status = stele_fail(&q->err, STELE_USAGE, "prompt and choice have %zu ids, more than the context of %zu", counts[i],
                                context);
    }
    q->item = (struct stele_item){q->ids[0], shared, q->branches, c->choice_count};
    return status;
}

/* Errors lie in the question. */
static void make_question(struct choosing *c, struct question *q, const char *prompt, size_t bytes)
{
    struct stele_rendered text;
    close_question(q);
    enum stele_status status = make_prompt(c, prompt, bytes, &text, &q->err);
    if (status == STELE_OK)
        status = make_branches(c, q, &text);
    q->err.status = status;
    stele_rendered_free(&text);
}

/* ---- answers ---- */

static double score_of(const struct choosing *c, const struct question *q, size_t i)
{
    return set.normalize ? q->branches[i].logprob / (double)c->choices[i].bytes : q->branches[i].logprob;
}

static void print_json(const struct choosing *c, const struct question *q, size_t best)
{
    double total = 0;
    for (size_t i = 0; i < c->choice_count; i++)
        total += exp(score_of(c, q, i) - score_of(c, q, best));
    fputs("{\"choice\": ", stdout);
    cmd_json_string(stdout, c->choices[best].text, c->choices[best].bytes);
    printf(", \"index\": %zu, \"choices\": [", best);
    for (size_t i = 0; i < c->choice_count; i++) {
        fputs(i ? ", {\"text\": " : "{\"text\": ", stdout);
        cmd_json_string(stdout, c->choices[i].text, c->choices[i].bytes);
        printf(", \"tokens\": %zu, \"logprob\": %.9g, \"probability\": %.9g}", q->branches[i].count, q->branches[i].logprob,
               exp(score_of(c, q, i) - score_of(c, q, best)) / total);
    }
    puts("]}");
}

static void print_error(const struct question *q)
{
    if (set.json) {
        fputs("{\"error\": ", stdout);
        cmd_json_string(stdout, q->err.text, strlen(q->err.text));
        puts("}");
    } else
        printf("error: %s\n", q->err.text);
}

static void print_answer(const struct choosing *c, const struct question *q)
{
    size_t best = 0;
    for (size_t i = 1; i < c->choice_count; i++)
        best = score_of(c, q, i) > score_of(c, q, best) ? i : best;
    if (set.json)
        print_json(c, q, best);
    else {
        fwrite(c->choices[best].text, 1, c->choices[best].bytes, stdout);
        putchar('\n');
    }
}

/* Scores the batch's questions that have no error, and prints all in order. */
static enum stele_status answer(struct choosing *c, size_t count)
{
    struct stele_item items[BATCH_MAX];
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        if (c->questions[i].err.status == STELE_OK)
            items[n++] = c->questions[i].item;
    enum stele_status status = stele_score(c->session, items, n, c->err);
    for (size_t i = 0; i < count && status == STELE_OK; i++) {
        struct question *q = &c->questions[i];
        c->lines++;
        if (q->err.status == STELE_OK) {
            print_answer(c, q);
            continue;
        }
        if (q->err.status == STELE_SYSTEM || !set.each) {
            *c->err = q->err;
            return q->err.status;
        }
        print_error(q);
        if (!c->failed++) {
            c->first_failed = c->lines;
            c->failure = q->err.status;
        }
    }
    return status != STELE_OK || !fflush(stdout)
               ? status
               : stele_fail(c->err, STELE_SYSTEM, "standard output: %s", strerror(errno));
}

/* ---- lines ---- */

/* Reads what is there, or waits for something. False: there is nothing, or an error, which *status has. */
static bool read_more(struct choosing *c, bool wait, enum stele_status *status)
{
    struct pollfd ready = {.fd = STDIN_FILENO, .events = POLLIN};
    if (c->input_ended || (!wait && poll(&ready, 1, 0) < 1))
        return false;
    if (c->input_room - c->input_bytes < 1 << 16) {
        char *more = realloc(c->input, c->input_room = 2 * c->input_room + (1 << 17));
        if (!more) {
            *status = stele_fail(c->err, STELE_SYSTEM, "no memory for a line of %zu bytes", c->input_bytes);
            return false;
        }
        c->input = more;
    }
    ssize_t got;
    do
        got = read(STDIN_FILENO, c->input + c->input_bytes, c->input_room - c->input_bytes);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        *status = stele_fail(c->err, STELE_SYSTEM, "standard input: %s", strerror(errno));
    c->input_ended = got <= 0;
    c->input_bytes += got > 0 ? (size_t)got : 0;
    return got > 0;
}

/* The prompt with the line in place of each {}, malloc'ed. */
static char *insert(const char *prompt, const char *line, size_t line_bytes, size_t *bytes)
{
    size_t n = strlen(prompt), places = 0;
    for (const char *at = prompt; (at = strstr(at, "{}")); at += 2)
        places++;
    char *out = malloc(n - 2 * places + places * line_bytes + 1), *to = out;
    for (const char *at = prompt, *next; out; at = next + 2) {
        next = strstr(at, "{}");
        size_t plain = next ? (size_t)(next - at) : strlen(at);
        memcpy(to, at, plain);
        to += plain;
        if (!next)
            break;
        memcpy(to, line, line_bytes);
        to += line_bytes;
    }
    *bytes = (size_t)(to - out);
    return out;
}

static enum stele_status ask_line(struct choosing *c, struct question *q, const char *prompt, const char *line, size_t bytes)
{
    size_t whole;
    char *text = insert(prompt, line, bytes, &whole);
    if (!text)
        return stele_fail(c->err, STELE_SYSTEM, "no memory for a line of %zu bytes", bytes);
    make_question(c, q, text, whole);
    free(text);
    return STELE_OK;
}

/* Questions of the lines that have come, *count of them; waits for the first. */
static enum stele_status ask_lines(struct choosing *c, const char *prompt, size_t *count)
{
    enum stele_status status = STELE_OK;
    size_t used = 0;
    for (*count = 0; *count < BATCH_MAX && status == STELE_OK;) {
        char *line = c->input + used, *end = c->input_bytes > used ? memchr(line, '\n', c->input_bytes - used) : NULL;
        if (!end && read_more(c, !*count, &status))
            continue;
        if (!end && (status != STELE_OK || !c->input_ended || used == c->input_bytes))
            break;
        size_t bytes = end ? (size_t)(end - line) : c->input_bytes - used;
        status = ask_line(c, &c->questions[(*count)++], prompt, line, line_bytes(line, bytes));
        used += bytes + (end != NULL);
    }
    c->input_bytes -= used;
    if (used)
        memmove(c->input, c->input + used, c->input_bytes);
    return status;
}

/* Computes once what prompts have in common, whatever their line is: as far as two unlike lines share ids. */
static enum stele_status keep_beginning(struct choosing *c, const char *prompt)
{
    static const char *const lines[] = {"0", "\xc3\xa9"};
    struct question *q = c->questions;
    enum stele_status status = STELE_OK;
    for (int i = 0; i < 2 && status == STELE_OK; i++)
        status = ask_line(c, &q[i], prompt, lines[i], strlen(lines[i]));
    if (status != STELE_OK || q[0].err.status != STELE_OK || q[1].err.status != STELE_OK)
        return status; /* the lines will say it */
    size_t n = common(q[0].item.prompt, q[0].item.prompt_count, q[1].item.prompt, q[1].item.prompt_count);
    return stele_keep(c->session, q[0].item.prompt, n, c->err);
}

static enum stele_status choose_each(struct choosing *c, const char *prompt)
{
    size_t count;
    if (!prompt || !strstr(prompt, "{}"))
        return stele_fail(c->err, STELE_USAGE, "--each needs a PROMPT with {} in it, where the lines go");
    enum stele_status status = keep_beginning(c, prompt);
    do {
        if (status == STELE_OK)
            status = ask_lines(c, prompt, &count);
        if (status == STELE_OK && count)
            status = answer(c, count);
    } while (status == STELE_OK && count);
    if (status == STELE_OK && c->failed)
        status = stele_fail(c->err, c->failure, "%" PRIu64 " of %" PRIu64 " lines failed, the first is line %" PRIu64, c->failed,
                            c->lines, c->first_failed);
    return status;
}

static enum stele_status choose_once(struct choosing *c, const char *operand)
{
    const char *text = NULL;
    char *owned = NULL;
    size_t bytes = 0;
    enum stele_status status = STELE_OK;
    if (operand || !cmd_chat.messages)
        status = cmd_text(operand, "prompt", &text, &bytes, &owned, c->err);
    if (status == STELE_OK) {
        make_question(c, c->questions, text, bytes);
        status = answer(c, 1);
    }
    free(owned);
    return status;
}

static enum stele_status open_session(struct choosing *c)
{
    struct stele_options o = cmd_session_options();
    o.sequences = 1 + 2 * (set.each ? BATCH_MAX : 1 + (uint32_t)c->choice_count / 2);
    return stele_session_open(&c->session, c->image, &o, c->err);
}

/* Standard input can be one thing: the messages, the prompt, or lines. */
static enum stele_status check_input(struct choosing *c, const char *operand)
{
    bool messages = cmd_chat.messages && !strcmp(cmd_chat.messages, "-");
    if (messages && (set.each || (operand && !strcmp(operand, "-"))))
        return stele_fail(c->err, STELE_USAGE, "the messages and the %s cannot both be standard input",
                          set.each ? "lines" : "prompt");
    return STELE_OK;
}

static enum stele_status choose(struct choosing *c, const char *image, const char *operand)
{
    enum stele_status status = check_input(c, operand);
    if (status == STELE_OK)
        status = read_choices(c);
    if (status == STELE_OK)
        status = cmd_open_image(&c->image, image, "choose", c->err);
    if (status == STELE_OK)
        status = cmd_chat_applies(c->image, &c->chat, c->err);
    if (status == STELE_OK)
        status = open_session(c);
    if (status == STELE_OK && !(c->questions = calloc(BATCH_MAX, sizeof *c->questions)))
        status = stele_fail(c->err, STELE_SYSTEM, "no memory for %d questions", BATCH_MAX);
    if (status == STELE_OK)
        status = set.each ? choose_each(c, operand) : choose_once(c, operand);
    return status;
}

int cmd_choose(int argc, char **argv)
{
    struct stele_error err = {0}, changed;
    struct choosing c = {.err = &err};
    const char *operands[2];
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help choose` says more");
    if (status == STELE_OK)
        status = choose(&c, operands[0], count > 1 ? operands[1] : NULL);
    if (c.image && status == STELE_OK && stele_image_unchanged(c.image, &changed) != STELE_OK) {
        err = changed;
        status = changed.status;
    }
    for (size_t i = 0; c.questions && i < BATCH_MAX; i++)
        close_question(&c.questions[i]);
    free(c.questions);
    free(c.input);
    free(c.owned);
    stele_session_close(c.session);
    stele_image_close(c.image);
    return status == STELE_OK ? STELE_OK : cmd_fail("choose", &err);
}
