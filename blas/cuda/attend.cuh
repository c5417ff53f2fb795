/* SPDX-License-Identifier: Apache-2.0 */
/* Attention (NUMBERS.md): a warp a query head, the places of a KV block being 2 * lane and 2 * lane + 1, and the
 * numbers of a value likewise. Included by kernels.cu.
 *
 * The running result of a head stands in its row of `out`; each lane reads what it wrote itself. */

struct pair {
    float even, odd;
};

/* Two neighbouring numbers of a KV head; `index` is even. */
DEVICE struct pair kv_pair(bool f16, const uint8_t *head, uint64_t index)
{
    struct pair v;
    if (f16) {
        const uint32_t both = *(const uint32_t *)(const void *)(head + index * 2);
        v.even = widen_f16((uint16_t)both);
        v.odd = widen_f16((uint16_t)(both >> 16));
    } else {
        const uint64_t both = *(const uint64_t *)(const void *)(head + index * 4);
        v.even = float_of_bits((uint32_t)both);
        v.odd = float_of_bits((uint32_t)(both >> 32));
    }
    return v;
}

/* What a warp works on. */
struct attend_head {
    const float *q;
    const uint8_t *kv; /* the KV head's part of the block */
    uint32_t first, last; /* places of the block that are seen */
    float *e;          /* [64], shared: exponentials, for all lanes */
    uint32_t n;        /* head_dim */
};

/* Maximum, sum and exponentials of a block. */
DEVICE void attend_scores(const struct args_attend *a, const struct attend_head *h, float *max, float *sum)
{
    const uint32_t lane = thread_index() % 32, place = 2 * lane;
    const uint64_t at = kv_key_index(h->n, place, 0);
    const bool seen[2] = {place >= h->first && place < h->last, place + 1 >= h->first && place + 1 < h->last};
    float score[2] = {0, 0}, largest = -INFINITE;
    for (uint32_t d = 0; d < h->n; d++) {
        const struct pair key = kv_pair(a->kv.f16, h->kv, at + d * PANEL_ROWS);
        score[0] = fmaf(key.even, h->q[d], score[0]);
        score[1] = fmaf(key.odd, h->q[d], score[1]);
    }
    UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        score[i] = score[i] * a->scale;
        if (a->cap > 0)
            score[i] = a->cap * num_tanh(score[i] / a->cap);
        if (seen[i])
            largest = score[i] > largest ? score[i] : largest;
    }
    for (uint32_t step = 16; step; step /= 2) {
        const float other = xor_float(largest, step);
        largest = other > largest ? other : largest;
    }
    UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        score[i] = seen[i] ? num_exp(score[i] - largest) : 0.0f;
        h->e[place + i] = score[i];
    }
    *max = largest;
    *sum = tree_64(score[0], score[1]);
    sync_warp(); /* e is there for all lanes */
}

/* Numbers d and d + 1 of the block's value. */
DEVICE struct pair attend_value(const struct args_attend *a, const struct attend_head *h, uint32_t d)
{
    const uint64_t stride = kv_value_stride(h->n), from = kv_value_index(h->n, 0, d);
    struct pair acc;
    acc.even = acc.odd = 0;
    for (uint32_t j = h->first; j < h->last; j++) {
        const struct pair value = kv_pair(a->kv.f16, h->kv, from + j * stride);
        acc.even = fmaf(h->e[j], value.even, acc.even);
        acc.odd = fmaf(h->e[j], value.odd, acc.odd);
    }
    return acc;
}

/* The running maximum and sum, and the factors by which a block joins. */
struct running {
    float max, sum;
    float old, now; /* e^(M - M'), e^(m - M') */
};

DEVICE void join(struct running *r, float max, float sum)
{
    const float larger = r->max > max ? r->max : max;
    r->old = num_exp(r->max - larger);
    r->now = num_exp(max - larger);
    r->max = larger;
    r->sum = fmaf(sum, r->now, r->sum * r->old);
}

/* The sink joins, and the sum divides. */
DEVICE void attend_finish(const struct args_attend *a, uint32_t head, struct running *r, float *out)
{
    const uint32_t lane = thread_index() % 32;
    if (a->sinks)
        join(r, a->sinks[head], 1.0f);
    const float inverse = 1.0f / r->sum;
    for (uint32_t d = 2 * lane; d < a->kv.head_dim; d += 64) {
        UNROLL for (uint32_t i = 0; i < 2; i++)
        {
            if (d + i < a->kv.head_dim) {
                const float value = a->sinks ? fmaf(0.0f, r->now, out[d + i] * r->old) : out[d + i];
                out[d + i] = value * inverse;
            }
        }
    }
}

