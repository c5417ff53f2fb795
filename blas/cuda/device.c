/* SPDX-License-Identifier: Apache-2.0 */
/* A GPU as a back end. Ops become launches on one stream; a step of few rows is written down and becomes a graph.
 *
 *     begin    rows, tables of KV blocks and RoPE rows go to the device in one copy
 *     ops      embed is computed by the host; each other op is one to a few launches
 *     finish   waits; says the first fault or error
 *
 * The device's memory, all of it had at opening:
 *
 *     kv | slots | integers and scales of activations | step | logits of a router | experts: pairs, tiles, gated, down
 *        | KV blocks' results (attention in parts) | what logits and embeddings pass through | fault, used experts
 *        | weights */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "cuda_library.h"
#include "numbers.h"

#ifndef CUDA_SPARE_BYTES
#define CUDA_SPARE_BYTES (256ull << 20) /* left for what the driver needs: graphs, stacks */
#endif

enum {
    GRAPH_ROWS = 64,           /* steps of up to so many rows become graphs */
    BOUNCE_BYTES = 4 << 20,    /* pinned, at least: what logits and embeddings pass through */
    KEPT_BYTES = 64 << 20,     /* of KV blocks' results, at most */
    BLOCKS_PER_PROCESSOR = 4,  /* that attention is cut for */
    EXPERTS_OPS_MAX = 1024,
};

/* Memory that both sides have: the host's is pinned. */
struct twin {
    void *host;
    cu_pointer device;
    uint64_t bytes;
};

struct blas_device {
    struct gpu gpu;
    struct blas_setup setup;
    struct weights *weights;
    struct launcher *launcher;
    enum reach reach;
    char name[64];
    const struct blas_step *step;
    bool begun;      /* and not waited for */
    size_t rope_ops; /* of the step so far */
    cu_pointer kv, slots, q, q_scale, small_logits, pairs, tiles, gated, down, kept;
    uint64_t kept_blocks; /* KV blocks' results of one head that fit into `kept` */
    uint64_t scratch_bytes;
    struct twin input;  /* rows [rows_max], ropes [rows_max][rope_numbers], tables */
    struct twin bounce;
    bool bounce_busy; /* a copy out of it may be on its way */
    struct twin verdict; /* fault; used [experts_max of each op]: set where the host has set it, too */
    size_t experts_ops;
    uint8_t *used[EXPERTS_OPS_MAX]; /* the host's, of each experts op of the step */
    size_t used_count[EXPERTS_OPS_MAX];
    uint32_t processors;
};

/* ---- errors and memory ---- */

bool gpu_ok(struct gpu *gpu, cu_result result, const char *what)
{
    if (gpu->status == STELE_OK && result)
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "the GPU failed at %s: %s", what,
                                 driver_says(gpu->driver, result));
    return gpu->status == STELE_OK;
}

cu_pointer gpu_alloc(struct gpu *gpu, uint64_t bytes, const char *what)
{
    size_t free_bytes = 0, total = 0;
    cu_pointer pointer = 0;
    if (gpu->status != STELE_OK || !bytes)
        return 0;
    cu_result result = gpu->driver->memory_alloc(&pointer, bytes);
    if (result == CU_OUT_OF_MEMORY && !gpu->driver->memory_info(&free_bytes, &total))
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM,
                                 "out of memory on the GPU: %s need %" PRIu64 " bytes, %zu of %zu are free", what,
                                 bytes, free_bytes, total);
    else
        gpu_ok(gpu, result, "reserving memory");
    return gpu->status == STELE_OK ? pointer : 0;
}

void gpu_free(struct gpu *gpu, cu_pointer *pointer)
{
    if (*pointer)
        gpu->driver->memory_free(*pointer);
    *pointer = 0;
}

static struct twin twin_make(struct gpu *gpu, uint64_t bytes, const char *what)
{
    struct twin t = {.bytes = bytes, .device = gpu_alloc(gpu, bytes, what)};
    GPU(gpu, host_alloc, "reserving pinned memory", &t.host, bytes, 0);
    return t;
}

static void twin_free(struct gpu *gpu, struct twin *t)
{
    gpu_free(gpu, &t->device);
    if (t->host)
        gpu->driver->host_free(t->host);
    t->host = NULL;
}

static uint64_t kv_blocks(const struct blas_setup *s)
{
    return (s->positions + KV_BLOCK - 1) / KV_BLOCK;
}

/* Bytes of a step's input: rows, ropes, and the tables of the sequences that a step can have. */
static uint64_t input_bytes(const struct blas_setup *s)
{
    uint64_t sequences = s->sequences < s->rows_max ? s->sequences : s->rows_max;
    return round_up(s->rows_max * sizeof(struct step_row), 64) +
           round_up(s->rows_max * s->rope_numbers * sizeof(float), 64) + sequences * kv_blocks(s) * sizeof(uint32_t);
}

