/* SPDX-License-Identifier: Apache-2.0 */
#include "windows.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"

enum {
    LENGTH_DEFAULT = 512,
    LOGITS_BYTES = 16 << 20, /* of a block of rows of one model, at least one row */
};

static const char *name(const struct windows *w, size_t model)
{
    return stele_image_name(w->models[model].image);
}

/* ---- images ---- */

/* Both have a tokenizer, and the same one, and heads of the same size. */
static enum stele_status check_vocabularies(const struct windows *w, struct stele_error *err)
{
    for (size_t i = 0; i < w->model_count; i++)
        if (!stele_has_text(w->models[i].image))
            return stele_fail(err, STELE_INPUT,
                              "%s: its checkpoint had no tokenizer, so it reads no text",
                              name(w, i));
    if (w->model_count == 2 && strcmp(stele_image_info(w->models[0].image).text_identity,
                                      stele_image_info(w->models[1].image).text_identity))
        return stele_fail(err, STELE_USAGE,
                          "%s and %s have different tokenizers, so their tokens cannot be compared",
                          name(w, 0), name(w, 1));
    return STELE_OK;
}

static enum stele_status open_images(struct windows *w, const char *const *paths,
                                     struct stele_error *err)
{
    for (size_t i = 0; i < w->model_count; i++) {
        struct windows_model *m = &w->models[i];
        enum stele_status status = stele_image_open(&m->image, paths[i], err);
        if (status == STELE_OK && cmd_session.verify) {
            guard_image(m->image, w->verb);
            status = stele_image_verify(m->image, err);
        }
        if (status != STELE_OK)
            return status;
    }
    return check_vocabularies(w, err);
}

/* ---- the text ---- */

static enum stele_status read_file(const char *name, uint64_t most, char **out, size_t *bytes,
                                   struct stele_error *err)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return stele_fail(err, STELE_SYSTEM, "%s: %s", name, strerror(errno));
    size_t room = 1 << 16, n = 0;
    char *text = malloc(room);
    ssize_t got = 1;
    while (text && got && n < most) {
        if (n == room) {
            char *more = room > SIZE_MAX / 2 ? NULL : realloc(text, room *= 2);
            if (!more)
                free(text);
            text = more;
            continue;
        }
        size_t want = most - n < room - n ? most - n : room - n;
        got = read(fd, text + n, want);
        if (got < 0 && errno != EINTR)
            break;
        n += got > 0 ? (size_t)got : 0;
    }
    enum stele_status status = STELE_OK;
    if (!text)
        status = stele_fail(err, STELE_SYSTEM, "%s: no memory for more than %zu bytes", name, n);
    else if (got < 0)
        status = stele_fail(err, STELE_SYSTEM, "%s: %s", name, strerror(errno));
    close(fd);
    *out = text;
    *bytes = n;
    return status;
}

/* Bytes of the text without a character that --bytes cut. What is no UTF-8 is refused later. */
static size_t whole_characters(const char *text, size_t bytes)
{
    size_t behind = 0; /* its first byte */
    while (behind < 3 && behind < bytes && ((unsigned char)text[bytes - 1 - behind] & 0xc0) == 0x80)
        behind++;
    unsigned char lead = behind < bytes ? (unsigned char)text[bytes - 1 - behind] : 0;
    size_t length = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    return length > behind + 1 ? bytes - behind - 1 : bytes;
}

static enum stele_status read_text(struct windows *w, const char *file,
                                   const struct windows_settings *set, struct stele_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    uint64_t most = set->bytes ? set->bytes : UINT64_MAX;
    enum stele_status status = strcmp(file, "-") ? read_file(file, most, &text, &bytes, err)
                                                 : cmd_read_all(STDIN_FILENO, "standard input", &text, &bytes, err);
    if (status == STELE_OK && bytes >= most)
        bytes = whole_characters(text, (size_t)most);
    unsigned flags = STELE_TEXT_BARE | (set->plain ? STELE_TEXT_PLAIN : 0u);
    if (status == STELE_OK)
        status = stele_tokenize(w->models[0].image, text, bytes, flags, &w->ids, &w->id_count, err);
    free(text);
    if (status == STELE_OK && !w->id_count)
        status = stele_fail(err, STELE_USAGE, "%s: the text is empty: it has no ids", file);
    return status;
}

