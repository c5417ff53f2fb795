/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "device.h"
#include "panel.h"

/* Rows of logits that are no slot. */
static struct rows_at small_logits(const struct blas_device *d)
{
    return (struct rows_at){(float *)gpu_address(d->small_logits), round_up(d->setup.experts_max + 1, PANEL_ROWS)};
}

void cuda_router(struct blas_device *d, const struct op_router *op)
{
    struct args_dot a = product_of(d, &op->weight);
    struct args_route r;
    a.bias = (const float *)device_weights(d, op->bias);
    a.out = small_logits(d);
    product_run(d, &a, &op->weight, op->in, 0, d->step->count);
    memset(&r, 0, sizeof r);
    r.logits = a.out;
    r.out = device_rows(d, op->out, 0);
    r.count = a.count;
    r.experts = (uint32_t)op->weight.rows;
    r.top = (uint32_t)op->top;
    r.routing = op->routing;
    device_start(d, KERNEL_route, (d->step->count + 3) / 4, &r);
    weights_release(&d->gpu, d->weights);
}

void cuda_gate(struct blas_device *d, const struct op_gate *op)
{
    struct args_dot a = product_of(d, &op->weight);
    struct args_add_branch b;
    a.out = small_logits(d);
    product_run(d, &a, &op->weight, op->in, 0, d->step->count);
    memset(&b, 0, sizeof b);
    b.gate = a.out;
    b.branch = device_rows(d, op->branch, 0);
    b.residual = device_rows(d, op->residual, 0);
    b.out = device_rows(d, op->out, 0);
    b.n = op->n;
    b.count = a.count;
    device_start(d, KERNEL_add_branch, d->step->count * ((op->n + 127) / 128), &b);
    weights_release(&d->gpu, d->weights);
}

/* Where the op's used experts are marked, to be told when the step is done. Ops beyond those of any model share a
 * place. */
static uint8_t *used_at(struct blas_device *d, const struct op_experts *op)
{
    const size_t i = d->experts_ops < CUDA_EXPERTS_OPS_MAX ? d->experts_ops++ : CUDA_EXPERTS_OPS_MAX - 1;
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
    g.route = device_rows(d, op->route, 0);
    g.count = (uint32_t)d->step->count;
    g.experts = (uint32_t)op->up.count;
    g.top = (uint32_t)op->top;
    g.tile_rows = rows;
    g.tiles = (uint32_t)(all < pairs ? all : pairs);
    g.pairs = (uint32_t *)gpu_address(d->pairs);
    g.pair_count = g.pairs + d->setup.rows_max * d->setup.top_max;
    g.tile = (struct tile *)gpu_address(d->tiles);
    g.used = used_at(d, op);
    device_start(d, KERNEL_group, 1, &g);
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
    product_start(d, a, bank->first.type, g->tile_rows);
}

static void add_experts(struct blas_device *d, const struct op_experts *op, const struct args_dot *down)
{
    struct args_add_experts a;
    memset(&a, 0, sizeof a);
    a.route = device_rows(d, op->route, 0);
    a.sum = device_rows(d, op->sum, 0);
    a.out = device_rows(d, op->out, 0);
    if (op->has_residual)
        a.residual = device_rows(d, op->residual, 0);
    a.down = down->out.data;
    a.n = down->width;
    a.count = (uint32_t)d->step->count;
    a.experts = (uint32_t)op->up.count;
    a.top = (uint32_t)op->top;
    a.scale = op->scale;
    device_start(d, KERNEL_add_experts, d->step->count * ((a.n + 127) / 128), &a);
}

void cuda_experts(struct blas_device *d, const struct op_experts *op)
{
    const size_t rows = d->step->count, each = 2 * ((rows * op->top + op->up.count - 1) / op->up.count);
    const enum tensor_type type = op->up.first.type;
    const bool both = type_quantised(type) == type_quantised(op->down.first.type);
    const uint32_t tile = both ? product_rows(type)[product_choice(type, each)] : 8;
    struct args_group g = group_rows(d, op, rows == 1 ? 1 : tile);
    struct args_dot up = product_of(d, &op->up.first);
    up.bias = (const float *)device_weights(d, op->up_bias);
    up.gate = op->gate;
    up.limit = op->limit;
    up.width = up.width / (op->gate >= 0 ? 2 : 1);
    up.divisor = g.top;
    up.x = device_rows(d, op->in, 0);
    up.out = (struct rows_at){(float *)gpu_address(d->gated), d->setup.expert_width};
    if (type_quantised(op->up.first.type))
        product_rounded(d, &up, up.k, rows, NULL);
    run_bank(d, &up, &op->up, &g);
    struct args_dot down = product_of(d, &op->down.first);
    down.bias = (const float *)device_weights(d, op->down_bias);
    down.x = up.out;
    down.out = (struct rows_at){(float *)gpu_address(d->down), down.width};
    if (type_quantised(op->down.first.type))
        product_rounded(d, &down, down.k, rows * op->top, g.pairs);
    run_bank(d, &down, &op->down, &g);
    add_experts(d, op, &down);
    weights_release(&d->gpu, d->weights);
}
