/* SPDX-License-Identifier: Apache-2.0 */
#include "normalize.h"
#include "utf8.h"

#include <inttypes.h>
#include <utf8proc.h>

/* -------------------------------------------------------------------------------- normal forms */

/* The library's tables are those of Unicode 9: what came later has no decomposition
 * and class 0 there, and composes with nothing. So such characters ("young") are copied, and the
 * stretches between them normalised; between two versions of Unicode those stretches never change.
 * ASCII is copied, but for the last character before another. */

static enum stele_status reserve_characters(struct normalizer *n, size_t count,
                                            struct stele_error *err)
{
    if (count <= n->characters_capacity)
        return STELE_OK;
    size_t capacity = count + count / 2 + 64;
    int32_t *characters = realloc(n->characters, capacity * sizeof *characters);
    if (!characters)
        return stele_fail(err, STELE_SYSTEM, "no memory to normalise %zu characters", count);
    n->characters = characters;
    n->characters_capacity = capacity;
    return STELE_OK;
}

static int combining_class(int32_t c)
{
    return utf8proc_get_property(c)->combining_class;
}

/* Sorts a run of combining marks by class, equal ones staying in order: by counting, since classes
 * are below 256. Texts may hold runs of a million marks. */
static enum stele_status sort_marks(int32_t *marks, size_t count, struct stele_error *err)
{
    if (count <= 16) {
        for (size_t i = 1; i < count; i++) {
            int32_t mark = marks[i];
            int class = combining_class(mark);
            size_t j = i;
            for (; j > 0 && combining_class(marks[j - 1]) > class; j--)
                marks[j] = marks[j - 1];
            marks[j] = mark;
        }
        return STELE_OK;
    }
    size_t begin[257] = {0};
    int32_t *sorted = malloc(count * sizeof *sorted);
    if (!sorted)
        return stele_fail(err, STELE_SYSTEM, "no memory to normalise %zu characters", count);
    for (size_t i = 0; i < count; i++)
        begin[(combining_class(marks[i]) & 0xff) + 1]++;
    for (size_t i = 1; i < 257; i++)
        begin[i] += begin[i - 1];
    for (size_t i = 0; i < count; i++)
        sorted[begin[combining_class(marks[i]) & 0xff]++] = marks[i];
    memcpy(marks, sorted, count * sizeof *sorted);
    free(sorted);
    return STELE_OK;
}

static enum stele_status sort_all_marks(int32_t *characters, size_t count, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    for (size_t i = 0; i < count && !status;) {
        size_t end = i;
        while (end < count && combining_class(characters[end]))
            end++;
        if (end > i + 1)
            status = sort_marks(characters + i, end - i, err);
        i = end + 1;
    }
    return status;
}