/* The KV blocks that a row sees. */
struct seen {
    uint64_t first, count; /* positions [first, count) */
    uint32_t from, to;     /* blocks */
};

DEVICE struct seen seen_by(const struct args_attend *a, const struct step_row *row)
{
    struct seen s;
    s.count = (uint64_t)row->position + 1;
    s.first = a->kv.window && s.count > a->kv.window ? s.count - a->kv.window : 0;
    s.from = (uint32_t)(s.first / KV_BLOCK);
    s.to = (uint32_t)((s.count + KV_BLOCK - 1) / KV_BLOCK);
    return s;
}

KERNEL(attend, struct args_attend, 128, 4)
{
    SHARED float exponentials[ATTEND_HEADS][KV_BLOCK];
    const uint32_t warp = thread_index() / 32, lane = thread_index() % 32, group = a.heads / a.kv.heads;
    const uint32_t chunks = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
    const uint64_t index = block_index() / a.parts;
    const uint32_t part = block_index() % a.parts, in_group = (uint32_t)(index % chunks) * ATTEND_HEADS + warp;
    const uint32_t kv = (uint32_t)(index / chunks % a.kv.heads), head = kv * group + in_group;
    const uint64_t r = index / chunks / a.kv.heads;
    if (in_group >= group)
        return;
    const struct step_row row = a.rows[r];
    const struct seen s = seen_by(&a, &row);
    const uint32_t each = (s.to - s.from + a.parts - 1) / a.parts, from = s.from + part * each;
    const uint32_t to = s.to - s.from < (part + 1) * each ? s.to : from + each;
    float *out = a.out.data + r * a.out.stride + head * (uint64_t)a.kv.head_dim;
    struct attend_head h;
    struct running run = {0, 0, 0, 0};
    h.q = a.q.data + r * a.q.stride + head * (uint64_t)a.kv.head_dim;
    h.e = exponentials[warp];
    h.n = a.kv.head_dim;
    for (uint32_t b = from; b < to; b++) {
        const uint64_t place = (uint64_t)b * KV_BLOCK;
        float max, sum;
        h.kv = kv_head(&a.kv, &row, a.tables, b, kv);
        h.first = s.first > place ? (uint32_t)(s.first - place) : 0;
        h.last = s.count - place < KV_BLOCK ? (uint32_t)(s.count - place) : KV_BLOCK;
        attend_scores(&a, &h, &max, &sum);
        float *kept = a.kept;
        if (a.parts > 1) {
            kept += ((r * a.heads + head) * a.blocks_max + (b - s.from)) * (2 + h.n);
            kept[0] = max;
            kept[1] = sum;
            kept += 2;
        } else if (b == from) {
            run.max = max;
            run.sum = sum;
        } else
            join(&run, max, sum);
        for (uint32_t d = 2 * lane; d < h.n; d += 64) {
            const struct pair value = attend_value(&a, &h, d);
            const float both[2] = {value.even, value.odd};
            UNROLL for (uint32_t i = 0; i < 2; i++)
            {
                if (d + i >= h.n)
                    continue;
                if (a.parts > 1)
                    kept[d + i] = both[i];
                else
                    out[d + i] = b == from ? both[i] : fmaf(both[i], run.now, out[d + i] * run.old);
            }
        }
        sync_warp(); /* before e is written anew */
    }
    if (a.parts == 1)
        attend_finish(&a, head, &run, out);
}

/* A warp a row and head. */
KERNEL(attend_join, struct args_attend, 128, 4)
{
    const uint64_t index = (uint64_t)block_index() * 4 + thread_index() / 32, r = index / a.heads;
    const uint32_t lane = thread_index() % 32, head = (uint32_t)(index % a.heads), n = a.kv.head_dim;
    if (r >= a.count)
        return;
    const struct step_row row = a.rows[r];
    const struct seen s = seen_by(&a, &row);
    const float *kept = a.kept + index * a.blocks_max * (2 + n);
    float *out = a.out.data + r * a.out.stride + head * (uint64_t)n;
    struct running run = {0, 0, 0, 0};
    for (uint32_t b = 0; b < s.to - s.from; b++, kept += 2 + n) {
        if (b)
            join(&run, kept[0], kept[1]);
        else {
            run.max = kept[0];
            run.sum = kept[1];
        }
        for (uint32_t d = 2 * lane; d < n; d += 64) {
            UNROLL for (uint32_t i = 0; i < 2; i++)
            {
                if (d + i < n)
                    out[d + i] = b ? fmaf(kept[2 + d + i], run.now, out[d + i] * run.old) : kept[2 + d + i];
            }
        }
    }
    attend_finish(&a, head, &run, out);
}
