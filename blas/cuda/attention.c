/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "device.h"
#include "panel.h"

enum {
    BLOCKS_PER_PROCESSOR = 4, /* that attention is cut for */
    ROWS_TOGETHER = 8,        /* from so many rows of one sequence on they attend together */
};

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
        numbers += d->rows * 2 * r->pairs;
    return (const float *)gpu_address(d->input.device + device_ropes(d) + numbers * sizeof(float));
}

static struct kv_at kv_at(const struct blas_device *d, const struct blas_kv *kv)
{
    return (struct kv_at){(uint8_t *)gpu_address(d->kv + kv->offset), kv->block_bytes, kv->window, kv->ring,
                          (uint32_t)kv->heads, (uint32_t)kv->head_dim, d->setup.kv_type == KV_F16, 0};
}

bool cuda_rope_kv(struct blas_device *d, const struct op_rope_kv *op, size_t *row)
{
    struct args_rope_kv a;
    memset(&a, 0, sizeof a);
    a.q = device_rows(d, op->q, 0);
    a.k = device_rows(d, op->k, 0);
    a.v = device_rows(d, op->v, 0);
    a.rows = step_rows(d);
    a.tables = (const uint32_t *)gpu_address(d->input.device + device_tables(d));
    a.count = (uint32_t)d->step->count;
    a.heads = (uint32_t)op->heads;
    a.q_norm = (const float *)device_weights(d, op->q_norm);
    a.k_norm = (const float *)device_weights(d, op->k_norm);
    a.epsilon = op->epsilon;
    a.rope = op->rope ? rope_at(d, op->rope) : NULL;
    a.pairs = op->rope ? (uint32_t)op->rope->pairs : 0;
    a.op = (uint32_t)d->rope_ops++;
    a.fault = (uint64_t *)gpu_address(d->verdict.device);
    a.kv = kv_at(d, &op->kv);
    device_start(d, KERNEL_rope_kv, (d->step->count * (op->heads + op->kv.heads) + 3) / 4, &a);
    weights_release(&d->gpu, d->weights);
    *row = SIZE_MAX;
    return true;
}

void cuda_copy_kv(struct blas_device *d, const struct blas_kv *kv, size_t to, size_t from)
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

/* Many rows, all of one sequence, and with them warps enough for the device. */
static bool together(const struct blas_device *d, uint64_t blocks)
{
    const struct blas_step *step = d->step;
    for (size_t r = 1; r < step->count; r++)
        if (step->rows[r].blocks != step->rows[0].blocks)
            return false;
    return step->count >= ROWS_TOGETHER && blocks >= d->processors;
}

void cuda_attention(struct blas_device *d, const struct op_attention *op)
{
    const uint64_t group = op->heads / op->kv.heads, chunks = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
    const uint64_t items = d->step->count * op->kv.heads * chunks, blocks = blocks_seen(d, &op->kv);
    struct args_attend a;
    memset(&a, 0, sizeof a);
    a.q = device_rows(d, op->q, 0);
    a.out = device_rows(d, op->out, 0);
    a.rows = step_rows(d);
    a.tables = (const uint32_t *)gpu_address(d->input.device + device_tables(d));
    a.count = (uint32_t)d->step->count;
    a.heads = (uint32_t)op->heads;
    a.parts = 1;
    while (a.parts < blocks && a.parts * items < (uint64_t)d->processors * BLOCKS_PER_PROCESSOR &&
           blocks * d->step->count <= d->kept_blocks)
        a.parts *= 2;
    a.blocks_max = (uint32_t)blocks;
    a.scale = op->scale;
    a.cap = op->cap;
    a.sinks = (const float *)device_weights(d, op->sinks);
    a.kv = kv_at(d, &op->kv);
    a.kept = (float *)gpu_address(d->kept);
    const uint64_t fours = (d->step->count + ATTEND_ROWS - 1) / ATTEND_ROWS * op->kv.heads * chunks;
    if (together(d, fours)) {
        device_start(d, KERNEL_attend_rows, fours, &a);
    } else {
        device_start(d, KERNEL_attend, items * a.parts, &a);
        if (a.parts > 1)
            device_start(d, KERNEL_attend_join, (d->step->count * op->heads + 3) / 4, &a);
    }
    weights_release(&d->gpu, d->weights);
}
