/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU as a back end: ops cut into parts for the threads of a pool, kernels from one table.
 *
 * One reservation holds all scratch, touched as it is used:
 *
 *     slots [scratch_numbers] | q [rows][k32] | scale [rows][k32 / 32], sum [rows][2][k32 / 32] | rows of an expert
 *     | per thread: tile, two attention sums | attention sums of blocks
 *
 * A matrix is cut by panels, so a thread reads the same part of the image in every step. Which thread computes what, and
 * in which tiles, changes no bit: kernels never split a chain. */
#include "ops.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "numbers.h"
#include "pool.h"

enum {
    TILE_NUMBERS = 8192, /* results of a thread before the epilogue: 32 KiB, within L1 or L2 */
    TILE_ROWS = 128,
    SPLIT_BLOCKS = 64, /* blocks of attention that threads work on before their results are joined */
    SPLIT_FROM = 1024, /* positions that are worth a second meeting of the threads */
    ALONE_NUMBERS = 16384, /* keys that one thread attends to sooner than others would have come to help */
};

struct thread_scratch {
    float *tile; /* [TILE_NUMBERS] */
    struct attend_sum sum, block;
};

struct blas_device {
    const struct blas_kernels *kernels;
    struct pool *pool;
    struct blas_setup setup;
    const struct blas_step *step;
    uint8_t *scratch; /* the reservation */
    size_t scratch_bytes;
    uint8_t *kv;
    float *slots;
    int8_t *q;
    float *scale;
    int32_t *sum;
    struct thread_scratch *threads; /* [setup.threads] */
    struct attend_sum joined, split[SPLIT_BLOCKS];
    uint32_t *expert_rows;          /* [rows_max]: rows of the expert at work */
    float *expert_weights;
};

static float *row_of(const struct blas_device *d, struct blas_view view, size_t row)
{
    return d->slots + view.offset + (d->step->first + row) * view.stride;
}

/* ---- memory ---- */

/* Reserves address space that becomes memory page by page. Small pages: with huge ones the first token of a long context
 * would cost two megabytes for each layer and part. */
static void *reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_NOHUGEPAGE);
    return p;
}

/* Takes `bytes` at the next multiple of 64 from the scratch; with NULL scratch only counts. */
static void *carve(const struct blas_device *d, size_t *at, size_t bytes)
{
    size_t from = round_up(*at, 64);
    *at = from + bytes;
    return d->scratch ? d->scratch + from : NULL;
}

static void carve_sum(const struct blas_device *d, size_t *at, struct attend_sum *sum)
{
    size_t heads = d->setup.heads_max;
    sum->max = carve(d, at, heads * sizeof(float));
    sum->sum = carve(d, at, heads * sizeof(float));
    sum->value = carve(d, at, heads * kv_value_stride(d->setup.head_dim_max) * sizeof(float));
}

/* Lays the scratch out and returns its size. */
static size_t lay_out(struct blas_device *d)
{
    size_t at = 0, rows = d->setup.rows_max, k32 = round_up(d->setup.k_max, GROUP);
    d->slots = carve(d, &at, d->setup.scratch_numbers * sizeof(float));
    d->q = carve(d, &at, rows * k32);
    d->scale = carve(d, &at, rows * (k32 / GROUP) * sizeof(float));
    d->sum = carve(d, &at, rows * 2 * (k32 / GROUP) * sizeof(int32_t));
    d->expert_rows = carve(d, &at, rows * sizeof *d->expert_rows);
    d->expert_weights = carve(d, &at, rows * sizeof *d->expert_weights);
    for (size_t t = 0; t < d->setup.threads; t++) {
        d->threads[t].tile = carve(d, &at, TILE_NUMBERS * sizeof(float));
        carve_sum(d, &at, &d->threads[t].sum);
        carve_sum(d, &at, &d->threads[t].block);
    }
    carve_sum(d, &at, &d->joined);
    for (size_t b = 0; b < SPLIT_BLOCKS; b++)
        carve_sum(d, &at, &d->split[b]);
    return at;
}

static void cpu_close(struct blas_device *d)
{
    if (!d)
        return;
    pool_close(d->pool);
    if (d->scratch)
        munmap(d->scratch, d->scratch_bytes);
    if (d->kv)
        munmap(d->kv, d->setup.kv_bytes);
    free(d->threads);
    free(d);
}