/* The id that the tokenizer puts before a text, if that is one id. */
static enum stele_status tokenizer_bos(struct windows *w, struct stele_error *err)
{
    uint32_t *bare = NULL, *whole = NULL;
    size_t bare_count = 0, whole_count = 0;
    enum stele_status status =
        stele_tokenize(w->models[0].image, "a", 1, STELE_TEXT_BARE, &bare, &bare_count, err);
    if (status == STELE_OK)
        status = stele_tokenize(w->models[0].image, "a", 1, 0, &whole, &whole_count, err);
    bool leads = whole_count > bare_count && bare_count &&
                 !memcmp(whole + 1, bare, bare_count * sizeof *bare);
    w->bos = leads ? whole[0] : WINDOWS_NO_BOS;
    free(bare);
    free(whole);
    return status;
}

static enum stele_status choose_bos(struct windows *w, const char *bos, struct stele_error *err)
{
    if (!bos)
        return tokenizer_bos(w, err);
    w->bos = WINDOWS_NO_BOS;
    if (!strcmp(bos, "none"))
        return STELE_OK;
    uint32_t *ids;
    size_t count;
    enum stele_status status = cmd_ids(bos, &ids, &count, err);
    if (status != STELE_OK)
        return status;
    if (count == 1)
        w->bos = ids[0];
    else
        status = stele_fail(err, STELE_USAGE, "--bos takes one id or none, not \"%s\"", bos);
    free(ids);
    return status;
}

/* ---- cutting ---- */

struct window {
    size_t begin, end; /* ids */
    size_t from;       /* the first that is scored */
};

static struct window window_at(const struct windows *w, size_t index)
{
    struct window at = {.begin = index * w->stride};
    at.end = w->id_count - at.begin < w->length ? w->id_count : at.begin + w->length;
    at.from = index ? at.begin - w->stride + w->length : 0;
    if (at.from == at.begin && w->bos == WINDOWS_NO_BOS)
        at.from++;
    return at;
}

static enum stele_status cut(struct windows *w, const struct windows_settings *set,
                             struct stele_error *err)
{
    uint32_t most = UINT32_MAX, before = w->bos == WINDOWS_NO_BOS ? 0 : 1;
    for (size_t i = 0; i < w->model_count; i++) {
        uint32_t trained = stele_image_info(w->models[i].image).context;
        most = trained < most ? trained : most;
    }
    most = most > before ? most - before : 1;
    w->length = set->context            ? (uint32_t)set->context
                : most < LENGTH_DEFAULT ? most
                                        : LENGTH_DEFAULT;
    w->stride = set->stride ? (uint32_t)set->stride : w->length;
    if (w->length > most)
        return stele_fail(err, STELE_USAGE,
                          "windows of %" PRIu32
                          " ids%s are more than the model was trained for; --context %" PRIu32
                          " fits",
                          w->length, before ? " behind a BOS" : "", most);
    if (w->stride > w->length)
        return stele_fail(err, STELE_USAGE,
                          "a stride of %" PRIu32 " leaves out ids between windows of %" PRIu32
                          "; name a smaller one",
                          w->stride, w->length);
    size_t behind = w->id_count > w->length ? w->id_count - w->length
                                            : 0; /* ids that the first window leaves */
    w->window_count = 1 + (behind + w->stride - 1) / w->stride;
    for (size_t i = 0; i < w->window_count; i++) {
        struct window at = window_at(w, i);
        w->scored += at.end > at.from ? at.end - at.from : 0;
    }
    if (!w->scored)
        return stele_fail(err, STELE_USAGE,
                          "nothing to score: %zu of the text's ids in windows of %" PRIu32
                          " have none before them",
                          w->id_count, w->length);
    return STELE_OK;
}

/* ---- sessions ---- */