static cu_pointer scratch(struct blas_device *d, uint64_t bytes)
{
    d->scratch_bytes += bytes;
    return gpu_alloc(&d->gpu, bytes, "activations");
}

static void take_memory(struct blas_device *d)
{
    const struct blas_setup *s = &d->setup;
    const uint64_t pairs = s->rows_max * (s->top_max ? s->top_max : 1), k32 = round_up(s->k_max, GROUP);
    const uint64_t head_bytes = s->heads_max * (s->head_dim_max + 2) * sizeof(float),
                   vocabulary = s->vocabulary * sizeof(float);
    d->kv = gpu_alloc(&d->gpu, s->kv_bytes, "keys and values");
    d->slots = scratch(d, s->scratch_numbers * sizeof(float));
    d->q = scratch(d, pairs * k32);
    d->q_scale = scratch(d, pairs * (k32 / GROUP) * sizeof(float));
    d->small_logits = scratch(d, s->rows_max * round_up(s->experts_max + 1, PANEL_ROWS) * sizeof(float));
    if (s->experts_max) {
        d->pairs = scratch(d, (pairs + 1) * sizeof(uint32_t));
        d->tiles = scratch(d, (pairs + s->experts_max) * sizeof(struct tile));
        d->gated = scratch(d, pairs * s->expert_width * sizeof(float));
        d->down = scratch(d, pairs * s->expert_width * sizeof(float));
    }
    d->kept_blocks =
        head_bytes && KEPT_BYTES / head_bytes < 32 * kv_blocks(s) ? KEPT_BYTES / head_bytes : 32 * kv_blocks(s);
    d->kept = scratch(d, d->kept_blocks * head_bytes);
    d->input = twin_make(&d->gpu, input_bytes(s), "steps");
    d->bounce = twin_make(&d->gpu, vocabulary > BOUNCE_BYTES ? vocabulary : BOUNCE_BYTES, "logits");
    d->verdict = twin_make(&d->gpu, sizeof(uint64_t) + EXPERTS_OPS_MAX * s->experts_max, "verdicts");
    d->scratch_bytes += d->input.bytes + d->bounce.bytes + d->verdict.bytes;
}

/* ---- opening ---- */

static void close_context(struct blas_device *d)
{
    struct gpu *gpu = &d->gpu;
    if (!gpu->context)
        return;
    gpu->driver->context_set(gpu->context); /* the caller may be another thread than the one that opened it */
    if (gpu->compute)
        gpu->driver->stream_wait(gpu->compute);
    weights_close(gpu, d->weights);
    launcher_close(gpu, d->launcher);
    cu_pointer *all[] = {&d->kv, &d->slots, &d->q, &d->q_scale, &d->small_logits,
                         &d->pairs, &d->tiles, &d->gated, &d->down, &d->kept};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        gpu_free(gpu, all[i]);
    twin_free(gpu, &d->input);
    twin_free(gpu, &d->bounce);
    twin_free(gpu, &d->verdict);
    if (gpu->compute)
        gpu->driver->stream_destroy(gpu->compute);
    if (gpu->transfer)
        gpu->driver->stream_destroy(gpu->transfer);
    gpu->driver->context_destroy(gpu->context);
}

static void cuda_close(struct blas_device *d)
{
    if (!d)
        return;
    close_context(d);
    free(d);
}

/* A device that reaches its weights in one way. *refused: another way may do. */
static enum stele_status open_reach(struct blas_device **out, const struct driver *driver,
                                    const struct blas_setup *setup, int device, enum reach reach, bool *refused,
                                    struct stele_error *err)
{
    *out = NULL;
    *refused = false;
    struct blas_device *d = calloc(1, sizeof *d);
    if (!d)
        return stele_fail(err, STELE_SYSTEM, "no memory for a GPU");
    struct gpu *gpu = &d->gpu;
    size_t free_bytes = 0, total = 0;
    int processors = 1;
    d->setup = *setup;
    d->reach = reach;
    gpu->driver = driver;
    gpu->device = device;
    GPU(gpu, device_name, "asking its name", d->name, (int)sizeof d->name, device);
    GPU(gpu, device_attribute, "asking what it can do", &processors, CU_PROCESSORS, device);
    d->processors = (uint32_t)processors;
    GPU(gpu, context_create, "opening it", &gpu->context, 0, device);
    GPU(gpu, stream_create, "making a stream", &gpu->compute, CU_STREAM_NON_BLOCKING);
    GPU(gpu, stream_create, "making a stream", &gpu->transfer, CU_STREAM_NON_BLOCKING);
    if (gpu->status == STELE_OK)
        d->launcher = launcher_open(gpu);
    take_memory(d);
    GPU(gpu, memory_info, "asking for its memory", &free_bytes, &total);
    if (gpu->status == STELE_OK)
        d->weights =
            weights_open(gpu, &setup->weights, reach, free_bytes > CUDA_SPARE_BYTES ? free_bytes - CUDA_SPARE_BYTES : 0,
                         setup->limit, refused);
    if (gpu->status == STELE_OK) {
        *out = d;
        return STELE_OK;
    }
    enum stele_status status = stele_fail(err, gpu->status, "%s", gpu->error.text);
    cuda_close(d);
    return status;
}