static enum stele_status cpu_open(struct blas_device **out, const struct blas_setup *setup, struct stele_error *err)
{
    *out = NULL;
    struct blas_device *d = calloc(1, sizeof *d);
    if (!d || !(d->threads = calloc(setup->threads, sizeof *d->threads)) || !(d->pool = pool_open(setup->threads))) {
        cpu_close(d);
        return stele_fail(err, STELE_SYSTEM, "no memory for %zu threads", setup->threads);
    }
    d->setup = *setup;
    d->kernels = setup->kernels;
    d->scratch_bytes = lay_out(d);
    d->scratch = reserve(d->scratch_bytes);
    d->kv = d->scratch && setup->kv_bytes ? reserve(setup->kv_bytes) : NULL;
    if (!d->scratch || (setup->kv_bytes && !d->kv)) {
        enum stele_status status = stele_fail(err, STELE_SYSTEM, "cannot reserve %zu bytes of %s: %s",
                                              d->scratch ? setup->kv_bytes : d->scratch_bytes,
                                              d->scratch ? "keys and values" : "scratch", strerror(errno));
        cpu_close(d);
        return status;
    }
    lay_out(d);
    *out = d;
    return STELE_OK;
}

static struct blas_memory cpu_memory(const struct blas_device *d)
{
    return (struct blas_memory){.kv_bytes = d->setup.kv_bytes, .scratch_bytes = d->scratch_bytes};
}

static size_t cpu_threads(const struct blas_device *d)
{
    return pool_threads(d->pool);
}

static void cpu_begin(struct blas_device *d, const struct blas_step *step)
{
    d->step = step;
}

static enum stele_status cpu_finish(struct blas_device *d, struct blas_fault *fault, struct stele_error *err)
{
    (void)d, (void)err; /* all is done, and said, when a call returns */
    fault->op = SIZE_MAX;
    return STELE_OK;
}

static void cpu_peek(struct blas_device *d, struct blas_view view, size_t row, size_t n, float *out)
{
    memcpy(out, row_of(d, view, row), n * sizeof *out);
}

/* ---- embed ---- */

static void embed_rows(struct blas_device *d, const struct op_embed *op, size_t from, size_t to)
{
    const struct blas_matrix *w = &op->table;
    for (size_t r = from; r < to; r++) {
        uint32_t id = d->step->rows[r].id;
        const uint8_t *panel = (const uint8_t *)w->panels + id / PANEL_ROWS * panel_bytes(w->type, w->k);
        float *y = row_of(d, op->out, r);
        for (size_t k = 0; k < w->k; k++)
            y[k] = panel_number(w->type, panel, w->k, id % PANEL_ROWS, k);
        if (op->scale != 1)
            for (size_t k = 0; k < w->k; k++)
                y[k] = y[k] * op->scale;
    }
}

/* ---- ops that go row by row ---- */

struct row_job {
    struct blas_device *device;
    const void *op;
    void (*rows)(struct blas_device *, const void *op, size_t from, size_t to);
};

static void row_work(void *context, size_t from, size_t to, size_t thread)
{
    struct row_job *job = context;
    (void)thread;
    job->rows(job->device, job->op, from, to);
}

static void run_rows(struct blas_device *d, const void *op,
                     void (*rows)(struct blas_device *, const void *op, size_t from, size_t to))
{
    struct row_job job = {d, op, rows};
    pool_run(d->pool, d->step->count, row_work, &job);
}

static void embed_job(struct blas_device *d, const void *op, size_t from, size_t to)
{
    embed_rows(d, op, from, to);
}

static void cpu_embed(struct blas_device *d, const struct op_embed *op)
{
    run_rows(d, op, embed_job);
}

static void norm_job(struct blas_device *d, const void *context, size_t from, size_t to)
{
    const struct op_norm *op = context;
    for (size_t r = from; r < to; r++) {
        float *y = row_of(d, op->out, r), *in = row_of(d, op->in, r);
        if (!op->has_residual) {
            d->kernels->rms_norm(y, in, op->weight, op->n, op->epsilon);
            continue;
        }
        const float *residual = row_of(d, op->residual, r);
        d->kernels->rms_norm(in, in, op->weight, op->n, op->epsilon);
        for (size_t i = 0; i < op->n; i++)
            y[i] = residual[i] + in[i];
    }
}

