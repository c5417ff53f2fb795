/* SPDX-License-Identifier: Apache-2.0 */
/* `stele logprobs`: how likely each token of a text was, one JSON object a line.
 *
 *     read_ids -> open_session -> score: chunks of the text, in each blocks of rows of logits
 *
 * Row i of the logits predicts position i + 1: line 0 has no probability, and the last row is made
 * for --dump-logits only. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd_session.h"

enum { LOGITS_BYTES = 16 << 20 }; /* of a block of rows, at least one row */

/* What the options say. */
static struct {
    uint64_t top;
    const char *ids, *dump;
    bool raw, bare, plain;
} set;

static const struct cmd_option options[] = {
    {"--ids", OPTION_TEXT, &set.ids, "\"1 2 3\"", "the text as ids; standard input is not touched",
     0, 0, NULL},
    {"--top", OPTION_COUNT, &set.top, "K", "also the K likeliest tokens of each position", 0,
     2147483647, NULL},
    {"--dump-logits", OPTION_TEXT, &set.dump, "FILE",
     "write all logits: little-endian f32 [tokens][vocabulary]", 0, 0, NULL},
    {"--raw", OPTION_FLAG, &set.raw, NULL, "the text as it is, as always here; accepted as in run",
     0, 0, NULL},
    {"--bare", OPTION_FLAG, &set.bare, NULL, "without what the tokenizer puts around a text (BOS)",
     0, 0, NULL},
    {"--plain", OPTION_FLAG, &set.plain, NULL, "added tokens spelled in the text are plain text", 0,
     0, NULL},
    CMD_CONTEXT_OPTION,
    CMD_SESSION_OPTIONS,
    {0},
};

const struct verb verb_logprobs = {
    .name = "logprobs",
    .synopsis = "IMAGE [options] [TEXT|-]",
    .about =
        "Writes a JSON object for each token of the text: position, id, piece (the token's own\n"
        "text) and logprob, the natural logarithm of its probability after what stands\n"
        "before it (null for the first). The text is the argument, or standard input where\n"
        "there is none or it is \"-\". With --top K a member \"top\" lists the K likeliest\n"
        "tokens of the position, likeliest first.",
    .run = cmd_logprobs,
    .options = options,
};

/* ---- the dump ---- */

/* A file that is seen at its name when it is complete: it grows without a name beside the target
 * (with one where the file system lacks that), is synced, and then renamed over the target. What is
 * no regular file, or is standard output, is written directly. */
struct dump {
    const char *name; /* as the caller gave it; NULL: no dump */
    char *path;       /* links followed; NULL: written directly */
    char *temporary;  /* beside path */
    bool named;       /* the file is at `temporary` */
    int fd;
};