/* The way that STELE_CUDA_MAP names; REACHES: none is named. */
static enum stele_status forced_reach(enum reach *out, struct stele_error *err)
{
    const char *name = getenv("STELE_CUDA_MAP");
    *out = REACHES;
    if (!name || !*name)
        return STELE_OK;
    for (enum reach r = 0; r < REACHES; r++)
        if (!strcmp(name, reach_names[r]))
            *out = r;
    return *out != REACHES
               ? STELE_OK
               : stele_fail(err, STELE_USAGE, "STELE_CUDA_MAP=%s: it is host, register, remap or ring", name);
}

static enum stele_status find_device(const struct driver **driver, int ordinal, int *device, struct stele_error *err)
{
    int count = 0;
    enum stele_status status = driver_open(driver, err);
    if (status != STELE_OK)
        return status;
    cu_result result = (*driver)->device_count(&count);
    if (!result && ordinal >= count)
        return stele_fail(err, STELE_USAGE, "no GPU cuda:%d: there are %d, from cuda:0 on", ordinal, count);
    if (!result)
        result = (*driver)->device_get(device, ordinal);
    return result ? stele_fail(err, STELE_SYSTEM, "no GPU: %s", driver_says(*driver, result)) : STELE_OK;
}

static enum stele_status cuda_open(struct blas_device **out, const struct blas_setup *setup, struct stele_error *err)
{
    *out = NULL;
    const struct driver *driver;
    enum reach forced;
    struct gpu probe = {0};
    enum stele_status status = find_device(&driver, setup->ordinal, &probe.device, err);
    if (status == STELE_OK)
        status = forced_reach(&forced, err);
    if (status != STELE_OK)
        return status;
    probe.driver = driver;
    for (enum reach reach = 0; reach < REACHES; reach++) {
        const char *why;
        bool refused = false;
        if (forced != REACHES && reach != forced)
            continue;
        if (!reach_possible(&probe, reach, &setup->weights, &why)) {
            status = stele_fail(err, STELE_USAGE, "STELE_CUDA_MAP=%s: %s", reach_names[reach], why);
            continue;
        }
        status = open_reach(out, driver, setup, probe.device, reach, &refused, err);
        if (!refused || status == STELE_OK)
            return status;
    }
    return status;
}

static struct blas_memory cuda_memory(const struct blas_device *d)
{
    return (struct blas_memory){d->setup.kv_bytes,          d->scratch_bytes, weights_kept(d->weights),
                                weights_upload(d->weights), d->name,          reach_names[d->reach]};
}

static size_t cuda_threads(const struct blas_device *d)
{
    return d->setup.threads;
}

/* ---- a step ---- */

static uint64_t rope_offset(const struct blas_device *d)
{
    return round_up(d->setup.rows_max * sizeof(struct step_row), 64);
}

static uint64_t table_offset(const struct blas_device *d)
{
    return rope_offset(d) + round_up(d->setup.rows_max * d->setup.rope_numbers * sizeof(float), 64);
}

/* The tables of the rows' sequences, one after the other; returns their end. Rows of a sequence follow each other. */
static uint64_t put_tables(struct blas_device *d, const struct blas_step *step)
{
    struct step_row *rows = d->input.host;
    uint32_t *tables = (uint32_t *)((uint8_t *)d->input.host + table_offset(d)), at = 0;
    const uint64_t room = (d->input.bytes - table_offset(d)) / sizeof *tables;
    for (size_t r = 0, next; r < step->count; r = next) {
        const struct blas_row *row = &step->rows[r];
        uint32_t last = row->position;
        for (next = r + 1; next < step->count && step->rows[next].blocks == row->blocks; next++)
            last = step->rows[next].position > last ? step->rows[next].position : last;
        const uint32_t blocks = last / KV_BLOCK + 1;
        if (blocks > room - at) { /* a sequence whose rows are scattered over a step */
            d->gpu.status = stele_fail(&d->gpu.error, STELE_USAGE, "a step of more slices than sequences on a GPU");
            return 0;
        }
        memcpy(tables + at, row->blocks, blocks * sizeof *tables);
        for (size_t i = r; i < next; i++)
            rows[i] = (struct step_row){step->rows[i].position, step->rows[i].sequence, at};
        at += blocks;
    }
    return table_offset(d) + at * sizeof *tables;
}