static void cpu_norm(struct blas_device *d, const struct op_norm *op)
{
    run_rows(d, op, norm_job);
}

/* ---- matrices ---- */

/* A product under way: the rows [first, first + count) of the step times all panels, `finish` taking each tile. */
struct product {
    struct blas_device *device;
    const struct blas_matrix *weight;
    struct blas_view in;
    size_t first, count;
    size_t unit; /* panels that must stay in one tile: 2 with a gate */
    const void *op;
    /* tile[rows][panels * 16] holds the products of rows [row, row + rows) with panels [panel, panel + panels). */
    void (*finish)(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels);
};

static void quantise_rows(void *context, size_t from, size_t to, size_t thread)
{
    const struct product *p = context;
    struct blas_device *d = p->device;
    size_t k = p->weight->k, k32 = round_up(k, GROUP);
    (void)thread;
    for (size_t r = from; r < to; r++)
        d->kernels->quantise(d->q + r * k32, d->scale + r * (k32 / GROUP), d->sum + r * 2 * (k32 / GROUP),
                             row_of(d, p->in, p->first + r), k);
}

/* The rows of the product from its row r on. */
static struct blas_rows product_rows(const struct product *p, size_t r)
{
    const struct blas_device *d = p->device;
    size_t k32 = round_up(p->weight->k, GROUP);
    return (struct blas_rows){
        .f = row_of(d, p->in, p->first + r),
        .f_stride = p->in.stride,
        .q = d->q + r * k32,
        .scale = d->scale + r * (k32 / GROUP),
        .sum = d->sum + r * 2 * (k32 / GROUP),
    };
}

/* Panels that are one item for the pool: kernels read four side by side, and those of a gate stay together. */
static size_t item_panels(const struct product *p)
{
    return p->unit > 4 ? p->unit : 4;
}

/* Items are runs of item_panels() panels; the last is as long as it is. */
static void multiply(void *context, size_t from_item, size_t to_item, size_t thread)
{
    const struct product *p = context;
    struct blas_device *d = p->device;
    const struct blas_matrix *w = p->weight;
    float *tile = d->threads[thread].tile;
    size_t bytes = panel_bytes(w->type, w->k), all = panel_count(w->rows);
    size_t from = from_item * item_panels(p), to = to_item * item_panels(p) < all ? to_item * item_panels(p) : all;
    size_t rows = p->count < TILE_ROWS ? p->count : TILE_ROWS;
    while (rows * p->unit * PANEL_ROWS > TILE_NUMBERS) /* a router's unit is all its panels */
        rows = (rows + 1) / 2;
    size_t panels = TILE_NUMBERS / (PANEL_ROWS * rows) / p->unit * p->unit;
    for (size_t panel = from; panel < to; panel += panels) {
        size_t n = to - panel < panels ? to - panel : panels;
        for (size_t row = 0; row < p->count; row += rows) {
            size_t m = p->count - row < rows ? p->count - row : rows;
            struct blas_rows x = product_rows(p, row);
            d->kernels->dot[w->type](tile, n * PANEL_ROWS, (const uint8_t *)w->panels + panel * bytes, n, w->k, &x, m);
            p->finish(p, tile, row, m, panel, n);
        }
    }
}

static void run_product(struct product *p)
{
    size_t panels = panel_count(p->weight->rows), each = item_panels(p);
    if (type_quantised(p->weight->type))
        pool_run(p->device->pool, p->count, quantise_rows, p);
    pool_run(p->device->pool, (panels + each - 1) / each, multiply, p);
}

static void add_bias(float *tile, const float *bias, size_t rows, size_t n)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++)
            tile[r * n + i] = tile[r * n + i] + bias[i];
}

/* Gate and up stand in turn, 16 numbers each; the products move to the front of the row. */
static void apply_gate(const struct blas_kernels *kernels, int gate, float limit, float *tile, size_t n)
{
    for (size_t i = 0; i < n; i += 2 * PANEL_ROWS)
        kernels->gate[gate](tile + i / 2, tile + i, tile + i + PANEL_ROWS, PANEL_ROWS, limit);
}