static enum stele_status open_session(struct windows *w, struct windows_model *m,
                                      struct stele_error *err)
{
    struct stele_options o = cmd_session_options();
    o.context = w->length + (w->bos == WINDOWS_NO_BOS ? 0 : 1);
    enum stele_status status = stele_session_open(&m->session, m->image, &o, err);
    if (status != STELE_OK)
        return status;
    struct stele_session_info info = stele_session_info(m->session);
    size_t row_bytes = info.vocabulary * sizeof *m->rows;
    w->rows_max = row_bytes < LOGITS_BYTES ? LOGITS_BYTES / row_bytes : 1;
    w->rows_max = w->rows_max < info.chunk ? w->rows_max : info.chunk;
    w->vocabulary = info.vocabulary;
    m->rows = malloc(w->rows_max * row_bytes);
    return m->rows ? STELE_OK
                   : stele_fail(err, STELE_SYSTEM, "no memory for %zu rows of logits", w->rows_max);
}

static enum stele_status open_sessions(struct windows *w, struct stele_error *err)
{
    w->tokens = malloc((1 + (size_t)w->length) * sizeof *w->tokens);
    if (!w->tokens)
        return stele_fail(err, STELE_SYSTEM, "no memory for a window of %" PRIu32 " ids",
                          w->length);
    for (size_t i = 0; i < w->model_count; i++) {
        uint32_t before = w->vocabulary;
        enum stele_status status = open_session(w, &w->models[i], err);
        if (status == STELE_OK && i && w->vocabulary != before)
            status = stele_fail(err, STELE_USAGE,
                                "%s has a head of %" PRIu32 " rows and %s one of %" PRIu32
                                "; they cannot be compared",
                                name(w, 0), before, name(w, i), w->vocabulary);
        if (status != STELE_OK)
            return status;
    }
    return STELE_OK;
}

enum stele_status windows_open(struct windows *w, const char *verb, const char *const *paths,
                               size_t path_count, const char *file,
                               const struct windows_settings *set, struct stele_error *err)
{
    *w = (struct windows){.verb = verb, .model_count = path_count};
    enum stele_status status = open_images(w, paths, err);
    if (status == STELE_OK) {
        guard_image(w->models[0].image, verb);
        status = choose_bos(w, set->bos, err);
    }
    if (status == STELE_OK)
        status = read_text(w, file, set, err);
    if (status == STELE_OK)
        status = cut(w, set, err);
    return status == STELE_OK ? open_sessions(w, err) : status;
}

void windows_close(struct windows *w)
{
    for (size_t i = 0; i < w->model_count; i++) {
        free(w->models[i].rows);
        stele_session_close(w->models[i].session);
        stele_image_close(w->models[i].image);
    }
    free(w->tokens);
    free(w->ids);
    *w = (struct windows){0};
}

/* ---- walking ---- */

/* A run of rows of a window: the step that made them, and which of them have logits that are of
 * use. */
struct stretch {
    size_t first, count; /* tokens of the window */
    size_t from, to;     /* rows whose next token is scored; from == to: none */
};

/* One step of every model. The signal handler knows one image, so it is told which is in use. */
static enum stele_status step(const struct windows *w, const struct stretch *s,
                              struct stele_error *err)
{
    struct stele_slice slice = {
        .first = (uint32_t)s->first,
        .count = (uint32_t)s->count,
        .logits_from = (uint32_t)(s->from < s->to ? s->from - s->first : s->count),
        .ids = w->tokens + s->first,
    };
    enum stele_status status = STELE_OK;
    for (size_t i = 0; status == STELE_OK && i < w->model_count; i++) {
        guard_image(w->models[i].image, w->verb);
        status = stele_step(w->models[i].session, &slice, 1, err);
    }
    return status;
}

/* Logits of `count` rows from row `row` on of every model, and the tokens behind them to `visit`.
 */
static enum stele_status score(const struct windows *w, const struct stretch *s, size_t row,
                               size_t count, windows_visit *visit, void *context,
                               struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    for (size_t i = 0; status == STELE_OK && i < w->model_count; i++) {
        guard_image(w->models[i].image, w->verb);
        status = stele_logits(w->models[i].session, row - s->from, count, w->models[i].rows, err);
    }
    for (size_t r = 0; status == STELE_OK && r < count; r++) {
        const float *rows[WINDOWS_MODELS_MAX];
        for (size_t i = 0; i < w->model_count; i++)
            rows[i] = w->models[i].rows + r * w->vocabulary;
        visit(context, w, rows, w->tokens[row + r + 1]);
    }
    return status;
}