static void put_ropes(struct blas_device *d, const struct blas_step *step)
{
    float *to = (float *)(void *)((uint8_t *)d->input.host + rope_offset(d));
    for (size_t i = 0; i < step->rope_count; i++) {
        const size_t numbers = step->count * 2 * step->ropes[i].pairs;
        memcpy(to, step->ropes[i].rows, numbers * sizeof *to);
        to += d->setup.rows_max * 2 * step->ropes[i].pairs;
    }
}

/* Where the device has the step's rows. */
static const struct step_row *step_rows(const struct blas_device *d)
{
    return (const struct step_row *)gpu_address(d->input.device + d->step->first * sizeof(struct step_row));
}

/* Where the device has the rows of a rope. */
static const float *rope_at(const struct blas_device *d, const struct blas_rope *rope)
{
    uint64_t numbers = d->step->first * 2 * rope->pairs;
    for (const struct blas_rope *r = d->step->ropes; r < rope; r++)
        numbers += d->setup.rows_max * 2 * r->pairs;
    return (const float *)gpu_address(d->input.device + rope_offset(d) + numbers * sizeof(float));
}

static void wait(struct blas_device *d)
{
    launcher_flush(&d->gpu, d->launcher);
    GPU(&d->gpu, stream_wait, "computing", d->gpu.compute);
    d->bounce_busy = false;
}

static void cuda_begin(struct blas_device *d, const struct blas_step *step)
{
    struct gpu *gpu = &d->gpu;
    gpu_ok(gpu, gpu->driver->context_set(gpu->context), "choosing it");
    if (d->begun)
        wait(d); /* a step that ended early: what it reads must not change */
    d->begun = true;
    d->step = step;
    d->rope_ops = d->experts_ops = 0;
    put_ropes(d, step);
    const uint64_t bytes = put_tables(d, step);
    GPU(gpu, copy_in, "copying a step", d->input.device, d->input.host, bytes, gpu->compute);
    GPU(gpu, set, "clearing verdicts", d->verdict.device, 0xff, sizeof(uint64_t), gpu->compute);
    if (d->setup.experts_max)
        GPU(gpu, set, "clearing verdicts", d->verdict.device + sizeof(uint64_t), 0, d->verdict.bytes - sizeof(uint64_t),
            gpu->compute);
    if (step->count <= GRAPH_ROWS && weights_settled(d->weights))
        launcher_record(d->launcher);
}

static void cuda_narrow(struct blas_device *d, const struct blas_step *step)
{
    d->step = step;
}

/* Marks the experts that the device marked. */
static void tell_used(struct blas_device *d)
{
    const uint8_t *used = (const uint8_t *)d->verdict.host + sizeof(uint64_t);
    for (size_t i = 0; i < d->experts_ops; i++, used += d->setup.experts_max)
        for (size_t e = 0; e < d->used_count[i]; e++)
            d->used[i][e] |= used[e];
}

static enum stele_status cuda_finish(struct blas_device *d, struct blas_fault *fault, struct stele_error *err)
{
    struct gpu *gpu = &d->gpu;
    uint64_t first = UINT64_MAX;
    launcher_flush(gpu, d->launcher);
    GPU(gpu, copy_out, "copying verdicts", d->verdict.host, d->verdict.device,
        sizeof(uint64_t) + d->experts_ops * d->setup.experts_max, gpu->compute);
    wait(d);
    d->begun = false;
    if (gpu->status == STELE_OK)
        weights_settle(gpu, d->weights);
    fault->op = SIZE_MAX;
    if (gpu->status != STELE_OK)
        return stele_fail(err, gpu->status, "%s", gpu->error.text);
    memcpy(&first, d->verdict.host, sizeof first);
    if (d->rope_ops && first != UINT64_MAX)
        *fault = (struct blas_fault){(size_t)(first >> 32), (size_t)(uint32_t)first};
    tell_used(d);
    return STELE_OK;
}

static struct rows_at rows_at(const struct blas_device *d, struct blas_view view, size_t first)
{
    return (struct rows_at){
        (float *)gpu_address(d->slots + (view.offset + (d->step->first + first) * view.stride) * sizeof(float)),
        view.stride};
}

static const void *at(struct blas_device *d, const void *host)
{
    return weights_at(&d->gpu, d->weights, host);
}

static void start(struct blas_device *d, enum cuda_kernel kernel, uint64_t blocks, const void *args)
{
    launch(&d->gpu, d->launcher, kernel, blocks, args);
}