static void finish_linear(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels)
{
    const struct op_linear *op = p->op;
    struct blas_device *d = p->device;
    size_t n = panels * PANEL_ROWS, column = panel * PANEL_ROWS / p->unit, width = n / p->unit;
    if (op->bias)
        add_bias(tile, op->bias + panel * PANEL_ROWS, rows, n);
    for (size_t r = 0; r < rows; r++) {
        float *t = tile + r * n, *y = row_of(d, op->out, row + r) + column;
        if (op->gate >= 0)
            apply_gate(d->kernels, op->gate, INFINITY, t, n);
        if (op->scale != 1)
            for (size_t i = 0; i < width; i++)
                t[i] = t[i] * op->scale;
        if (op->has_residual) {
            const float *residual = row_of(d, op->residual, row + r) + column;
            for (size_t i = 0; i < width; i++)
                y[i] = residual[i] + t[i];
        } else
            memcpy(y, t, width * sizeof *y);
    }
}

static void cpu_linear(struct blas_device *d, const struct op_linear *op)
{
    struct product p = {
        .device = d,
        .weight = &op->weight,
        .in = op->in,
        .count = d->step->count,
        .unit = op->gate >= 0 ? 2 : 1,
        .op = op,
        .finish = finish_linear,
    };
    run_product(&p);
}

struct logits_target {
    const struct op_logits *op;
    float *out; /* [count][head.rows] */
};

static void finish_logits(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels)
{
    const struct logits_target *target = p->op;
    size_t column = panel * PANEL_ROWS, vocabulary = p->weight->rows;
    size_t width = vocabulary - column < panels * PANEL_ROWS ? vocabulary - column : panels * PANEL_ROWS;
    for (size_t r = 0; r < rows; r++) {
        float *y = target->out + (row + r) * vocabulary + column;
        memcpy(y, tile + r * panels * PANEL_ROWS, width * sizeof *y);
        if (target->op->scale != 1)
            for (size_t i = 0; i < width; i++)
                y[i] = y[i] * target->op->scale;
        if (target->op->cap > 0)
            p->device->kernels->soft_cap(y, width, target->op->cap);
    }
}

static void cpu_logits(struct blas_device *d, const struct op_logits *op, size_t from, size_t count, float *out)
{
    struct logits_target target = {op, out};
    struct product p = {
        .device = d,
        .weight = &op->head,
        .in = op->in,
        .first = from,
        .count = count,
        .unit = 1,
        .op = &target,
        .finish = finish_logits,
    };
    run_product(&p);
}

/* ---- experts ---- */

enum { EXPERTS_MAX = 1024 };

/* The `top` largest of n logits, ties to the lower id, as ids ascending. */
static void choose_experts(const float *logits, size_t n, size_t top, uint16_t *chosen)
{
    for (size_t i = 0; i < top; i++) {
        size_t best = SIZE_MAX;
        for (size_t j = 0; j < n; j++) {
            bool taken = false;
            for (size_t k = 0; k < i; k++)
                taken = taken || chosen[k] == j;
            if (!taken && (best == SIZE_MAX || logits[j] > logits[best]))
                best = j;
        }
        chosen[i] = (uint16_t)best;
    }
    for (size_t i = 1; i < top; i++) /* few: sorted by insertion */
        for (size_t j = i; j && chosen[j - 1] > chosen[j]; j--) {
            uint16_t swap = chosen[j];
            chosen[j] = chosen[j - 1];
            chosen[j - 1] = swap;
        }
}

/* NUMBERS.md, "Experts": weights of the chosen. */
static void weigh_experts(const struct blas_kernels *kernels, const struct op_router *op, const float *logits,
                          const uint16_t *chosen, float *weights)
{
    float largest, all, sum = 0;
    kernels->log_sum(&largest, &all, logits, op->weight.rows);
    for (size_t i = 0; i < op->top; i++) {
        weights[i] = num_exp(logits[chosen[i]] - largest);
        if (op->routing != BLAS_ROUTING_CHOSEN || isnan(all)) /* a NaN that was not chosen is not passed over */
            weights[i] = weights[i] / all;
        sum = sum + weights[i];
    }
    if (op->routing != BLAS_ROUTING_ALL)
        for (size_t i = 0; i < op->top; i++)
            weights[i] = weights[i] / sum;
}