static enum stele_status dump_failed(const struct dump *d, struct stele_error *err)
{
    return stele_fail(err, STELE_SYSTEM, "%s: cannot write the logits: %s", d->name,
                      strerror(errno));
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static enum stele_status open_temporary(struct dump *d, struct stele_error *err)
{
    if (asprintf(&d->temporary, "%s.%ld.part", d->path, (long)getpid()) < 0)
        d->temporary = NULL;
    char *copy = strdup(d->path);
    if (!d->temporary || !copy) {
        free(copy);
        return dump_failed(d, err);
    }
    d->fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    free(copy);
    if (d->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        d->fd = open(d->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        d->named = d->fd >= 0;
    }
    return d->fd >= 0 ? STELE_OK : dump_failed(d, err);
}

static enum stele_status dump_open(struct dump *d, const char *name, const struct stele_image *image,
                                   struct stele_error *err)
{
    struct stat target, other;
    bool exists = !stat(name, &target);
    bool is_stdout = exists && !fstat(STDOUT_FILENO, &other) && same_file(&other, &target);
    d->name = name;
    d->fd = -1;
    if (exists && !stat(stele_image_name(image), &other) && same_file(&other, &target))
        return stele_fail(err, STELE_USAGE, "%s: is the image itself; name another file", name);
    if (is_stdout || (exists && !S_ISREG(target.st_mode))) {
        d->fd =
            is_stdout ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3) : open(name, O_WRONLY | O_CLOEXEC);
        return d->fd >= 0 ? STELE_OK : dump_failed(d, err);
    }
    if (!exists && !lstat(name, &target))
        return stele_fail(err, STELE_USAGE, "%s: a symbolic link to nothing", name);
    d->path = exists ? realpath(name, NULL) : strdup(name);
    return d->path ? open_temporary(d, err) : dump_failed(d, err);
}

static enum stele_status dump_write(const struct dump *d, const void *bytes, size_t length,
                                    struct stele_error *err)
{
    const char *from = bytes;
    while (length) {
        ssize_t n = write(d->fd, from, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return dump_failed(d, err);
        from += n;
        length -= (size_t)n;
    }
    return STELE_OK;
}

/* Gives the complete file its name. */
static enum stele_status dump_finish(struct dump *d, struct stele_error *err)
{
    if (!d->path)
        return STELE_OK;
    if (fsync(d->fd))
        return dump_failed(d, err);
    if (!d->named) {
        char from[64];
        snprintf(from, sizeof from, "/proc/self/fd/%d", d->fd);
        unlink(d->temporary); /* left by a process of this number that was killed between link and
                                 rename */
        if (linkat(AT_FDCWD, from, AT_FDCWD, d->temporary, AT_SYMLINK_FOLLOW))
            return dump_failed(d, err);
        d->named = true;
    }
    if (rename(d->temporary, d->path))
        return dump_failed(d, err);
    d->named = false;
    return STELE_OK;
}

static void dump_close(struct dump *d)
{
    if (d->named)
        unlink(d->temporary);
    if (d->name && d->fd >= 0)
        close(d->fd);
    free(d->temporary);
    free(d->path);
}

/* ---- the text ---- */

/* What a call holds; all starts as zero, so closing is always safe. */
struct scores {
    struct stele_image *image;
    struct stele_session *session;
    struct stele_session_info info;
    uint32_t *ids;
    size_t count;
    float *rows; /* [rows_max][vocabulary] logits */
    size_t rows_max;
    size_t top_count;
    uint32_t *shown; /* [1 + top_count]: the id that stands at a position, and the likeliest */
    float *logprobs; /* [1 + top_count]: theirs */
    struct dump dump;
    struct stele_error *err;
};

static enum stele_status read_text(struct scores *s, const char *operand)
{
    if (!stele_has_text(s->image))
        return stele_fail(s->err, STELE_INPUT,
                          "%s: its checkpoint had no tokenizer, so it takes --ids instead of text",
                          stele_image_name(s->image));
    const char *text;
    size_t bytes;
    char *owned;
    enum stele_status status = cmd_text(operand, "text", &text, &bytes, &owned, s->err);
    unsigned flags = (set.bare ? STELE_TEXT_BARE : 0u) | (set.plain ? STELE_TEXT_PLAIN : 0u);
    if (status == STELE_OK)
        status = stele_tokenize(s->image, text, bytes, flags, &s->ids, &s->count, s->err);
    free(owned);
    return status;
}

static enum stele_status read_ids(struct scores *s, const char *operand)
{
    if (set.ids && operand)
        return stele_fail(s->err, STELE_USAGE, "--ids and a TEXT are two texts; name one");
    enum stele_status status =
        set.ids ? cmd_ids(set.ids, &s->ids, &s->count, s->err) : read_text(s, operand);
    if (status == STELE_OK && !s->count)
        status = stele_fail(s->err, STELE_USAGE, "the text is empty: it has no ids");
    return status;
}

/* ---- the session ---- */

static enum stele_status check_ids(const struct scores *s)
{
    if (s->count > s->info.context)
        return stele_fail(s->err, STELE_USAGE,
                          "the text has %zu ids, more than the context of %" PRIu32, s->count,
                          s->info.context);
    for (size_t i = 0; i < s->count; i++)
        if (s->ids[i] >= s->info.vocabulary)
            return stele_fail(s->err, STELE_USAGE,
                              "id %" PRIu32 " at position %zu: the model has %" PRIu32 " ids",
                              s->ids[i], i, s->info.vocabulary);
    return STELE_OK;
}

static enum stele_status allocate(struct scores *s)
{
    size_t row_bytes = s->info.vocabulary * sizeof *s->rows;
    s->rows_max = row_bytes < LOGITS_BYTES ? LOGITS_BYTES / row_bytes : 1;
    s->rows_max = s->rows_max < s->info.chunk ? s->rows_max : s->info.chunk;
    s->rows = malloc(s->rows_max * row_bytes);
    s->top_count = set.top < s->info.vocabulary ? (size_t)set.top : s->info.vocabulary;
    s->shown = malloc((s->top_count + 1) * sizeof *s->shown);
    s->logprobs = malloc((s->top_count + 1) * sizeof *s->logprobs);
    if (s->rows && s->shown && s->logprobs)
        return STELE_OK;
    return stele_fail(s->err, STELE_SYSTEM, "no memory for %zu rows of logits", s->rows_max);
}

static enum stele_status open_session(struct scores *s)
{
    struct stele_options o = cmd_session_options();
    enum stele_status status = stele_session_open(&s->session, s->image, &o, s->err);
    if (status != STELE_OK)
        return status;
    s->info = stele_session_info(s->session);
    status = check_ids(s);
    return status == STELE_OK ? allocate(s) : status;
}

/* ---- a line ---- */

static enum stele_status print_piece(const struct scores *s, uint32_t id)
{
    char *piece;
    size_t bytes;
    if (!stele_has_text(s->image)) {
        fputs("null", stdout);
        return STELE_OK;
    }
    enum stele_status status = stele_token_text(s->image, id, &piece, &bytes, s->err);
    if (status == STELE_OK) {
        cmd_json_string(stdout, piece, bytes);
        free(piece);
    }
    return status;
}

/* `logprob` NULL: there is none. */
static enum stele_status print_token(const struct scores *s, uint32_t id, const float *logprob)
{
    printf("\"id\":%" PRIu32 ",\"piece\":", id);
    enum stele_status status = print_piece(s, id);
    if (logprob && isfinite(*logprob))
        printf(",\"logprob\":%.9g", (double)*logprob);
    else
        fputs(",\"logprob\":null", stdout);
    return status;
}

/* The line of a position; `row`: the logits that predict it, NULL at the first. */
static enum stele_status print_position(const struct scores *s, size_t position, const float *row)
{
    size_t top_count = row ? s->top_count : 0;
    enum stele_status status = STELE_OK;
    s->shown[0] = s->ids[position];
    if (row) {
        stele_top(s->session, row, s->shown + 1, top_count);
        status = stele_logprobs(s->session, row, s->shown, 1 + top_count, s->logprobs, s->err);
    }
    printf("{\"position\":%zu,", position);
    if (status == STELE_OK)
        status = print_token(s, s->shown[0], row ? &s->logprobs[0] : NULL);
    if (set.top)
        fputs(",\"top\":[", stdout);
    for (size_t i = 1; i <= top_count && status == STELE_OK; i++) {
        fputs(i > 1 ? ",{" : "{", stdout);
        status = print_token(s, s->shown[i], &s->logprobs[i]);
        putchar('}');
    }
    fputs(set.top ? "]}\n" : "}\n", stdout);
    return status;
}

/* ---- scoring ---- */

static enum stele_status check_output(const struct scores *s, bool flush)
{
    if ((!flush || !fflush(stdout)) && !ferror(stdout))
        return STELE_OK;
    return stele_fail(s->err, STELE_SYSTEM, "standard output: %s", strerror(errno));
}

/* Rows [first, first + count) of the text: the last step's logits from `from` on. */
static enum stele_status score_rows(const struct scores *s, size_t from, size_t first, size_t count)
{
    enum stele_status status = stele_logits(s->session, from, count, s->rows, s->err);
    size_t vocabulary = s->info.vocabulary;
    if (status == STELE_OK && s->dump.name)
        status = dump_write(&s->dump, s->rows, count * vocabulary * sizeof *s->rows, s->err);
    for (size_t i = 0; i < count && first + i + 1 < s->count && status == STELE_OK; i++)
        status = print_position(s, first + i + 1, s->rows + i * vocabulary);
    return status == STELE_OK ? check_output(s, false) : status;
}

static enum stele_status score(const struct scores *s)
{
    size_t wanted = s->dump.name ? s->count : s->count - 1; /* rows whose logits are of use */
    enum stele_status status = print_position(s, 0, NULL);
    for (size_t first = 0; first < s->count && status == STELE_OK;) {
        size_t rest = s->count - first, n = rest < s->info.chunk ? rest : s->info.chunk;
        size_t rows = wanted - first < n ? wanted - first : n;
        struct stele_slice slice = {
            .first = (uint32_t)first, .count = (uint32_t)n, .ids = s->ids + first};
        status = stele_step(s->session, &slice, 1, s->err);
        for (size_t from = 0, block; from < rows && status == STELE_OK; from += block) {
            block = rows - from < s->rows_max ? rows - from : s->rows_max;
            status = score_rows(s, from, first + from, block);
        }
        if (status == STELE_OK)
            status = check_output(s, true);
        first += n;
    }
    return status;
}

static enum stele_status logprobs(struct scores *s, const char *operand)
{
    enum stele_status status = read_ids(s, operand);
    if (status == STELE_OK)
        status = open_session(s);
    if (status == STELE_OK && set.dump)
        status = dump_open(&s->dump, set.dump, s->image, s->err);
    if (status == STELE_OK)
        status = score(s);
    if (status == STELE_OK)
        status = stele_image_unchanged(s->image, s->err);
    return status == STELE_OK && set.dump ? dump_finish(&s->dump, s->err) : status;
}

int cmd_logprobs(int argc, char **argv)
{
    struct stele_error err = {0};
    struct scores s = {.err = &err};
    const char *operands[2];
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && !count)
        status =
            stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help logprobs` says more");
    if (status == STELE_OK)
        status = cmd_open_image(&s.image, operands[0], "logprobs", &err);
    if (status == STELE_OK)
        status = logprobs(&s, count > 1 ? operands[1] : NULL);
    dump_close(&s.dump);
    free(s.shown);
    free(s.logprobs);
    free(s.rows);
    free(s.ids);
    stele_session_close(s.session);
    stele_image_close(s.image);
    return status == STELE_OK ? STELE_OK : cmd_fail("logprobs", &err);
}
