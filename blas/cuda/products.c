/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "device.h"
#include "numbers.h"

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

void cuda_embed(struct blas_device *d, const struct op_embed *op)
{
    struct gpu *gpu = &d->gpu;
    const size_t each = op->table.k * sizeof(float), most = d->bounce.bytes / each;
    const bool recording = launcher_recording(d->launcher);
    d->rounded.data = NULL;
    launcher_flush(gpu, d->launcher); /* the first op, as a rule: nothing is written down yet */
    for (size_t from = 0, n; from < d->step->count && gpu->status == STELE_OK; from += n) {
        n = d->step->count - from < most ? d->step->count - from : most;
        if (d->bounce_busy)
            device_wait(d);
        d->bounce_busy = true;
        embed_rows(d, op, from, n, d->bounce.host);
        for (size_t r = 0; r < n; r++)
            GPU(gpu, copy_in, "copying embeddings", (cu_pointer)(uintptr_t)device_rows(d, op->out, from + r).data,
                (const float *)d->bounce.host + r * op->table.k, each, gpu->compute);
    }
    if (recording)
        launcher_record(d->launcher);
}

/* ---- products ---- */

struct args_dot product_of(struct blas_device *d, const struct blas_matrix *w)
{
    struct args_dot a;
    memset(&a, 0, sizeof a);
    a.panels = (const uint8_t *)device_weights(d, w->panels);
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

/* Activations x are in q and q_scale, as long as nothing but products of them is started. */
static void note_rounded(struct blas_device *d, struct rows_at x, uint64_t k, uint64_t count)
{
    d->rounded = x;
    d->rounded_k = k;
    d->rounded_count = count;
}

void product_rounded(struct blas_device *d, struct args_dot *a, uint64_t k, size_t count, const uint32_t *pairs)
{
    struct args_quantise q;
    memset(&q, 0, sizeof q);
    a->q_stride = (uint32_t)round_up(k, GROUP);
    a->scale_stride = (uint32_t)cuda_scale_stride(k);
    a->q = (const int8_t *)gpu_address(d->q);
    a->q_scale = (const float *)gpu_address(d->q_scale);
    if (!pairs && d->rounded.data && d->rounded.data == a->x.data && d->rounded.stride == a->x.stride &&
        d->rounded_k == k && d->rounded_count >= count)
        return;
    q.in = a->x;
    q.q = (int8_t *)gpu_address(d->q);
    q.scale = (float *)gpu_address(d->q_scale);
    q.k = k;
    q.q_stride = a->q_stride;
    q.scale_stride = a->scale_stride;
    q.count = (uint32_t)count;
    q.pairs = pairs;
    q.pair_count = pairs ? pairs + d->setup.rows_max * d->setup.top_max : NULL;
    device_start(d, KERNEL_quantise, (count * (round_up(k, GROUP) / GROUP) + 31) / 32, &q);
    if (!pairs)
        note_rounded(d, a->x, k, count);
}

const uint32_t *product_rows(enum tensor_type type)
{
    static const uint32_t floats[] = {1, 4, 8}, integers[] = {8, 32, TILE_ROWS};
    return type_quantised(type) ? integers : floats;
}

uint32_t product_choice(enum tensor_type type, size_t rows)
{
    const uint32_t *all = product_rows(type);
    return rows <= all[0] ? 0 : rows <= all[1] ? 1 : 2;
}

/* Panels of a block: of floats enough for its 32 items at once, and no more than it has room for. */
static uint32_t span_of(const struct args_dot *a, enum tensor_type type, uint32_t rows)
{
    if (type_quantised(type))
        return rows == TILE_ROWS ? TILE_PANELS : 2;
    const uint64_t blocks = (a->k + DOT_BLOCK - 1) / DOT_BLOCK, unit = a->gate >= 0 ? 2 : 1;
    uint64_t span = (32 + blocks - 1) / blocks, room = DOT_ITEMS / rows / blocks;
    span = span < room ? span : room;
    span = span / unit * unit;
    return (uint32_t)(span > unit ? span : unit);
}

void product_start(struct blas_device *d, struct args_dot *a, enum tensor_type type, uint32_t tile_rows)
{
    static const enum cuda_kernel first[TENSOR_TYPES] = {KERNEL_dot_f32_1, KERNEL_dot_bf16_1, KERNEL_dot_f16_1,
                                                         KERNEL_dot_q8_8,  KERNEL_dot_q4_8,   KERNEL_dot_mxfp4_8};
    const uint32_t choice = product_choice(type, tile_rows ? tile_rows : a->count), rows = product_rows(type)[choice];
    if (!tile_rows)
        a->tiles = (a->count + rows - 1) / rows;
    a->span = span_of(a, type, rows);
    const struct rows_at rounded = d->rounded;
    device_start(d, first[type] + choice, (uint64_t)a->tiles * ((a->n_panels + a->span - 1) / a->span), a);
    if (a->x.data == rounded.data && a->out.data != rounded.data)
        d->rounded = rounded;
}

void product_run(struct blas_device *d, struct args_dot *a, const struct blas_matrix *w, struct blas_view in,
                        size_t first, size_t count)
{
    a->x = device_rows(d, in, first);
    a->count = (uint32_t)count;
    if (type_quantised(w->type))
        product_rounded(d, a, w->k, count, NULL);
    product_start(d, a, w->type, 0);
}

void cuda_linear(struct blas_device *d, const struct op_linear *op)
{
    struct args_dot a = product_of(d, &op->weight);
    a.bias = (const float *)device_weights(d, op->bias);
    a.gate = op->gate;
    a.width = a.width / (op->gate >= 0 ? 2 : 1);
    a.scale = op->scale;
    a.out = device_rows(d, op->out, 0);
    if (op->has_residual)
        a.residual = device_rows(d, op->residual, 0);
    product_run(d, &a, &op->weight, op->in, 0, d->step->count);
    weights_release(&d->gpu, d->weights);
}

void cuda_logits(struct blas_device *d, const struct op_logits *op, size_t from, size_t count, float *out)
{
    struct gpu *gpu = &d->gpu;
    const size_t row = op->head.rows * sizeof(float), most = d->bounce.bytes / row;
    struct args_dot a = product_of(d, &op->head);
    const bool recording = launcher_recording(d->launcher);
    a.width = (uint32_t)op->head.rows;
    a.scale = op->scale;
    a.cap = op->cap;
    a.out = (struct rows_at){(float *)gpu_address(d->bounce.device), op->head.rows};
    for (size_t done = 0, n; done < count; done += n) {
        n = count - done < most ? count - done : most;
        product_run(d, &a, &op->head, op->in, from + done, n);
        launcher_flush(gpu, d->launcher);
        GPU(gpu, copy_out, "copying logits", d->bounce.host, d->bounce.device, n * row, gpu->compute);
        device_wait(d);
        if (gpu->status == STELE_OK)
            memcpy(out + done * op->head.rows, d->bounce.host, n * row);
        else
            memset(out + done * op->head.rows, 0, n * row); /* finish says why */
        if (recording)
            launcher_record(d->launcher);
    }
    weights_release(gpu, d->weights);
}

/* ---- norms ---- */

void cuda_norm(struct blas_device *d, const struct op_norm *op)
{
    struct args_norm a;
    memset(&a, 0, sizeof a);
    a.in = device_rows(d, op->in, 0);
    a.out = device_rows(d, op->out, 0);
    if (op->has_residual)
        a.residual = device_rows(d, op->residual, 0);
    a.weight = (const float *)device_weights(d, op->weight);
    a.n = op->n;
    a.epsilon = op->epsilon;
    if (op->n <= d->setup.k_max) { /* there is room for them, and products that may want them */
        a.q = (int8_t *)gpu_address(d->q);
        a.scale = (float *)gpu_address(d->q_scale);
        a.q_stride = (uint32_t)round_up(op->n, GROUP);
        a.scale_stride = (uint32_t)cuda_scale_stride(op->n);
    }
    device_start(d, KERNEL_norm, d->step->count, &a);
    if (a.q)
        note_rounded(d, a.out, op->n, d->step->count);
    weights_release(&d->gpu, d->weights);
}