static void finish_router(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels)
{
    const struct op_router *op = p->op;
    size_t n = panels * PANEL_ROWS;
    (void)panel; /* the unit holds all panels */
    if (op->bias)
        add_bias(tile, op->bias, rows, n);
    for (size_t r = 0; r < rows; r++) {
        uint16_t chosen[EXPERTS_MAX];
        float *out = row_of(p->device, op->out, row + r);
        choose_experts(tile + r * n, op->weight.rows, op->top, chosen);
        for (size_t i = 0; i < op->top; i++)
            out[i] = (float)chosen[i];
        weigh_experts(p->device->kernels, op, tile + r * n, chosen, out + op->top);
    }
}

static void cpu_router(struct blas_device *d, const struct op_router *op)
{
    struct product p = {
        .device = d,
        .weight = &op->weight,
        .in = op->in,
        .count = d->step->count,
        .unit = panel_count(op->weight.rows),
        .op = op,
        .finish = finish_router,
    };
    run_product(&p);
}

/* The rows of a step that one expert works on. */
struct expert_job {
    const struct op_experts *op;
    size_t expert, count;
    uint32_t *rows;  /* [count] */
    float *weights;  /* [count] */
};

/* Rows whose route names the expert. */
static void collect_rows(struct blas_device *d, struct expert_job *job, size_t expert)
{
    job->expert = expert;
    job->count = 0;
    for (size_t r = 0; r < d->step->count; r++) {
        const float *route = row_of(d, job->op->route, r);
        for (size_t i = 0; i < job->op->top; i++)
            if (route[i] == (float)expert) {
                job->rows[job->count] = (uint32_t)r;
                job->weights[job->count++] = route[job->op->top + i];
                break; /* a row goes to an expert once, whatever a hostile route says */
            }
    }
}

static void finish_up(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels)
{
    const struct expert_job *job = p->op;
    size_t n = panels * PANEL_ROWS, column = panel * PANEL_ROWS / p->unit, width = n / p->unit;
    if (job->op->up_bias)
        add_bias(tile, job->op->up_bias + job->expert * round_up(p->weight->rows, PANEL_ROWS) + panel * PANEL_ROWS, rows,
                 n);
    for (size_t r = 0; r < rows; r++) {
        if (job->op->gate >= 0)
            apply_gate(p->device->kernels, job->op->gate, job->op->limit, tile + r * n, n);
        memcpy(row_of(p->device, job->op->gated, row + r) + column, tile + r * n, width * sizeof *tile);
    }
}

static void finish_down(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels)
{
    const struct expert_job *job = p->op;
    size_t n = panels * PANEL_ROWS;
    if (job->op->down_bias)
        add_bias(tile, job->op->down_bias + job->expert * round_up(p->weight->rows, PANEL_ROWS) + panel * PANEL_ROWS,
                 rows, n);
    for (size_t r = 0; r < rows; r++) {
        float *sum = row_of(p->device, job->op->sum, job->rows[row + r]) + panel * PANEL_ROWS;
        for (size_t i = 0; i < n; i++)
            sum[i] = fmaf(job->weights[row + r], tile[r * n + i], sum[i]);
    }
}

static void run_expert(struct blas_device *d, struct expert_job *job)
{
    const struct op_experts *op = job->op;
    struct blas_matrix up = op->up.first, down = op->down.first;
    up.panels = (const uint8_t *)up.panels + job->expert * op->up.stride;
    down.panels = (const uint8_t *)down.panels + job->expert * op->down.stride;
    for (size_t i = 0; i < job->count; i++)
        memcpy(row_of(d, op->gathered, i), row_of(d, op->in, job->rows[i]), up.k * sizeof(float));
    struct product p = {.device = d,
                        .weight = &up,
                        .in = op->gathered,
                        .count = job->count,
                        .unit = op->gate >= 0 ? 2 : 1,
                        .op = job,
                        .finish = finish_up};
    run_product(&p);
    p = (struct product){
        .device = d, .weight = &down, .in = op->gated, .count = job->count, .unit = 1, .op = job, .finish = finish_down};
    run_product(&p);
}

