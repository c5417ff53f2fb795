/* SPDX-License-Identifier: Apache-2.0 */
#include "pack.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "panel.h"
#include "pool.h"
#include "quantise.h"

enum { BATCH_BYTES = 4 << 20 }; /* panels that threads fill before they are appended */

struct packer {
    struct emitter *emitter;
    struct pool *pool;
    size_t threads;
    const struct recipe *recipe;
    size_t expert; /* of a bank */
    uint64_t written; /* bytes of weights so far */
    uint64_t first, count; /* panels of this batch */
    uint8_t *batch;
    size_t batch_bytes;
    float *rows;          /* [threads]: K numbers, then scales of their halves of groups */
    size_t rows_numbers;  /* for one thread */
    struct fault *faults; /* [threads] */
    pack_progress *progress;
    void *context; /* of progress */
};

/* The source row behind a row of the tensor (of an expert's matrix or bias, in a bank); false for padding. */
static bool source_row(const struct recipe *r, size_t expert, uint64_t row, struct part *part, uint64_t *at)
{
    const struct part *parts = r->parts + expert * r->part_count;
    uint64_t in_part = row;
    size_t i = 0;
    if (r->in_turn) {
        i = row / PANEL_ROWS % r->part_count;
        in_part = row / PANEL_ROWS / r->part_count * PANEL_ROWS + row % PANEL_ROWS;
    } else
        for (; i + 1 < r->part_count && in_part >= round_up(parts[i].rows, PANEL_ROWS); i++)
            in_part -= round_up(parts[i].rows, PANEL_ROWS);
    *part = parts[i];
    *at = part->first + in_part * part->step;
    return part->tensor && in_part < part->rows;
}

static void blame(struct fault *fault, uint64_t panel, const char *what, const struct source_tensor *tensor, uint64_t row)
{
    if (panel < fault->panel)
        *fault = (struct fault){.panel = panel, .what = what, .tensor = tensor, .row = row};
}

