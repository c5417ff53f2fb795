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

/* The scores of a lane's two places become exponentials, of places that are seen; all lanes get maximum and sum. */
DEVICE void attend_weigh(const struct args_attend *a, uint32_t first, uint32_t last, float score[2], float *max,
                         float *sum)
{
    const uint32_t place = thread_index() % 32 * 2;
    const bool seen[2] = {place >= first && place < last, place + 1 >= first && place + 1 < last};
    float largest = -INFINITE;
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
    UNROLL for (uint32_t i = 0; i < 2; i++) score[i] = seen[i] ? num_exp(score[i] - largest) : 0.0f;
    *max = largest;
    *sum = tree_64(score[0], score[1]);
}

/* Maximum, sum and exponentials of a block. */
DEVICE void attend_scores(const struct args_attend *a, const struct attend_head *h, float *max, float *sum)
{
    const uint32_t place = thread_index() % 32 * 2;
    const uint64_t at = kv_key_index(h->n, place, 0);
    float score[2] = {0, 0};
    for (uint32_t d = 0; d < h->n; d++) {
        const struct pair key = kv_pair(a->kv.f16, h->kv, at + d * PANEL_ROWS);
        score[0] = fmaf(key.even, h->q[d], score[0]);
        score[1] = fmaf(key.odd, h->q[d], score[1]);
    }
    attend_weigh(a, h->first, h->last, score, max, sum);
    h->e[place] = score[0];
    h->e[place + 1] = score[1];
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
            if (lane == 0) {
                kept[0] = max;
                kept[1] = sum;
            }
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

/* ---- many rows of one sequence ---- */

/* What a warp has of ATTEND_ROWS rows of a head, which read keys and values together. */
struct attend_rows {
    const float *q[ATTEND_ROWS];
    float *out[ATTEND_ROWS];
    struct seen seen[ATTEND_ROWS];
    struct running run[ATTEND_ROWS];
    uint32_t first[ATTEND_ROWS], last[ATTEND_ROWS]; /* places of the block that a row sees; none: first is last */
    float *e; /* [64][ATTEND_ROWS], shared: exponentials */
    float *x; /* [32][ATTEND_ROWS], shared: numbers of q, a part of them at a time */
};

/* Four numbers of shared memory, one for each row. */
DEVICE void four_floats(const float *at, float out[ATTEND_ROWS])
{
    const struct words4 words = *(const struct words4 *)(const void *)at;
    UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++) out[i] = float_of_bits(words.w[i]);
}

/* The block's exponentials, and how it joins what each row has so far. `b`: the block. */
DEVICE void rows_scores(const struct args_attend *a, struct attend_rows *r, const uint8_t *kv, uint32_t b,
                        bool f16)
{
    const uint32_t lane = thread_index() % 32, n = a->kv.head_dim;
    const uint8_t *keys = kv + kv_key_index(n, 2 * lane, 0) * (f16 ? 2 : 4);
    float score[ATTEND_ROWS][2];
    UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++) score[i][0] = score[i][1] = 0;
    for (uint32_t from = 0; from < n; from += 32) {
        const uint32_t count = n - from < 32 ? n - from : 32;
        if (from)
            sync_warp(); /* before x is written anew */
        UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++) r->x[lane * ATTEND_ROWS + i] =
            lane < count ? r->q[i][from + lane] : 0.0f;
        sync_warp(); /* x is there for all lanes */
        for (uint32_t d = 0; d < count; d++) {
            const struct pair key = kv_pair(f16, keys, d * PANEL_ROWS);
            float x[ATTEND_ROWS];
            four_floats(r->x + d * ATTEND_ROWS, x);
            UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
            {
                score[i][0] = fmaf(key.even, x[i], score[i][0]);
                score[i][1] = fmaf(key.odd, x[i], score[i][1]);
            }
        }
        keys += 32 * PANEL_ROWS * (f16 ? 2 : 4);
    }
    UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
    {
        float max, sum;
        if (r->first[i] < r->last[i]) {
            attend_weigh(a, r->first[i], r->last[i], score[i], &max, &sum);
            if (b == r->seen[i].from) {
                r->run[i].max = max;
                r->run[i].sum = sum;
            } else
                join(&r->run[i], max, sum);
        }
        r->e[2 * lane * ATTEND_ROWS + i] = score[i][0];
        r->e[(2 * lane + 1) * ATTEND_ROWS + i] = score[i][1];
    }
    sync_warp(); /* e is there for all lanes */
}

/* Two numbers of the values of places [low, high), times the rows' exponentials; `all`: each row sees each place. */
DEVICE void rows_sum(const struct attend_rows *r, const uint8_t *values, uint64_t stride, uint32_t low, uint32_t high,
                     bool f16, bool all, float acc[ATTEND_ROWS][2])
{
    for (uint32_t j = low; j < high; j++) {
        const struct pair value = kv_pair(f16, values, 0);
        float e[ATTEND_ROWS];
        four_floats(r->e + j * ATTEND_ROWS, e);
        values += stride * (f16 ? 2 : 4);
        UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
        {
            if (all || (j >= r->first[i] && j < r->last[i])) {
                acc[i][0] = fmaf(e[i], value.even, acc[i][0]);
                acc[i][1] = fmaf(e[i], value.odd, acc[i][1]);
            }
        }
    }
}

