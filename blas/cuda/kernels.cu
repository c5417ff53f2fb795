/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels, in the order of a step. NUMBERS.md defines every bit; the words are those of words.h. A warp is 32
 * lanes; `lane` and `warp` are a thread's place in its block. */
#include "words.h"

#include "args.h"
#include "ops.h"

/* ---- activations to 8 bits ---- */

/* Of a NaN or an infinity a NaN: no product hides it. */
DEVICE float group_scale(float largest)
{
    if (!(largest < INFINITE))
        return INFINITE - INFINITE;
    return largest < 0x1p-100f ? 0.0f : largest / 127.0f;
}

/* The larger one, or the NaN. */
DEVICE float larger_of(float a, float b)
{
    return b > a || b != b ? b : a;
}

/* |x / scale| <= 127: the sum with the magic number rounds as rint does. */
DEVICE int rounded(float x, float scale)
{
    return scale > 0 ? (int)(x / scale + ROUND_MAGIC - ROUND_MAGIC) : 0;
}

/* Eight lanes a group of 32: four numbers each. */
KERNEL(quantise, struct args_quantise, 256, 4)
{
    const uint32_t groups = (uint32_t)((a.k + GROUP - 1) / GROUP), lane = thread_index() % 8;
    const uint64_t item = (uint64_t)block_index() * 32 + thread_index() / 8;
    const uint32_t count = a.pairs ? *a.pair_count : a.count;
    const bool there = item < (uint64_t)count * groups;
    const uint64_t entry = there ? item / groups : 0, row = a.pairs && there ? a.pairs[entry] : entry;
    const uint64_t group = there ? item % groups : 0, first = group * GROUP + lane * 4;
    float x[4], largest = 0;
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        x[i] = there && first + i < a.k ? a.in.data[row * a.in.stride + first + i] : 0.0f;
        largest = larger_of(largest, fabsf(x[i]));
    }
    for (uint32_t step = 1; step < 8; step *= 2) {
        const float other = xor_float(largest, step);
        largest = larger_of(largest, other);
    }
    const float scale = group_scale(largest);
    uint32_t packed = 0;
    UNROLL for (uint32_t i = 0; i < 4; i++) packed |= (uint32_t)(rounded(x[i], scale) & 0xff) << 8 * i;
    if (!there)
        return;
    *(uint32_t *)(void *)(a.q + row * a.q_stride + first) = packed;
    if (lane == 0)
        a.scale[row * a.scale_stride + group] = scale;
}

/* ---- norms ---- */

/* The second half of the tree of 64; place i is lane i / 2's number i % 2. All lanes get the sum: addition commutes. */
DEVICE float tree_64(float even, float odd)
{
    for (uint32_t step = 16; step; step /= 2) {
        even = even + xor_float(even, step);
        odd = odd + xor_float(odd, step);
    }
    return even + odd;
}

/* 1 / sqrt(mean of squares + epsilon), for all lanes of a warp. */
DEVICE float inverse_rms(const float *x, uint64_t n, float epsilon)
{
    const uint32_t lane = thread_index() % 32;
    float even = 0, odd = 0;
    for (uint64_t i = 2 * lane; i < n; i += 64) {
        even = fmaf(x[i], x[i], even);
        if (i + 1 < n)
            odd = fmaf(x[i + 1], x[i + 1], odd);
    }
    return 1.0f / sqrtf(tree_64(even, odd) / (float)n + epsilon);
}

/* A block a row. Each warp sums for itself, so that the block meets once: before `in` may be written. A warp has a
 * group of 32 at a time, which it also leaves rounded to 8 bits for the products that follow. */