static void cuda_peek(struct blas_device *d, struct blas_view view, size_t row, size_t n, float *out)
{
    launcher_flush(&d->gpu, d->launcher);
    GPU(&d->gpu, copy_out, "copying a row", out, (cu_pointer)(uintptr_t)rows_at(d, view, row).data, n * sizeof *out,
        d->gpu.compute);
    wait(d);
    if (d->gpu.status != STELE_OK)
        memset(out, 0, n * sizeof *out);
}

/* ---- embed ---- */

/* Rows [from, from + count) of the step into `out` [count][stride]. */
static void embed_rows(const struct blas_device *d, const struct op_embed *op, size_t from, size_t count, float *out)
{
    const struct blas_matrix *w = &op->table;
    for (size_t r = 0; r < count; r++) {
        const uint32_t id = d->step->rows[from + r].id;
        const uint8_t *panel = (const uint8_t *)w->panels + id / PANEL_ROWS * panel_bytes(w->type, w->k);
        for (size_t k = 0; k < w->k; k++) {
            const float x = panel_number(w->type, panel, w->k, id % PANEL_ROWS, k);
            out[r * w->k + k] = op->scale != 1 ? x * op->scale : x;
        }
    }
}

static void cuda_embed(struct blas_device *d, const struct op_embed *op)
{
    struct gpu *gpu = &d->gpu;
    const size_t each = op->table.k * sizeof(float), most = d->bounce.bytes / each;
    const bool recording = launcher_recording(d->launcher);
    launcher_flush(gpu, d->launcher); /* the first op, as a rule: nothing is written down yet */
    for (size_t from = 0, n; from < d->step->count && gpu->status == STELE_OK; from += n) {
        n = d->step->count - from < most ? d->step->count - from : most;
        if (d->bounce_busy)
            wait(d);
        d->bounce_busy = true;
        embed_rows(d, op, from, n, d->bounce.host);
        for (size_t r = 0; r < n; r++)
            GPU(gpu, copy_in, "copying embeddings", (cu_pointer)(uintptr_t)rows_at(d, op->out, from + r).data,
                (const float *)d->bounce.host + r * op->table.k, each, gpu->compute);
    }
    if (recording)
        launcher_record(d->launcher);
}

/* ---- products ---- */

/* A product that is described but for its rows, panels and kernel. */
static struct args_dot product(struct blas_device *d, const struct blas_matrix *w)
{
    struct args_dot a;
    memset(&a, 0, sizeof a);
    a.panels = (const uint8_t *)at(d, w->panels);
    a.panel_bytes = panel_bytes(w->type, w->k);
    a.k = w->k;
    a.n_panels = (uint32_t)panel_count(w->rows);
    a.width = a.n_panels * PANEL_ROWS;
    a.divisor = 1;
    a.gate = -1;
    a.limit = INFINITY;
    a.scale = 1;
    return a;
}

static void quantise(struct blas_device *d, struct args_dot *a, uint64_t k, size_t count, const uint32_t *pairs)
{
    struct args_quantise q;
    memset(&q, 0, sizeof q);
    q.in = a->x;
    q.q = (int8_t *)gpu_address(d->q);
    q.scale = (float *)gpu_address(d->q_scale);
    q.k = k;
    q.count = (uint32_t)count;
    q.pairs = pairs;
    q.pair_count = pairs ? pairs + d->setup.rows_max * d->setup.top_max : NULL;
    start(d, KERNEL_quantise, (count * (round_up(k, GROUP) / GROUP) + 31) / 32, &q);
    a->q = q.q;
    a->q_scale = q.scale;
}

/* Rows of a tile: of mma for more than 8 rows of integers. */
static uint32_t tile_rows(enum tensor_type type, size_t rows)
{
    return rows == 1 ? 1 : rows <= 4 ? 4 : rows <= 8 || !type_quantised(type) ? 8 : MMA_ROWS;
}

/* Panels of a block: enough for its 32 items at once, and no more than it has room for. */
static uint32_t span_of(const struct args_dot *a, uint32_t rows)
{
    const uint64_t blocks = (a->k + DOT_BLOCK - 1) / DOT_BLOCK, unit = a->gate >= 0 ? 2 : 1;
    uint64_t span = (32 + blocks - 1) / blocks, room = DOT_ITEMS / rows / blocks;
    span = span < room ? span : room;
    span = span / unit * unit;
    return (uint32_t)(span > unit ? span : unit);
}