/* The block's values, and the rows' results with them. */
DEVICE void rows_values(const struct args_attend *a, const struct attend_rows *r, const uint8_t *kv, uint32_t b,
                        bool f16)
{
    const uint32_t n = a->kv.head_dim;
    const uint64_t stride = kv_value_stride(n);
    uint32_t low = KV_BLOCK, high = 0;
    bool all = true; /* rows see all of the block */
    UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
    {
        all = all && r->first[i] == 0 && r->last[i] == KV_BLOCK;
        if (r->first[i] < r->last[i]) {
            low = r->first[i] < low ? r->first[i] : low;
            high = r->last[i] > high ? r->last[i] : high;
        }
    }
    for (uint32_t d = thread_index() % 32 * 2; d < n; d += 64) {
        const uint8_t *values = kv + (kv_value_index(n, 0, d) + low * stride) * (f16 ? 2 : 4);
        float acc[ATTEND_ROWS][2];
        UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++) acc[i][0] = acc[i][1] = 0;
        if (all)
            rows_sum(r, values, stride, 0, KV_BLOCK, f16, true, acc);
        else
            rows_sum(r, values, stride, low, high, f16, false, acc);
        UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
        {
            UNROLL for (uint32_t c = 0; c < 2; c++)
            {
                float *to = r->out[i] + d + c;
                if (r->first[i] < r->last[i] && d + c < n)
                    *to = b == r->seen[i].from ? acc[i][c] : fmaf(acc[i][c], r->run[i].now, *to * r->run[i].old);
            }
        }
    }
}

/* `f16` is known where it is compiled, so that places lie a constant apart. */
DEVICE void rows_block(const struct args_attend *a, struct attend_rows *r, const uint8_t *kv, uint32_t b,
                       bool f16)
{
    rows_scores(a, r, kv, b, f16);
    rows_values(a, r, kv, b, f16); /* e is written anew behind the barriers of the next scores */
}

/* A warp ATTEND_ROWS rows and a head; all rows are of one sequence. */
KERNEL(attend_rows, struct args_attend, 128, 3)
{
    SHARED __attribute__((aligned(16))) float exponentials[ATTEND_HEADS][KV_BLOCK * ATTEND_ROWS];
    SHARED __attribute__((aligned(16))) float numbers[ATTEND_HEADS][32 * ATTEND_ROWS];
    const uint32_t warp = thread_index() / 32, group = a.heads / a.kv.heads;
    const uint32_t chunks = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
    const uint32_t in_group = block_index() % chunks * ATTEND_HEADS + warp, kv = block_index() / chunks % a.kv.heads;
    const uint32_t first_row = block_index() / chunks / a.kv.heads * ATTEND_ROWS, head = kv * group + in_group;
    if (in_group >= group)
        return;
    const struct step_row sequence = a.rows[first_row];
    struct attend_rows r;
    uint32_t from = UINT32_MAX, to = 0;
    r.e = exponentials[warp];
    r.x = numbers[warp];
    UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++) /* a row behind the last is the last, and sees nothing */
    {
        const bool there = first_row + i < a.count;
        const uint64_t row = there ? first_row + i : a.count - 1;
        const struct step_row place = a.rows[row];
        r.q[i] = a.q.data + row * a.q.stride + head * (uint64_t)a.kv.head_dim;
        r.out[i] = a.out.data + row * a.out.stride + head * (uint64_t)a.kv.head_dim;
        r.seen[i] = seen_by(&a, &place);
        if (!there)
            r.seen[i].first = r.seen[i].count;
        from = r.seen[i].from < from ? r.seen[i].from : from;
        to = r.seen[i].to > to ? r.seen[i].to : to;
    }
    for (uint32_t b = from; b < to; b++) {
        const uint8_t *block = kv_head(&a.kv, &sequence, a.tables, b, kv);
        const uint64_t place = (uint64_t)b * KV_BLOCK;
        UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
        {
            const struct seen s = r.seen[i];
            r.first[i] = s.first > place ? (s.first - place < KV_BLOCK ? (uint32_t)(s.first - place) : KV_BLOCK) : 0;
            r.last[i] = s.count > place ? (s.count - place < KV_BLOCK ? (uint32_t)(s.count - place) : KV_BLOCK) : 0;
        }
        if (a.kv.f16)
            rows_block(&a, &r, block, b, true);
        else
            rows_block(&a, &r, block, b, false);
    }
    UNROLL for (uint32_t i = 0; i < ATTEND_ROWS; i++)
    {
        if (first_row + i < a.count)
            attend_finish(&a, head, &r.run[i], r.out[i]);
    }
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