static void cpu_experts(struct blas_device *d, const struct op_experts *op)
{
    struct expert_job job = {.op = op, .rows = d->expert_rows, .weights = d->expert_weights};
    size_t n = round_up(op->down.first.rows, PANEL_ROWS);
    for (size_t r = 0; r < d->step->count; r++)
        memset(row_of(d, op->sum, r), 0, n * sizeof(float));
    for (size_t expert = 0; expert < op->up.count; expert++) {
        collect_rows(d, &job, expert);
        if (!job.count)
            continue;
        op->used[expert] = 1;
        run_expert(d, &job);
    }
    for (size_t r = 0; r < d->step->count; r++) {
        float *sum = row_of(d, op->sum, r), *out = row_of(d, op->out, r);
        const float *residual = op->has_residual ? row_of(d, op->residual, r) : NULL;
        for (size_t i = 0; i < n; i++) {
            float y = op->scale != 1 ? sum[i] * op->scale : sum[i];
            out[i] = residual ? residual[i] + y : y;
        }
    }
}

static void finish_gate(const struct product *p, float *tile, size_t row, size_t rows, size_t panel, size_t panels)
{
    const struct op_gate *op = p->op;
    struct blas_device *d = p->device;
    (void)panel, (void)panels; /* one panel, whose first row is the weight */
    for (size_t r = 0; r < rows; r++) {
        const float *branch = row_of(d, op->branch, row + r), *residual = row_of(d, op->residual, row + r);
        float *out = row_of(d, op->out, row + r), gate = 1.0f / (1.0f + num_exp(-tile[r * PANEL_ROWS]));
        for (size_t i = 0; i < op->n; i++)
            out[i] = residual[i] + gate * branch[i];
    }
}

static void cpu_gate(struct blas_device *d, const struct op_gate *op)
{
    struct product p = {.device = d,
                        .weight = &op->weight,
                        .in = op->in,
                        .count = d->step->count,
                        .unit = 1,
                        .op = op,
                        .finish = finish_gate};
    run_product(&p);
}

/* ---- keys, values, attention ---- */

/* The part of KV head `head` in block `index` of the row's sequence. */
static uint8_t *kv_head(const struct blas_device *d, const struct blas_kv *kv, const struct blas_row *row, size_t index,
                        size_t head)
{
    size_t block = kv->ring ? row->sequence * kv->ring + index % kv->ring : row->blocks[index];
    size_t number_bytes = d->setup.kv_type == KV_F16 ? 2 : 4;
    return d->kv + kv->offset + block * kv->block_bytes + head * kv_head_numbers(kv->head_dim) * number_bytes;
}

struct rope_job {
    struct blas_device *device;
    const struct op_rope_kv *op;
    size_t *bad; /* [threads]: the first row whose keys or values the KV type does not hold */
};

static void norm_rotate(struct blas_device *d, const struct op_rope_kv *op, float *x, size_t heads, const float *norm,
                        size_t row)
{
    size_t n = op->kv.head_dim;
    const struct blas_rope *rope = op->rope;
    for (size_t h = 0; h < heads; h++, x += n) {
        if (norm)
            d->kernels->rms_norm(x, x, norm, n, op->epsilon);
        if (rope)
            d->kernels->rotate(x, rope->rows + row * 2 * rope->pairs, rope->rows + (row * 2 + 1) * rope->pairs,
                               rope->pairs);
    }
}

static void rope_kv_rows(void *context, size_t from, size_t to, size_t thread)
{
    struct rope_job *job = context;
    struct blas_device *d = job->device;
    const struct op_rope_kv *op = job->op;
    size_t n = op->kv.head_dim;
    for (size_t r = from; r < to; r++) {
        const struct blas_row *row = &d->step->rows[r];
        float *key = row_of(d, op->k, r), *value = row_of(d, op->v, r);
        norm_rotate(d, op, row_of(d, op->q, r), op->heads, op->q_norm, r);
        norm_rotate(d, op, key, op->kv.heads, op->k_norm, r);
        for (size_t h = 0; h < op->kv.heads; h++)
            if (!d->kernels->kv_store[d->setup.kv_type](kv_head(d, &op->kv, row, row->position / KV_BLOCK, h),
                                                        row->position % KV_BLOCK, key + h * n, value + h * n, n) &&
                r < job->bad[thread])
                job->bad[thread] = r;
    }
}