static void multiply(struct blas_device *d, struct args_dot *a, enum tensor_type type, uint32_t rows)
{
    static const enum cuda_kernel few[TENSOR_TYPES] = {KERNEL_dot_f32_1, KERNEL_dot_bf16_1, KERNEL_dot_f16_1,
                                                       KERNEL_dot_q8_1, KERNEL_dot_q4_1, KERNEL_dot_mxfp4_1};
    static const enum cuda_kernel many[TENSOR_TYPES] = {
        [TENSOR_Q8] = KERNEL_mma_q8, [TENSOR_Q4] = KERNEL_mma_q4, [TENSOR_MXFP4] = KERNEL_mma_mxfp4};
    if (!a->tile)
        a->tiles = (a->count + rows - 1) / rows;
    a->span = rows == MMA_ROWS ? MMA_PANELS : span_of(a, rows);
    const uint64_t blocks = (uint64_t)a->tiles * ((a->n_panels + a->span - 1) / a->span);
    if (rows == MMA_ROWS)
        start(d, many[type], blocks, a);
    else
        start(d, few[type] + (rows == 1 ? 0 : rows == 4 ? 1 : 2), blocks, a);
}

/* All rows of the product, from the step's row `first` on. */
static void run_product(struct blas_device *d, struct args_dot *a, const struct blas_matrix *w, struct blas_view in,
                        size_t first, size_t count)
{
    a->x = rows_at(d, in, first);
    a->count = (uint32_t)count;
    if (type_quantised(w->type))
        quantise(d, a, w->k, count, NULL);
    multiply(d, a, w->type, tile_rows(w->type, count));
}

static void cuda_linear(struct blas_device *d, const struct op_linear *op)
{
    struct args_dot a = product(d, &op->weight);
    a.bias = (const float *)at(d, op->bias);
    a.gate = op->gate;
    a.width = a.width / (op->gate >= 0 ? 2 : 1);
    a.scale = op->scale;
    a.out = rows_at(d, op->out, 0);
    if (op->has_residual)
        a.residual = rows_at(d, op->residual, 0);
    run_product(d, &a, &op->weight, op->in, 0, d->step->count);
    weights_release(&d->gpu, d->weights);
}

static void cuda_logits(struct blas_device *d, const struct op_logits *op, size_t from, size_t count, float *out)
{
    struct gpu *gpu = &d->gpu;
    const size_t row = op->head.rows * sizeof(float), most = d->bounce.bytes / row;
    struct args_dot a = product(d, &op->head);
    const bool recording = launcher_recording(d->launcher);
    a.width = (uint32_t)op->head.rows;
    a.scale = op->scale;
    a.cap = op->cap;
    a.out = (struct rows_at){(float *)gpu_address(d->bounce.device), op->head.rows};
    for (size_t done = 0, n; done < count; done += n) {
        n = count - done < most ? count - done : most;
        run_product(d, &a, &op->head, op->in, from + done, n);
        launcher_flush(gpu, d->launcher);
        GPU(gpu, copy_out, "copying logits", d->bounce.host, d->bounce.device, n * row, gpu->compute);
        wait(d);
        if (gpu->status == STELE_OK)
            memcpy(out + done * op->head.rows, d->bounce.host, n * row);
        else
            memset(out + done * op->head.rows, 0, n * row); /* finish says why */
        if (recording)
            launcher_record(d->launcher);
    }
    weights_release(gpu, d->weights);
}

/* ---- norms, keys and values, attention ---- */

static void cuda_norm(struct blas_device *d, const struct op_norm *op)
{
    struct args_norm a;
    memset(&a, 0, sizeof a);
    a.in = rows_at(d, op->in, 0);
    a.out = rows_at(d, op->out, 0);
    if (op->has_residual)
        a.residual = rows_at(d, op->residual, 0);
    a.weight = (const float *)at(d, op->weight);
    a.n = op->n;
    a.epsilon = op->epsilon;
    start(d, KERNEL_norm, d->step->count, &a);
    weights_release(&d->gpu, d->weights);
}

static struct kv_at kv_at(const struct blas_device *d, const struct blas_kv *kv)
{
    return (struct kv_at){(uint8_t *)gpu_address(d->kv + kv->offset), kv->block_bytes, kv->window, kv->ring,
                          (uint32_t)kv->heads, (uint32_t)kv->head_dim, d->setup.kv_type == KV_F16, 0};
}

static bool cuda_rope_kv(struct blas_device *d, const struct op_rope_kv *op, size_t *row)
{
    struct args_rope_kv a;
    memset(&a, 0, sizeof a);
    a.q = rows_at(d, op->q, 0);
    a.k = rows_at(d, op->k, 0);
    a.v = rows_at(d, op->v, 0);
    a.rows = step_rows(d);
    a.tables = (const uint32_t *)gpu_address(d->input.device + table_offset(d));
    a.count = (uint32_t)d->step->count;
    a.heads = (uint32_t)op->heads;
    a.q_norm = (const float *)at(d, op->q_norm);
    a.k_norm = (const float *)at(d, op->k_norm);
    a.epsilon = op->epsilon;
    a.rope = op->rope ? rope_at(d, op->rope) : NULL;
    a.pairs = op->rope ? (uint32_t)op->rope->pairs : 0;
    a.op = (uint32_t)d->rope_ops++;
    a.fault = (uint64_t *)gpu_address(d->verdict.device);
    a.kv = kv_at(d, &op->kv);
    start(d, KERNEL_rope_kv, (d->step->count * (op->heads + op->kv.heads) + 3) / 4, &a);
    weights_release(&d->gpu, d->weights);
    *row = SIZE_MAX;
    return true;
}

