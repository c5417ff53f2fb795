/* SPDX-License-Identifier: Apache-2.0 */
/* Mixtures of experts: which experts a row goes to, which rows an expert has, and the sum over them. The products
 * between are dot.cuh's, over tiles that `group` makes. Included by kernels.cu. */

/* Larger for larger numbers, and for equal ones (-0 is 0) for the lower id; never 0. */
DEVICE uint64_t rank_of(float x, uint32_t id)
{
    const uint32_t bits = float_bits(x + 0.0f);
    return (uint64_t)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | (0xffffffffu - id);
}

/* The largest logit and the sum of e^(x - largest), for all lanes. NUMBERS.md, "Softmax over a vector". */
DEVICE void log_sum(const float *x, uint32_t n, float *largest, float *sum)
{
    const uint32_t lane = thread_index() % 32;
    float max = x[0], even = 0, odd = 0;
    for (uint32_t i = lane; i < n; i += 32)
        max = x[i] > max ? x[i] : max;
    for (uint32_t step = 16; step; step /= 2) {
        const float other = xor_float(max, step);
        max = other > max ? other : max;
    }
    for (uint32_t i = 2 * lane; i < n; i += 64) {
        even = even + num_exp(x[i] - max);
        if (i + 1 < n)
            odd = odd + num_exp(x[i + 1] - max);
    }
    *largest = max;
    *sum = tree_64(even, odd);
}

/* A warp a row: `top` times the best that is not taken; expert 32 * i + lane is bit i of `taken`. */
KERNEL(route, struct args_route, 128, 4)
{
    SHARED uint16_t chosen_all[4][1024];
    const uint32_t lane = thread_index() % 32, warp = thread_index() / 32;
    const uint64_t r = (uint64_t)block_index() * 4 + warp;
    if (r >= a.count)
        return;
    const float *x = a.logits.data + r * a.logits.stride;
    float *out = a.out.data + r * a.out.stride, *weights = out + a.top;
    uint16_t *chosen = chosen_all[warp];
    uint32_t taken = 0;
    float largest, all;
    for (uint32_t i = 0; i < a.top; i++) {
        uint64_t best = 0;
        for (uint32_t j = lane; j < a.experts; j += 32) {
            const uint64_t rank = taken >> j / 32 & 1 ? 0 : rank_of(x[j], j);
            best = rank > best ? rank : best;
        }
        for (uint32_t step = 16; step; step /= 2) {
            const uint64_t other = xor_u64(best, step);
            best = other > best ? other : best;
        }
        const uint32_t id = 0xffffffffu - (uint32_t)best;
        if (id % 32 == lane) {
            taken |= 1u << id / 32;
            chosen[i] = (uint16_t)id;
        }
    }
    log_sum(x, a.experts, &largest, &all);
    sync_warp(); /* all are chosen */
    for (uint32_t i = lane; i < a.top; i += 32) {
        uint32_t place = 0; /* ids ascending */
        for (uint32_t j = 0; j < a.top; j++)
            place += chosen[j] < chosen[i];
        const float weight = num_exp(x[chosen[i]] - largest);
        out[place] = (float)chosen[i];
        weights[place] = a.routing == BLAS_ROUTING_CHOSEN && all == all ? weight : weight / all; /* a NaN stays one */
    }
    if (a.routing == BLAS_ROUTING_ALL)
        return;
    sync_warp();
    float sum = 0;
    for (uint32_t i = 0; i < a.top; i++)
        sum = sum + weights[i];
    sync_warp();
    for (uint32_t i = lane; i < a.top; i += 32)
        weights[i] = weights[i] / sum;
}

/* The place of `expert` in a row's route; `top` where it is not there. The first counts: a row goes to an expert once,
 * whatever a hostile route says. */
DEVICE uint32_t place_of(const float *route, uint32_t top, uint32_t expert)
{
    for (uint32_t i = 0; i < top; i++)
        if (route[i] == (float)expert)
            return i;
    return top;
}

/* One block: a thread for each expert counts its rows and then names them. */
KERNEL(group, struct args_group, 128, 1)
{
    SHARED uint32_t begin[1024 + 1];
    for (uint32_t e = thread_index(); e < a.experts; e += 128) {
        uint32_t n = 0;
        for (uint32_t r = 0; r < a.count; r++)
            n += place_of(a.route.data + r * a.route.stride, a.top, e) < a.top;
        begin[e + 1] = n;
        if (n)
            a.used[e] = 1;
    }
    sync_block();
    if (thread_index() == 0) {
        uint32_t t = 0;
        begin[0] = 0;
        for (uint32_t e = 0; e < a.experts; e++) {
            const uint32_t n = begin[e + 1];
            for (uint32_t from = 0; from < n; from += a.tile_rows, t++) {
                a.tile[t].expert = e;
                a.tile[t].from = begin[e] + from;
                a.tile[t].count = n - from < a.tile_rows ? n - from : a.tile_rows;
            }
            begin[e + 1] = begin[e] + n;
        }
        for (; t < a.tiles; t++)
            a.tile[t].count = 0;
        *a.pair_count = begin[a.experts];
    }
    sync_block();
    for (uint32_t e = thread_index(); e < a.experts; e += 128) {
        uint32_t to = begin[e];
        for (uint32_t r = 0; r < a.count; r++) {
            const uint32_t i = place_of(a.route.data + r * a.route.stride, a.top, e);
            if (i < a.top)
                a.pairs[to++] = r * a.top + i;
        }
    }
}

/* A thread a number: the row's experts by ascending id, whatever order the route has them in. */
KERNEL(add_experts, struct args_add_experts, 128, 4)
{
    const uint64_t each = (a.n + 127) / 128, r = block_index() / each;
    const uint64_t column = block_index() % each * 128 + thread_index();
    if (column >= a.n)
        return;
    const float *route = a.route.data + r * a.route.stride;
    float sum = 0, last = -1;
    for (uint32_t taken = 0; taken < a.top; taken++) {
        uint32_t next = a.top;
        for (uint32_t i = 0; i < a.top; i++)
            if (route[i] > last && (next == a.top || route[i] < route[next]) && route[i] < (float)a.experts &&
                route[i] == (float)(uint32_t)route[i])
                next = i;
        if (next == a.top)
            break;
        last = route[next];
        sum = fmaf(route[a.top + next], a.down[(r * a.top + next) * a.n + column], sum);
    }
    a.sum.data[r * a.sum.stride + column] = sum;
    if (a.scale != 1)
        sum = sum * a.scale;
    if (a.residual.data)
        sum = a.residual.data[r * a.residual.stride + column] + sum;
    a.out.data[r * a.out.stride + column] = sum;
}

/* out = residual + sigmoid(gate) * branch. */
KERNEL(add_branch, struct args_add_branch, 128, 4)
{
    const uint64_t each = (a.n + 127) / 128, r = block_index() / each;
    const uint64_t i = block_index() % each * 128 + thread_index();
    if (i >= a.n)
        return;
    const float gate = 1.0f / (1.0f + num_exp(-a.gate.data[r * a.gate.stride]));
    a.out.data[r * a.out.stride + i] =
        a.residual.data[r * a.residual.stride + i] + gate * a.branch.data[r * a.branch.stride + i];
}