static bool cpu_rope_kv(struct blas_device *d, const struct op_rope_kv *op, size_t *row)
{
    size_t bad[1024];
    size_t threads = d->setup.threads;
    for (size_t t = 0; t < threads; t++)
        bad[t] = SIZE_MAX;
    struct rope_job job = {d, op, bad};
    pool_run(d->pool, d->step->count, rope_kv_rows, &job);
    *row = SIZE_MAX;
    for (size_t t = 0; t < threads; t++)
        *row = bad[t] < *row ? bad[t] : *row;
    return *row == SIZE_MAX;
}

static void cpu_copy_kv(struct blas_device *d, const struct blas_kv *kv, size_t to, size_t from)
{
    uint8_t *blocks = d->kv + kv->offset;
    memcpy(blocks + to * kv->block_bytes, blocks + from * kv->block_bytes, kv->block_bytes);
}

struct attention_job {
    struct blas_device *device;
    const struct op_attention *op;
};

/* The blocks [first, last) that a row sees. */
static void seen_blocks(const struct op_attention *op, const struct blas_row *row, size_t *first, size_t *last)
{
    size_t seen = (size_t)row->position + 1;
    *first = op->kv.window && seen > op->kv.window ? (seen - op->kv.window) / KV_BLOCK : 0;
    *last = (seen + KV_BLOCK - 1) / KV_BLOCK;
}

/* What row r sees of block b, for its query heads that share KV head `head`. */
static struct attend_block seen_block(const struct blas_device *d, const struct op_attention *op, size_t r, size_t head,
                                      size_t b)
{
    const struct blas_row *row = &d->step->rows[r];
    size_t n = op->kv.head_dim, group = op->heads / op->kv.heads, seen = (size_t)row->position + 1;
    size_t first = op->kv.window && seen > op->kv.window ? seen - op->kv.window : 0;
    return (struct attend_block){
        .q = row_of(d, op->q, r) + head * group * n,
        .q_stride = n,
        .heads = group,
        .head_dim = n,
        .kv = kv_head(d, &op->kv, row, b, head),
        .first = first > b * KV_BLOCK ? first - b * KV_BLOCK : 0,
        .last = seen - b * KV_BLOCK < KV_BLOCK ? seen - b * KV_BLOCK : KV_BLOCK,
        .scale = op->scale,
        .cap = op->cap,
    };
}

/* The sum of all blocks becomes the row's result; `spare` is overwritten. */
static void attend_finish(struct blas_device *d, const struct op_attention *op, const struct attend_sum *sum,
                          const struct attend_sum *spare, size_t r, size_t head)
{
    size_t n = op->kv.head_dim, group = op->heads / op->kv.heads;
    if (op->sinks) { /* joined as a block whose values are 0 */
        memcpy(spare->max, op->sinks + head * group, group * sizeof(float));
        for (size_t h = 0; h < group; h++)
            spare->sum[h] = 1;
        memset(spare->value, 0, group * kv_value_stride(n) * sizeof(float));
        d->kernels->attend_join(sum, spare, group, n);
    }
    for (size_t h = 0; h < group; h++) {
        float *out = row_of(d, op->out, r) + (head * group + h) * n, inverse = 1.0f / sum->sum[h];
        for (size_t i = 0; i < n; i++)
            out[i] = sum->value[h * kv_value_stride(n) + i] * inverse;
    }
}

/* The sums of the query heads that share KV head `head`. */
static struct attend_sum sum_of(const struct attend_sum *all, const struct op_attention *op, size_t head)
{
    size_t h = head * (op->heads / op->kv.heads);
    return (struct attend_sum){all->max + h, all->sum + h, all->value + h * kv_value_stride(op->kv.head_dim)};
}

/* One row's query heads that share KV heads [from, to), over all blocks that the row sees: block by block, for in that
 * order they lie in memory, and a CPU that is sent elsewhere every few pages fetches little ahead. */
static void attend_row(struct blas_device *d, const struct op_attention *op, struct thread_scratch *s, size_t r,
                       size_t from, size_t to)
{
    size_t first, last, group = op->heads / op->kv.heads;
    seen_blocks(op, &d->step->rows[r], &first, &last);
    for (size_t b = first; b < last; b++)
        for (size_t head = from; head < to; head++) {
            struct attend_sum sum = sum_of(&s->sum, op, head);
            struct attend_block block = seen_block(d, op, r, head, b);
            d->kernels->attend[d->setup.kv_type](b > first ? &s->block : &sum, &block);
            if (b > first)
                d->kernels->attend_join(&sum, &s->block, group, op->kv.head_dim);
        }
    for (size_t head = from; head < to; head++) {
        struct attend_sum sum = sum_of(&s->sum, op, head);
        attend_finish(d, op, &sum, &s->block, r, head);
    }
}