static void cuda_copy_kv(struct blas_device *d, const struct blas_kv *kv, size_t to, size_t from)
{
    cu_pointer blocks = d->kv + kv->offset;
    gpu_ok(&d->gpu, d->gpu.driver->context_set(d->gpu.context), "choosing it");
    GPU(&d->gpu, copy, "copying keys and values", blocks + to * kv->block_bytes, blocks + from * kv->block_bytes,
        kv->block_bytes, d->gpu.compute);
}

/* The most KV blocks that a row of the step sees, as a power of two: steps of one shape keep their list of launches. */
static uint64_t blocks_seen(const struct blas_device *d, const struct blas_kv *kv)
{
    uint64_t most = 1, power = 1;
    for (size_t r = 0; r < d->step->count; r++) {
        const uint64_t seen = (uint64_t)d->step->rows[r].position + 1;
        const uint64_t first = kv->window && seen > kv->window ? seen - kv->window : 0;
        const uint64_t n = (seen + KV_BLOCK - 1) / KV_BLOCK - first / KV_BLOCK;
        most = n > most ? n : most;
    }
    while (power < most)
        power *= 2;
    return power;
}

static void cuda_attention(struct blas_device *d, const struct op_attention *op)
{
    const uint64_t group = op->heads / op->kv.heads, chunks = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
    const uint64_t items = d->step->count * op->kv.heads * chunks, blocks = blocks_seen(d, &op->kv);
    struct args_attend a;
    memset(&a, 0, sizeof a);
    a.q = rows_at(d, op->q, 0);
    a.out = rows_at(d, op->out, 0);
    a.rows = step_rows(d);
    a.tables = (const uint32_t *)gpu_address(d->input.device + table_offset(d));
    a.count = (uint32_t)d->step->count;
    a.heads = (uint32_t)op->heads;
    a.parts = 1;
    while (a.parts < blocks && a.parts * items < (uint64_t)d->processors * BLOCKS_PER_PROCESSOR &&
           blocks * d->step->count <= d->kept_blocks)
        a.parts *= 2;
    a.blocks_max = (uint32_t)blocks;
    a.scale = op->scale;
    a.cap = op->cap;
    a.sinks = (const float *)at(d, op->sinks);
    a.kv = kv_at(d, &op->kv);
    a.kept = (float *)gpu_address(d->kept);
    start(d, KERNEL_attend, items * a.parts, &a);
    if (a.parts > 1)
        start(d, KERNEL_attend_join, (d->step->count * op->heads + 3) / 4, &a);
    weights_release(&d->gpu, d->weights);
}

/* ---- experts ---- */

/* Rows of logits that are no slot. */
static struct rows_at small_logits(const struct blas_device *d)
{
    return (struct rows_at){(float *)gpu_address(d->small_logits), round_up(d->setup.experts_max + 1, PANEL_ROWS)};
}

static void cuda_router(struct blas_device *d, const struct op_router *op)
{
    struct args_dot a = product(d, &op->weight);
    struct args_route r;
    a.bias = (const float *)at(d, op->bias);
    a.out = small_logits(d);
    run_product(d, &a, &op->weight, op->in, 0, d->step->count);
    memset(&r, 0, sizeof r);
    r.logits = a.out;
    r.out = rows_at(d, op->out, 0);
    r.count = a.count;
    r.experts = (uint32_t)op->weight.rows;
    r.top = (uint32_t)op->top;
    r.routing = op->routing;
    start(d, KERNEL_route, (d->step->count + 3) / 4, &r);
    weights_release(&d->gpu, d->weights);
}

static void cuda_gate(struct blas_device *d, const struct op_gate *op)
{
    struct args_dot a = product(d, &op->weight);
    struct args_add_branch b;
    a.out = small_logits(d);
    run_product(d, &a, &op->weight, op->in, 0, d->step->count);
    memset(&b, 0, sizeof b);
    b.gate = a.out;
    b.branch = rows_at(d, op->branch, 0);
    b.residual = rows_at(d, op->residual, 0);
    b.out = rows_at(d, op->out, 0);
    b.n = op->n;
    b.count = a.count;
    start(d, KERNEL_add_branch, d->step->count * ((op->n + 127) / 128), &b);
    weights_release(&d->gpu, d->weights);
}

/* Where the op's used experts are marked, to be told when the step is done. Ops beyond those of any model share a
 * place. */