KERNEL(norm, struct args_norm, 256, 4)
{
    const uint64_t row = block_index();
    float *in = a.in.data + row * a.in.stride, *out = a.out.data + row * a.out.stride;
    const float r = inverse_rms(in, a.n, a.epsilon);
    sync_block();
    for (uint64_t i = thread_index(); i / GROUP * GROUP < a.n; i += 256) {
        float y = i < a.n ? (in[i] * r) * a.weight[i] : 0.0f, largest;
        if (a.residual.data && i < a.n) {
            in[i] = y;
            y = a.residual.data[row * a.residual.stride + i] + y;
        }
        if (i < a.n)
            out[i] = y;
        if (!a.q)
            continue;
        largest = fabsf(y);
        for (uint32_t step = 16; step; step /= 2) {
            const float other = xor_float(largest, step);
            largest = larger_of(largest, other);
        }
        const float scale = group_scale(largest);
        a.q[row * a.q_stride + i] = (int8_t)rounded(y, scale);
        if (i % GROUP == 0)
            a.scale[row * a.scale_stride + i / GROUP] = scale;
    }
}

/* ---- keys and values ---- */

/* The part of KV head `head` in block `index` of the row's sequence. */
DEVICE uint8_t *kv_head(const struct kv_at *kv, const struct step_row *row, const uint32_t *tables, uint64_t index,
                        uint32_t head)
{
    const uint64_t block = kv->ring ? row->sequence * kv->ring + index % kv->ring : tables[row->table + index];
    return kv->data + block * kv->block_bytes + head * kv_head_numbers(kv->head_dim) * (kv->f16 ? 2 : 4);
}

/* Stores a number in the KV type; false where that has no finite value for it. */
DEVICE bool kv_put(const struct kv_at *kv, uint8_t *head, uint64_t index, float x)
{
    if (kv->f16) {
        const uint16_t h = f16_of_float(x);
        ((uint16_t *)(void *)head)[index] = h;
        return (h & 0x7c00) != 0x7c00;
    }
    ((float *)(void *)head)[index] = x;
    return (float_bits(x) & 0x7f800000) != 0x7f800000;
}

/* A warp a row and head: query heads, then key heads, whose warps store the values too. Lanes hand numbers on through
 * memory, so the warp meets between. */
KERNEL(rope_kv, struct args_rope_kv, 128, 4)
{
    const uint32_t lane = thread_index() % 32, all = a.heads + a.kv.heads, n = a.kv.head_dim;
    const uint64_t item = (uint64_t)block_index() * 4 + thread_index() / 32, r = item / all;
    const uint32_t head = (uint32_t)(item % all), kv = head - a.heads;
    const bool is_key = head >= a.heads;
    if (r >= a.count)
        return;
    float *x = is_key ? a.k.data + r * a.k.stride + kv * (uint64_t)n : a.q.data + r * a.q.stride + head * (uint64_t)n;
    const float *norm = is_key ? a.k_norm : a.q_norm;
    if (norm) {
        const float inverse = inverse_rms(x, n, a.epsilon);
        sync_warp();
        for (uint32_t i = lane; i < n; i += 32)
            x[i] = (x[i] * inverse) * norm[i];
        sync_warp();
    }
    if (a.rope) {
        const float *cosine = a.rope + r * 2 * a.pairs, *sine = cosine + a.pairs;
        for (uint32_t i = lane; i < a.pairs; i += 32) {
            float first = x[i], second = x[i + a.pairs];
            x[i] = fmaf(first, cosine[i], -(second * sine[i]));
            x[i + a.pairs] = fmaf(second, cosine[i], first * sine[i]);
        }
        sync_warp();
    }
    if (!is_key)
        return;
    const struct step_row row = a.rows[r];
    const uint32_t place = row.position % KV_BLOCK;
    uint8_t *to = kv_head(&a.kv, &row, a.tables, row.position / KV_BLOCK, kv);
    const float *value = a.v.data + r * a.v.stride + kv * (uint64_t)n;
    bool finite = true;
    for (uint32_t d = lane; d < n; d += 32) {
        finite = kv_put(&a.kv, to, kv_key_index(n, place, d), x[d]) && finite;
        finite = kv_put(&a.kv, to, kv_value_index(n, place, d), value[d]) && finite;
    }
    if (!finite)
        atomic_least(a.fault, (uint64_t)a.op << 32 | r);
}

#include "dot.cuh"
#include "floats.cuh"
#include "integers.cuh"
#include "attend.cuh"
#include "experts.cuh"
#include "peak.cuh"