/* Items are KV heads of rows, row by row. */
static void attend_items(void *context, size_t from, size_t to, size_t thread)
{
    struct attention_job *job = context;
    size_t heads = job->op->kv.heads;
    for (size_t i = from, n; i < to; i += n) {
        n = heads - i % heads < to - i ? heads - i % heads : to - i;
        attend_row(job->device, job->op, &job->device->threads[thread], i / heads, i % heads, i % heads + n);
    }
}

/* ---- attention of one row cut by blocks: where they are many, or KV heads do not share out evenly ---- */

/* Blocks [from, to) of those that row 0 sees, each into a sum of its own but for the very first, which begins d->joined. */
struct split_job {
    struct blas_device *device;
    const struct op_attention *op;
    size_t first, from, to;
};

static void split_blocks(void *context, size_t from, size_t to, size_t thread)
{
    const struct split_job *job = context;
    struct blas_device *d = job->device;
    (void)thread;
    for (size_t i = from; i < to; i++) {
        size_t b = job->from + i / job->op->kv.heads, head = i % job->op->kv.heads;
        struct attend_sum sum = sum_of(b == job->first ? &d->joined : &d->split[b - job->from], job->op, head);
        struct attend_block block = seen_block(d, job->op, 0, head, b);
        d->kernels->attend[d->setup.kv_type](&sum, &block);
    }
}

/* Joins them upwards; each item is a KV head. */
static void split_join(void *context, size_t from, size_t to, size_t thread)
{
    const struct split_job *job = context;
    struct blas_device *d = job->device;
    (void)thread;
    for (size_t head = from; head < to; head++) {
        struct attend_sum joined = sum_of(&d->joined, job->op, head);
        for (size_t b = job->from > job->first ? job->from : job->first + 1; b < job->to; b++) {
            struct attend_sum sum = sum_of(&d->split[b - job->from], job->op, head);
            d->kernels->attend_join(&joined, &sum, job->op->heads / job->op->kv.heads, job->op->kv.head_dim);
        }
    }
}

static void attend_split(struct blas_device *d, const struct op_attention *op)
{
    struct split_job job = {.device = d, .op = op};
    size_t last;
    seen_blocks(op, &d->step->rows[0], &job.first, &last);
    for (job.from = job.first; job.from < last; job.from = job.to) {
        job.to = last - job.from < SPLIT_BLOCKS ? last : job.from + SPLIT_BLOCKS;
        pool_run(d->pool, (job.to - job.from) * op->kv.heads, split_blocks, &job);
        pool_run(d->pool, op->kv.heads, split_join, &job);
    }
    for (size_t head = 0; head < op->kv.heads; head++) {
        struct attend_sum joined = sum_of(&d->joined, op, head);
        attend_finish(d, op, &joined, &d->threads[0].block, 0, head);
    }
}

static void cpu_attention(struct blas_device *d, const struct op_attention *op)
{
    struct attention_job job = {d, op};
    size_t items = d->step->count * op->kv.heads, seen = 0, threads = pool_threads(d->pool);
    for (size_t r = 0; r < d->step->count; r++)
        seen += d->step->rows[r].position + (size_t)1;
    if (seen * op->kv.heads * op->kv.head_dim < ALONE_NUMBERS)
        attend_items(&job, 0, items, 0);
    else if (d->step->count == 1 && threads > 1 &&
             (seen >= SPLIT_FROM || (items % threads && items < 4 * threads)))
        attend_split(d, op);
    else
        pool_run(d->pool, items, attend_items, &job);
}

const struct blas_backend blas_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .begin = cpu_begin,
    .narrow = cpu_begin,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .rope_kv = cpu_rope_kv,
    .finish = cpu_finish,
    .copy_kv = cpu_copy_kv,
    .attention = cpu_attention,
    .router = cpu_router,
    .experts = cpu_experts,
    .gate = cpu_gate,
    .logits = cpu_logits,
    .peek = cpu_peek,
    .memory = cpu_memory,
    .threads = cpu_threads,
};