static uint8_t *used_at(struct blas_device *d, const struct op_experts *op)
{
    const size_t i = d->experts_ops < EXPERTS_OPS_MAX ? d->experts_ops++ : EXPERTS_OPS_MAX - 1;
    d->used[i] = op->used;
    d->used_count[i] = op->up.count;
    return (uint8_t *)gpu_address(d->verdict.device + sizeof(uint64_t) + i * d->setup.experts_max);
}

/* The entries of each expert, and its tiles of `rows`. */
static struct args_group group_rows(struct blas_device *d, const struct op_experts *op, uint32_t rows)
{
    struct args_group g;
    const size_t pairs = d->step->count * op->top, all = pairs / rows + op->up.count;
    memset(&g, 0, sizeof g);
    g.route = rows_at(d, op->route, 0);
    g.count = (uint32_t)d->step->count;
    g.experts = (uint32_t)op->up.count;
    g.top = (uint32_t)op->top;
    g.tile_rows = rows;
    g.tiles = (uint32_t)(all < pairs ? all : pairs);
    g.pairs = (uint32_t *)gpu_address(d->pairs);
    g.pair_count = g.pairs + d->setup.rows_max * d->setup.top_max;
    g.tile = (struct tile *)gpu_address(d->tiles);
    g.used = used_at(d, op);
    start(d, KERNEL_group, 1, &g);
    return g;
}

/* A product of each entry with its expert's matrix; results in rows of `out` by entry. */
static void run_bank(struct blas_device *d, struct args_dot *a, const struct blas_bank *bank,
                     const struct args_group *g)
{
    a->bank_stride = bank->stride;
    a->bias_stride = a->n_panels * PANEL_ROWS;
    a->tile = g->tile;
    a->tiles = g->tiles;
    a->pairs = g->pairs;
    multiply(d, a, bank->first.type, g->tile_rows);
}

static void add_experts(struct blas_device *d, const struct op_experts *op, const struct args_dot *down)
{
    struct args_add_experts a;
    memset(&a, 0, sizeof a);
    a.route = rows_at(d, op->route, 0);
    a.sum = rows_at(d, op->sum, 0);
    a.out = rows_at(d, op->out, 0);
    if (op->has_residual)
        a.residual = rows_at(d, op->residual, 0);
    a.down = down->out.data;
    a.n = down->width;
    a.count = (uint32_t)d->step->count;
    a.experts = (uint32_t)op->up.count;
    a.top = (uint32_t)op->top;
    a.scale = op->scale;
    start(d, KERNEL_add_experts, d->step->count * ((a.n + 127) / 128), &a);
}

static void cuda_experts(struct blas_device *d, const struct op_experts *op)
{
    const size_t rows = d->step->count, each = (rows * op->top + op->up.count - 1) / op->up.count;
    const uint32_t tile = rows == 1 ? 1 : tile_rows(op->up.first.type, each < 2 ? 2 : each);
    const bool both = type_quantised(op->up.first.type) == type_quantised(op->down.first.type);
    struct args_group g = group_rows(d, op, both ? tile : rows == 1 ? 1 : 8);
    struct args_dot up = product(d, &op->up.first);
    up.bias = (const float *)at(d, op->up_bias);
    up.gate = op->gate;
    up.limit = op->limit;
    up.width = up.width / (op->gate >= 0 ? 2 : 1);
    up.divisor = g.top;
    up.x = rows_at(d, op->in, 0);
    up.out = (struct rows_at){(float *)gpu_address(d->gated), d->setup.expert_width};
    if (type_quantised(op->up.first.type))
        quantise(d, &up, up.k, rows, NULL);
    run_bank(d, &up, &op->up, &g);
    struct args_dot down = product(d, &op->down.first);
    down.bias = (const float *)at(d, op->down_bias);
    down.x = up.out;
    down.out = (struct rows_at){(float *)gpu_address(d->down), down.width};
    if (type_quantised(op->down.first.type))
        quantise(d, &down, down.k, rows * op->top, g.pairs);
    run_bank(d, &down, &op->down, &g);
    add_experts(d, op, &down);
    weights_release(&d->gpu, d->weights);
}

const struct blas_backend cuda_backend = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .begin = cuda_begin,
    .narrow = cuda_narrow,
    .embed = cuda_embed,
    .norm = cuda_norm,
    .linear = cuda_linear,
    .rope_kv = cuda_rope_kv,
    .finish = cuda_finish,
    .copy_kv = cuda_copy_kv,
    .attention = cuda_attention,
    .router = cuda_router,
    .experts = cuda_experts,
    .gate = cuda_gate,
    .logits = cuda_logits,
    .peek = cuda_peek,
    .memory = cuda_memory,
    .threads = cuda_threads,
};