enum stele_status pack_fault(const struct fault *fault, struct stele_error *err)
{
    if (fault->panel == UINT64_MAX)
        return STELE_OK;
    return stele_fail(err, STELE_INPUT, "%s: tensor %s: %s %" PRIu64 " %s", fault->tensor->file, fault->tensor->name,
                      fault->number ? "number" : "row", fault->row, fault->what);
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

/* Lays row `row` of a panel of floats; false where a number is too large for the type. */
static bool lay_floats(uint8_t *panel, enum tensor_type type, size_t row, const float *x, size_t k)
{
    bool fits = true;
    for (size_t i = 0; i < k; i++) {
        size_t at = panel_index_float(type, row, i);
        if (type == TENSOR_F32) {
            ((float *)panel)[at] = x[i];
            continue;
        }
        uint16_t half = type == TENSOR_BF16 ? bf16_of_float(x[i]) : f16_of_float(x[i]);
        fits = fits && (type == TENSOR_BF16 ? (half & 0x7f80) != 0x7f80 : (half & 0x7c00) != 0x7c00);
        ((uint16_t *)panel)[at] = half;
    }
    return fits;
}

/* `n` numbers of x [k] from `from` on; zeros behind its end. */
static void take_numbers(float *w, size_t n, const float *x, size_t from, size_t k)
{
    size_t real = from >= k ? 0 : k - from < n ? k - from : n;
    memcpy(w, x + from, real * sizeof *w);
    memset(w + real, 0, (n - real) * sizeof *w);
}

/* Lays row `row` of a panel of q8; false where a number is too large. */
static bool lay_q8(uint8_t *panel, size_t row, const float *x, size_t k)
{
    bool fits = true;
    for (size_t from = 0; from < k; from += GROUP) {
        float w[GROUP];
        struct group group;
        size_t groups, in = from % DOT_BLOCK;
        take_numbers(w, GROUP, x, from, k);
        fits = quantise_q8(&group, w) && fits;
        uint8_t *block = panel + panel_block(TENSOR_Q8, k, from / DOT_BLOCK, &groups);
        memcpy(block + block_scale(TENSOR_Q8, row, in / GROUP), &group.scale, sizeof group.scale);
        for (size_t i = 0; i < GROUP; i++)
            block[block_weight(TENSOR_Q8, groups, row, in + i)] = (uint8_t)(group.q[i] + Q8_ZERO);
    }
    return fits;
}

/* The same of q4. Scales of all halves come first, into `scales`, for the row's is made of them. */
static bool lay_q4(uint8_t *panel, size_t row, const float *x, size_t k, float *scales)
{
    float w[HALF];
    uint16_t row_scale;
    const size_t halves = round_up(k, GROUP) / HALF;
    for (size_t h = 0; h < halves; h++) {
        take_numbers(w, HALF, x, h * HALF, k);
        scales[h] = q4_scale(w);
    }
    bool fits = q4_row_scale(&row_scale, scales, halves);
    memcpy(panel + row * sizeof row_scale, &row_scale, sizeof row_scale);
    for (size_t h = 0; h < halves; h++) {
        struct half half;
        size_t groups, in = h * HALF % DOT_BLOCK;
        take_numbers(w, HALF, x, h * HALF, k);
        quantise_q4(&half, w, scales[h], row_scale);
        uint8_t *block = panel + panel_block(TENSOR_Q4, k, h * HALF / DOT_BLOCK, &groups);
        memcpy(block + block_scale(TENSOR_Q4, row, in / HALF), &half.scale, sizeof half.scale);
        for (size_t i = 0; i < HALF; i++) {
            uint8_t *byte = block + block_weight(TENSOR_Q4, groups, row, in + i);
            *byte = (uint8_t)(*byte | half.code[i] << ((in + i) & 4 ? 4 : 0));
        }
    }
    return fits;
}

/* The same of any type whose numbers are rounded. */
static bool lay_row(uint8_t *panel, enum tensor_type type, size_t row, const float *x, size_t k, float *scales)
{
    if (type == TENSOR_Q4)
        return lay_q4(panel, row, x, k, scales);
    return type == TENSOR_Q8 ? lay_q8(panel, row, x, k) : lay_floats(panel, type, row, x, k);
}

/* Lays row `row` of a panel of mxfp4 from a source of the same, its numbers from index `from` on: bytes move, nothing is
 * rounded. NULL, or what is wrong with them. */
static const char *lay_codes(uint8_t *panel, size_t row, const struct source_tensor *source, uint64_t from, size_t k)
{
    const uint8_t *scales = source->scales + from / GROUP, *codes = source_bytes(source, from / 2);
    const char *wrong = NULL;
    for (size_t g = 0; g * GROUP < k; g++) {
        size_t groups;
        uint8_t *block = panel + panel_block(TENSOR_MXFP4, k, g / BLOCK_GROUPS, &groups);
        block[block_scale(TENSOR_MXFP4, row, g % BLOCK_GROUPS)] = scales[g];
        if (scales[g] > MXFP4_SCALE_MAX)
            wrong = scales[g] == 255 ? "holds a NaN" : "holds a scale above 2^105, the largest of an image's mxfp4";
        for (size_t i = 0; i < GROUP; i++) {
            unsigned code = codes[(g * GROUP + i) / 2] >> (i % 2 ? 4 : 0) & 15;
            uint8_t *byte = block + block_weight(TENSOR_MXFP4, groups, row, (g * GROUP + i) % DOT_BLOCK);
            *byte = (uint8_t)(*byte | code << (i & 4 ? 4 : 0));
        }
    }
    return wrong;
}

/* The 16 numbers of a vector, or of a set of biases, that stand where a matrix has panel `panel`. */
static void lay_numbers(const struct recipe *r, size_t set, uint64_t panel, float *out, struct fault *fault)
{
    for (size_t i = 0; i < PANEL_ROWS; i++) {
        struct part part;
        uint64_t at;
        out[i] = 0;
        if (!source_row(r, set, panel * PANEL_ROWS + i, &part, &at))
            continue;
        source_read(&out[i], part.tensor, at, 1);
        if (!isfinite(out[i])) {
            blame(fault, panel, "is not finite", part.tensor, at);
            fault->number = true;
        }
        out[i] = out[i] + r->added;
    }
}

/* Lays n words of 32 bits of each row where panels of f32, and of pairs of bf16, have them. Whether all numbers are finite:
 * `exponent` has the bits of theirs, which are not all set, `one` the lowest of these. */
static bool lay_words(uint32_t *panel, const uint8_t *const rows[PANEL_ROWS], size_t n, uint32_t exponent, uint32_t one)
{
    uint32_t lines[PANEL_ROWS][16], found = 0; /* rows are often a multiple of 4 KiB apart, which no cache likes */
    for (size_t from = 0; from < n; from += 16) {
        size_t m = n - from < 16 ? n - from : 16;
        for (size_t row = 0; row < PANEL_ROWS; row++)
            memcpy(lines[row], rows[row] + from * sizeof(uint32_t), m * sizeof(uint32_t));
        for (size_t i = 0; i < m; i++)
            for (size_t row = 0; row < PANEL_ROWS; row++) {
                found |= (lines[row][i] & exponent) + one;
                panel[(from + i) * PANEL_ROWS + row] = lines[row][i];
            }
    }
    return !(found & (exponent + one));
}

/* Lays a panel whose numbers are those of the source, bytes moved. False: it has padding, or something is wrong with it. */
static bool lay_same(const struct recipe *r, size_t expert, uint64_t panel, uint8_t *out)
{
    const struct image_tensor *t = &r->record;
    const bool bf16 = t->type == TENSOR_BF16;
    const size_t size = bf16 ? 2 : 4, words = t->columns * size / sizeof(uint32_t);
    const uint8_t *rows[PANEL_ROWS];
    if ((!bf16 && t->type != TENSOR_F32) || t->columns % GROUP)
        return false;
    for (size_t row = 0; row < PANEL_ROWS; row++) {
        struct part part;
        uint64_t at;
        if (panel * PANEL_ROWS + row >= t->rows || !source_row(r, expert, panel * PANEL_ROWS + row, &part, &at) ||
            part.tensor->type != (bf16 ? SOURCE_BF16 : SOURCE_F32))
            return false;
        rows[row] = source_bytes(part.tensor, at * t->columns * size);
    }
    return bf16 ? lay_words((uint32_t *)out, rows, words, 0x7f807f80, 0x00800080)
                : lay_words((uint32_t *)out, rows, words, 0x7f800000, 0x00800000);
}

uint64_t pack_panel_bytes(const struct recipe *r)
{
    return r->record.layout == LAYOUT_VECTOR ? PANEL_ROWS * sizeof(float) : panel_bytes(r->record.type, r->record.columns);
}

size_t pack_row_numbers(size_t columns)
{
    return columns + round_up(columns, GROUP) / HALF;
}

void pack_panel(const struct recipe *r, size_t expert, uint64_t panel, uint8_t *out, float *x, struct fault *fault)
{
    const struct image_tensor *t = &r->record;
    size_t k = t->columns;
    if (t->layout == LAYOUT_VECTOR) {
        lay_numbers(r, expert, panel, (float *)out, fault);
        return;
    }
    if (lay_same(r, expert, panel, out))
        return;
    memset(out, 0, panel_bytes(t->type, k));
    for (size_t row = 0; row < PANEL_ROWS; row++) {
        struct part part;
        uint64_t at;
        bool real = panel * PANEL_ROWS + row < t->rows && source_row(r, expert, panel * PANEL_ROWS + row, &part, &at);
        if (t->type == TENSOR_MXFP4) { /* the padding is code 0 and scale 0 */
            const char *wrong = real ? lay_codes(out, row, part.tensor, at * k, k) : NULL;
            if (wrong)
                blame(fault, panel, wrong, part.tensor, at);
            continue;
        }
        if (real)
            source_read(x, part.tensor, at * k, k);
        else
            memset(x, 0, k * sizeof *x);
        if (real && !all_finite(x, k))
            blame(fault, panel, "holds a NaN or an infinity", part.tensor, at);
        bool fits = lay_row(out, t->type, row, x, k, x + k);
        if (real && !fits)
            blame(fault, panel, "holds a number too large for the type of weights asked for", part.tensor, at);
    }
}

static void pack_panels(void *context, size_t from, size_t to, size_t thread)
{
    struct packer *p = context;
    size_t bytes = panel_bytes(p->recipe->record.type, p->recipe->record.columns);
    for (size_t i = from; i < to; i++)
        pack_panel(p->recipe, p->expert, p->first + i, p->batch + i * bytes, p->rows + thread * p->rows_numbers,
                   &p->faults[thread]);
}

/* The first fault by panel, whatever the number of threads, as an error. */
static enum stele_status look_at_faults(struct packer *p)
{
    const struct fault *first = &p->faults[0];
    for (size_t t = 1; t < p->threads; t++)
        if (p->faults[t].panel < first->panel)
            first = &p->faults[t];
    return pack_fault(first, p->emitter->err);
}

static enum stele_status append(struct packer *p, struct image_writer *writer, const void *bytes, uint64_t length)
{
    enum stele_status status = image_append(writer, bytes, length, p->emitter->err);
    p->written += length;
    if (status == STELE_OK)
        p->progress(p->context, p->written, p->emitter->weights_bytes);
    return status;
}

/* Zeros up to `offset` of the weights. */
static enum stele_status pad_to(struct packer *p, struct image_writer *writer, uint64_t offset)
{
    static const uint8_t zeros[IMAGE_PAGE];
    return append(p, writer, zeros, offset - p->written);
}

static enum stele_status pack_vector(struct packer *p, struct image_writer *writer)
{
    const struct recipe *r = p->recipe;
    size_t n = r->record.columns, panels = round_up(n / r->sets, PANEL_ROWS) / PANEL_ROWS;
    float *x = calloc(r->sets * panels * PANEL_ROWS, sizeof *x);
    if (!x)
        return stele_fail(p->emitter->err, STELE_SYSTEM, "no memory for %zu numbers", n);
    for (size_t i = 0; i < r->sets * panels; i++)
        lay_numbers(r, i / panels, i % panels, x + i * PANEL_ROWS, &p->faults[0]);
    enum stele_status status = look_at_faults(p);
    if (status == STELE_OK)
        status = append(p, writer, x, round_up(n * 4, 64));
    free(x);
    return status;
}

static enum stele_status pack_matrix(struct packer *p, struct image_writer *writer)
{
    const struct image_tensor *t = &p->recipe->record;
    uint64_t panels = panel_count(t->rows), bytes = panel_bytes(t->type, t->columns);
    uint64_t batch = p->batch_bytes / bytes;
    p->rows_numbers = pack_row_numbers(t->columns);
    for (p->first = 0; p->first < panels; p->first += batch) {
        p->count = panels - p->first < batch ? panels - p->first : batch;
        pool_run(p->pool, p->count, pack_panels, p);
        enum stele_status status = look_at_faults(p);
        if (status == STELE_OK)
            status = append(p, writer, p->batch, p->count * bytes);
        if (status != STELE_OK)
            return status;
    }
    return STELE_OK;
}

/* Two banks: expert by expert, one matrix of each. */
static enum stele_status pack_bank(struct packer *p, struct image_writer *writer, const struct recipe *pair)
{
    enum stele_status status = STELE_OK;
    for (p->expert = 0; status == STELE_OK && p->expert < pair->record.count; p->expert++)
        for (size_t i = 0; status == STELE_OK && i < 2; i++) {
            p->recipe = &pair[i];
            status = pad_to(p, writer, pair[i].record.offset + p->expert * pair[i].record.stride);
            if (status == STELE_OK)
                status = pack_matrix(p, writer);
        }
    p->expert = 0;
    return status == STELE_OK ? pad_to(p, writer, round_up(p->written, IMAGE_PAGE)) : status;
}

/* Memory for the widest tensor: a batch of at least one panel a thread, one row a thread. */
static bool packer_open(struct packer *p, const struct emitter *e, size_t threads)
{
    uint64_t widest = 1, panel = 1;
    for (uint32_t i = 0; i < e->recipe_count; i++) {
        const struct image_tensor *t = &e->recipes[i].record;
        if (t->layout != LAYOUT_PANELS)
            continue;
        uint64_t bytes = panel_bytes(t->type, t->columns);
        widest = t->columns > widest ? t->columns : widest;
        panel = bytes > panel ? bytes : panel;
    }
    p->threads = threads;
    p->batch_bytes = panel * threads > BATCH_BYTES ? panel * threads : BATCH_BYTES;
    p->pool = pool_open(threads);
    p->batch = malloc(p->batch_bytes);
    p->rows = malloc(threads * pack_row_numbers(widest) * sizeof *p->rows);
    p->faults = malloc(threads * sizeof *p->faults);
    for (size_t t = 0; p->faults && t < threads; t++)
        p->faults[t].panel = UINT64_MAX;
    return p->pool && p->batch && p->rows && p->faults;
}

static void packer_close(struct packer *p)
{
    pool_close(p->pool);
    free(p->batch);
    free(p->rows);
    free(p->faults);
}

enum stele_status pack_weights(struct emitter *e, struct image_writer *writer, size_t threads, pack_progress *progress,
                               void *context)
{
    struct packer p = {.emitter = e, .progress = progress, .context = context};
    enum stele_status status = STELE_OK;
    if (!packer_open(&p, e, threads))
        status = stele_fail(e->err, STELE_SYSTEM, "no memory to pack the weights");
    for (uint32_t i = 0; status == STELE_OK && i < e->recipe_count; i++) {
        p.recipe = &e->recipes[i];
        if (p.recipe->paired)
            status = pack_bank(&p, writer, &e->recipes[i++]);
        else
            status = p.recipe->record.layout == LAYOUT_VECTOR ? pack_vector(&p, writer) : pack_matrix(&p, writer);
    }
    packer_close(&p);
    return status;
}
