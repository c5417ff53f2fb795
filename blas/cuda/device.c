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
 *        | weights
 *
 * cuda_memory.c says how much of each; the ops are in files of their own (device.h). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

#ifndef CUDA_SPARE_BYTES
#define CUDA_SPARE_BYTES (256ull << 20) /* left for what the driver needs: graphs, stacks */
#endif

enum {
    GRAPH_ROWS = 64,           /* steps of up to so many rows become graphs */
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

static void take_memory(struct blas_device *d)
{
    const struct cuda_memory m = cuda_memory_of(&d->setup);
    const struct {
        cu_pointer *to;
        uint64_t bytes;
    } parts[] = {{&d->slots, m.slots}, {&d->q, m.q}, {&d->q_scale, m.q_scale}, {&d->small_logits, m.small_logits},
                 {&d->pairs, m.pairs}, {&d->tiles, m.tiles}, {&d->gated, m.gated}, {&d->down, m.down},
                 {&d->kept, m.kept}};
    d->kv = gpu_alloc(&d->gpu, d->setup.kv_bytes, "keys and values");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        *parts[i].to = gpu_alloc(&d->gpu, parts[i].bytes, "activations");
    d->kept_blocks = m.kept_blocks;
    d->input = twin_make(&d->gpu, m.input, "steps");
    d->bounce = twin_make(&d->gpu, m.bounce, "logits");
    d->verdict = twin_make(&d->gpu, m.verdict, "verdicts");
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
    return (struct blas_memory){d->setup.kv_bytes,          cuda_scratch_bytes(&d->setup), weights_kept(d->weights),
                                weights_upload(d->weights), d->name,          reach_names[d->reach]};
}

static size_t cuda_threads(const struct blas_device *d)
{
    return d->setup.threads;
}

/* ---- a step ---- */

uint64_t device_ropes(const struct blas_device *d)
{
    return round_up(d->rows * sizeof(struct step_row), 64);
}

uint64_t device_tables(const struct blas_device *d)
{
    return device_ropes(d) + round_up(d->rows * d->setup.rope_numbers * sizeof(float), 64);
}

/* The tables of the rows' sequences, one after the other; returns their end. Rows of a sequence follow each other. */
static uint64_t put_tables(struct blas_device *d, const struct blas_step *step)
{
    struct step_row *rows = d->input.host;
    uint32_t *tables = (uint32_t *)((uint8_t *)d->input.host + device_tables(d)), at = 0;
    const uint64_t room = (d->input.bytes - device_tables(d)) / sizeof *tables;
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
    return device_tables(d) + at * sizeof *tables;
}

static void put_ropes(struct blas_device *d, const struct blas_step *step)
{
    float *to = (float *)(void *)((uint8_t *)d->input.host + device_ropes(d));
    for (size_t i = 0; i < step->rope_count; i++) {
        const size_t numbers = step->count * 2 * step->ropes[i].pairs;
        memcpy(to, step->ropes[i].rows, numbers * sizeof *to);
        to += numbers;
    }
}

void device_wait(struct blas_device *d)
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
        device_wait(d); /* a step that ended early: what it reads must not change */
    d->begun = true;
    d->step = step;
    d->rows = step->count;
    d->rope_ops = d->experts_ops = 0;
    d->rounded.data = NULL;
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
    device_wait(d);
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

struct rows_at device_rows(const struct blas_device *d, struct blas_view view, size_t first)
{
    return (struct rows_at){
        (float *)gpu_address(d->slots + (view.offset + (d->step->first + first) * view.stride) * sizeof(float)),
        view.stride};
}

const void *device_weights(struct blas_device *d, const void *host)
{
    return weights_at(&d->gpu, d->weights, host);
}

void device_start(struct blas_device *d, enum cuda_kernel kernel, uint64_t blocks, const void *args)
{
    d->rounded.data = NULL; /* who knows better says so afterwards */
    launch(&d->gpu, d->launcher, kernel, blocks, args);
}

static void cuda_peek(struct blas_device *d, struct blas_view view, size_t row, size_t n, float *out)
{
    launcher_flush(&d->gpu, d->launcher);
    GPU(&d->gpu, copy_out, "copying a row", out, (cu_pointer)(uintptr_t)device_rows(d, view, row).data, n * sizeof *out,
        d->gpu.compute);
    device_wait(d);
    if (d->gpu.status != STELE_OK)
        memset(out, 0, n * sizeof *out);
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