/* Normalises a stretch without young characters and appends it to n->out. */
static enum stele_status normalize_stretch(struct normalizer *n, const char *text, size_t length,
                                           bool compose, struct stele_error *err)
{
    enum { DECOMPOSED_MAX = 18 };
    size_t count = 0;
    enum stele_status status = STELE_OK;
    for (size_t at = 0; at < length && !status;) {
        int boundary = UTF8PROC_BOUNDCLASS_START;
        status = reserve_characters(n, count + DECOMPOSED_MAX, err);
        if (status)
            return status;
        int32_t c = (int32_t)utf8_next(text, length, &at);
        utf8proc_ssize_t got = utf8proc_decompose_char(c, n->characters + count, DECOMPOSED_MAX,
                                                       UTF8PROC_DECOMPOSE, &boundary);
        if (got < 0 || got > DECOMPOSED_MAX)
            return stele_fail(err, STELE_SYSTEM, "utf8proc cannot decompose U+%04" PRIX32,
                              (uint32_t)c);
        count += (size_t)got;
    }
    status = sort_all_marks(n->characters, count, err);
    if (compose && !status) {
        utf8proc_ssize_t got = utf8proc_normalize_utf32(n->characters, (utf8proc_ssize_t)count,
                                                        UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (got < 0)
            return stele_fail(err, STELE_SYSTEM, "utf8proc: %s", utf8proc_errmsg(got));
        count = (size_t)got;
    }
    for (size_t i = 0; i < count && !status; i++) {
        char bytes[4];
        status = text_append(&n->out, bytes, utf8_put(bytes, (uint32_t)n->characters[i]), err);
    }
    return status;
}

/* Where ASCII ends from `at` on. */
static size_t skip_ascii(const char *text, size_t length, size_t at)
{
    uint64_t eight;
    while (length - at >= 8 && (memcpy(&eight, text + at, 8), !(eight & 0x8080808080808080u)))
        at += 8;
    while (at < length && !((unsigned char)text[at] & 0x80))
        at++;
    return at;
}

static enum stele_status normal_form(struct normalizer *n, const char *text, size_t length,
                                     bool compose, struct stele_error *err)
{
    struct classes classes;
    classes_open(&classes, n->vocab);
    const uint32_t young = n->vocab->header.young;
    enum stele_status status = STELE_OK;
    for (size_t at = 0; at < length && !status;) {
        size_t plain = skip_ascii(text, length, at), from = plain;
        if (plain < length && plain > at)
            from--; /* a mark may follow */
        status = text_append(&n->out, text + at, from - at, err);
        size_t end = plain, next = plain;
        uint32_t bits = 0;
        while (end < length && ((unsigned char)text[end] & 0x80)) {
            bits = classes_next(&classes, text, length, &next);
            if (bits & young)
                break;
            end = next;
        }
        if (!status && end > from)
            status = normalize_stretch(n, text + from, end - from, compose, err);
        if (!status && next > end) /* the young character */
            status = text_append(&n->out, text + end, next - end, err);
        at = next;
    }
    return status;
}

/* --------------------------------------------------------------------------------------- steps */

/* Where white space at the start of `text` ends, or where that at its end begins. */
static void trim(const struct normalizer *n, const char **text, size_t *length,
                 const struct vocab_step *step)
{
    struct classes classes;
    classes_open(&classes, n->vocab);
    const uint32_t space = n->vocab->header.space;
    size_t begin = 0, end = *length;
    for (size_t next = 0; step->start && next < end; begin = next)
        if (!(classes_next(&classes, *text, end, &next) & space))
            break;
    while (step->stop && end > begin) {
        size_t last = utf8_before(*text, end), next = last;
        if (!(classes_next(&classes, *text, end, &next) & space))
            break;
        end = last;
    }
    *text += begin;
    *length = end - begin;
}

static enum stele_status replace_literal(struct normalizer *n, const char *text, size_t length,
                                         const char *a, size_t a_length, const char *b,
                                         size_t b_length, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    while (!status) {
        const char *found =
            a_length == 1 ? memchr(text, *a, length) : memmem(text, length, a, a_length);
        if (!found)
            return text_append(&n->out, text, length, err);
        size_t before = (size_t)(found - text);
        status = text_append(&n->out, text, before, err);
        if (!status)
            status = text_append(&n->out, b, b_length, err);
        text += before + a_length;
        length -= before + a_length;
    }
    return status;
}

static enum stele_status replace_pattern(struct normalizer *n, struct matcher *m, uint32_t pattern,
                                         const char *text, size_t length, const char *b,
                                         size_t b_length, struct stele_error *err)
{
    enum stele_status status = m->kind ? STELE_OK : matcher_open(m, n->vocab, pattern, err);
    size_t done = 0, start, stop;
    bool found = !status;
    if (!status)
        matcher_start(m, text, length);
    while (!status && found) {
        status = matcher_next(m, &found, &start, &stop, err);
        if (status || !found)
            break;
        status = text_append(&n->out, text + done, start - done, err);
        if (!status)
            status = text_append(&n->out, b, b_length, err);
        done = stop;
    }
    return status ? status : text_append(&n->out, text + done, length - done, err);
}

/* One step from *text, which may lie in n->other, into n->out; or *text alone is moved. */
static enum stele_status run_step(struct normalizer *n, uint32_t index, const char **text,
                                  size_t *length, struct stele_error *err)
{
    struct vocab_step step =
        ((const struct vocab_step *)vocab_records(n->vocab, VOCAB_NORMALIZERS))[index];
    const char *a, *b;
    size_t a_length, b_length;
    enum stele_status status = STELE_OK;
    if (!vocab_string(n->vocab, step.a, &a, &a_length) ||
        !vocab_string(n->vocab, step.b, &b, &b_length))
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: normaliser %" PRIu32 ": a string lies outside",
                          index);
    switch (step.op) {
    case STEP_PREPEND:
        if (n->inside)
            return STELE_OK;
        status = text_append(&n->out, a, a_length, err);
        if (!status)
            status = text_append(&n->out, *text, *length, err);
        break;
    case STEP_REPLACE:
        if (!a_length)
            return stele_fail(err, STELE_INPUT,
                              "tokenizer section: normaliser %" PRIu32 " replaces nothing", index);
        status = replace_literal(n, *text, *length, a, a_length, b, b_length, err);
        break;
    case STEP_REPLACE_PATTERN:
        status =
            replace_pattern(n, &n->matchers[index], step.pattern, *text, *length, b, b_length, err);
        break;
    case STEP_NFC:
    case STEP_NFD:
        if (skip_ascii(*text, *length, 0) == *length)
            return STELE_OK;
        status = normal_form(n, *text, *length, step.op == STEP_NFC, err);
        break;
    case STEP_TRIM:
        trim(n, text, length, &step);
        return STELE_OK;
    default:
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: normaliser %" PRIu32 " is of an unknown kind", index);
    }
    if (status)
        return status;
    struct text_buffer made = n->out;
    n->out = n->other;
    n->other = made;
    *text = made.data;
    *length = made.length;
    return STELE_OK;
}

enum stele_status normalizer_run(struct normalizer *n, const char *text, size_t length,
                                 const char **out, size_t *out_length, struct stele_error *err)
{
    uint32_t count = vocab_count(n->vocab, VOCAB_NORMALIZERS);
    if (count > NORMALIZE_STEPS_MAX)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: %" PRIu32 " normalisers, more than %d", count,
                          NORMALIZE_STEPS_MAX);
    enum stele_status status = STELE_OK;
    for (uint32_t i = 0; i < count && length && !status; i++) {
        n->out.length = 0;
        status = run_step(n, i, &text, &length, err);
    }
    *out = text;
    *out_length = length;
    return status;
}

void normalizer_free(struct normalizer *n)
{
    for (size_t i = 0; i < NORMALIZE_STEPS_MAX; i++)
        matcher_close(&n->matchers[i]);
    free(n->out.data);
    free(n->other.data);
    free(n->characters);
    *n = (struct normalizer){0};
}