static size_t clamp(size_t n, size_t low, size_t high)
{
    return n < low ? low : n > high ? high : n;
}

static enum stele_status walk_window(const struct windows *w, size_t index, windows_visit *visit,
                                     void *context, struct stele_error *err)
{
    struct window at = window_at(w, index);
    size_t before = w->bos == WINDOWS_NO_BOS ? 0 : 1, tokens = before + at.end - at.begin;
    size_t from = before + at.from - at.begin - 1; /* row that predicts the first id scored */
    size_t chunk = stele_session_info(w->models[0].session).chunk;
    enum stele_status status = STELE_OK;
    w->tokens[0] = w->bos;
    memcpy(w->tokens + before, w->ids + at.begin, (at.end - at.begin) * sizeof *w->ids);
    for (size_t first = 0; status == STELE_OK && first < tokens; first += chunk) {
        size_t end = clamp(first + chunk, 0, tokens);
        struct stretch s = {first, end - first, clamp(from, first, end),
                            clamp(tokens - 1, first, end)};
        status = step(w, &s, err);
        for (size_t row = s.from; status == STELE_OK && row < s.to; row += w->rows_max)
            status = score(w, &s, row, clamp(w->rows_max, 0, s.to - row), visit, context, err);
    }
    return status;
}

static void show_progress(size_t done, size_t total)
{
    static double last;
    double now = guard_now();
    if (now - last < 0.2)
        return;
    last = now;
    fprintf(stderr, "\r%3.0f %% \033[K", 100.0 * (double)done / (double)total);
}

enum stele_status windows_walk(struct windows *w, windows_visit *visit, void *context,
                               struct stele_error *err)
{
    bool terminal = isatty(STDERR_FILENO);
    enum stele_status status = STELE_OK;
    for (size_t i = 0; status == STELE_OK && i < w->window_count; i++) {
        status = walk_window(w, i, visit, context, err);
        if (terminal)
            show_progress(i + 1, w->window_count);
    }
    if (terminal)
        fputs("\r\033[K", stderr);
    for (size_t i = 0; status == STELE_OK && i < w->model_count; i++)
        status = stele_image_unchanged(w->models[i].image, err);
    return status;
}

double windows_loss(const struct windows *w, size_t model, const float *row, uint32_t id)
{
    float logprob = 0;
    stele_logprobs(w->models[model].session, row, &id, 1, &logprob, NULL); /* an id out of range: the step that takes it says so */
    return -(double)logprob;
}

/* ---- saying what was measured ---- */

void windows_describe(FILE *to, const struct windows *w)
{
    fprintf(to, "text tokenised whole, bare; %zu window%s of up to %" PRIu32 " ids, ",
            w->window_count, w->window_count == 1 ? "" : "s", w->length);
    if (w->bos != WINDOWS_NO_BOS)
        fprintf(to, "id %" PRIu32 " before each; ", w->bos);
    else
        fputs("nothing before them; ", to);
    if (w->stride < w->length)
        fprintf(to,
                "a window every %" PRIu32
                " ids, in which those of the window before are context only; ",
                w->stride);
    fprintf(to, "%s scored",
            w->bos != WINDOWS_NO_BOS ? "every id"
            : w->stride < w->length  ? "every id but the text's first"
                                     : "every id but the first of each window");
}

void windows_describe_json(FILE *to, const struct windows *w)
{
    fprintf(to,
            "\"ids\": %zu, \"scored\": %zu, \"windows\": %zu, \"context\": %" PRIu32
            ", \"stride\": %" PRIu32,
            w->id_count, w->scored, w->window_count, w->length, w->stride);
    if (w->bos == WINDOWS_NO_BOS)
        fputs(", \"bos\": null", to);
    else
        fprintf(to, ", \"bos\": %" PRIu32, w->bos);
    fprintf(to, ", \"kv\": \"%s\"", stele_session_info(w->models[0].session).kv);
}
