/* SPDX-License-Identifier: Apache-2.0 */
/* Products of panels with rows of activations; included by kernels.cu.
 *
 * dot_TYPE_M is for few rows, M at a time: it is bound by reading the panels. Four lanes share a block of 256 along k,
 * four of its 16 rows each, and read 16 bytes at a time; each chain stays in one lane. The sums of blocks meet in
 * shared memory, where one thread for each number adds them upwards:
 *
 *     item (panel, block) -> lanes 4i .. 4i + 3: chains of M rows -> sums[panel][block][row of x][16] -> finish
 *
 * mma_TYPE is for many rows: a group of 32 along k is one mma, the weights being its 16 rows, which panels have as
 * well. A warp has two panels and 32 rows of x; blocks of 256 come one after another. */

/* The tile of rows that this block works on; `rows` is its most. */
DEVICE struct tile tile_of(const struct args_dot *a, uint32_t index, uint32_t rows)
{
    struct tile t;
    if (a->tile)
        return a->tile[index];
    t.expert = 0;
    t.from = index * rows;
    t.count = a->count - t.from < rows ? a->count - t.from : rows;
    return t;
}

/* Row i of a tile: where it is among the results; rows behind the last are the last. */
DEVICE uint32_t tile_row(const struct args_dot *a, const struct tile *t, uint32_t i)
{
    const uint32_t entry = t->from + (i < t->count ? i : t->count - 1);
    return a->pairs ? a->pairs[entry] : entry;
}

/* NUMBERS.md, "Gates". */
DEVICE float gated(int gate, float g, float up, float limit)
{
    if (gate == GATE_SILU)
        return num_silu(g) * up;
    if (gate == GATE_GELU)
        return num_gelu(g) * up;
    return num_clamped(g, up, limit);
}

/* NUMBERS.md, "Linear ops": what follows the product y of row `row16` of a panel; `up` is that of the next panel. */
DEVICE void finish(const struct args_dot *a, const struct tile *t, uint32_t row, uint32_t panel, uint32_t row16,
                   float y, float up)
{
    const uint32_t column = (a->gate >= 0 ? panel / 2 : panel) * PANEL_ROWS + row16;
    if (a->bias) {
        const float *bias = a->bias + t->expert * a->bias_stride + panel * PANEL_ROWS + row16;
        y = y + bias[0];
        if (a->gate >= 0)
            up = up + bias[PANEL_ROWS];
    }
    if (a->gate >= 0)
        y = gated(a->gate, y, up, a->limit);
    if (a->scale != 1)
        y = y * a->scale;
    if (a->cap > 0)
        y = a->cap * num_tanh(y / a->cap);
    if (column >= a->width)
        return;
    if (a->residual.data)
        y = a->residual.data[row * a->residual.stride + column] + y;
    a->out.data[row * a->out.stride + column] = y;
}

/* ---- weights as they are read ---- */

/* The scale of (row, group) of a quantised block. */
DEVICE float scale_of(enum tensor_type type, const uint8_t *block, uint32_t row, uint32_t group)
{
    const uint8_t *at = block + block_scale(type, row, group);
    return type == TENSOR_MXFP4 ? float_of_e8m0(*at) : widen_f16(*(const uint16_t *)(const void *)at);
}

/* Four stored bytes of q8 as signed ones. */
DEVICE uint32_t signed_q8(uint32_t stored)
{
    return stored ^ 0x80808080u;
}

/* The eight codes of a word as signed bytes: the word's low four bits of each byte, and the high ones. The codes'
 * integers are the 16 bytes of `table`. */
DEVICE void signed_nibbles(uint32_t stored, const uint32_t table[4], uint32_t out[2])
{
    uint32_t halves[2];
    UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        const uint32_t codes = stored >> 16 * i, high = pick_bytes(0xff00u, 0, codes >> 3 & 0x1111u);
        halves[i] = (pick_bytes(table[0], table[1], codes & 0x7777u) & ~high) |
                    (pick_bytes(table[2], table[3], codes & 0x7777u) & high);
    }
    out[0] = pick_bytes(halves[0], halves[1], 0x6420u);
    out[1] = pick_bytes(halves[0], halves[1], 0x7531u);
}

/* Four integers as the bytes of a word, the first lowest. */
DEVICE uint32_t bytes_of(int a, int b, int c, int d)
{
    return (uint32_t)(a & 0xff) | (uint32_t)(b & 0xff) << 8 | (uint32_t)(c & 0xff) << 16 | (uint32_t)(d & 0xff) << 24;
}

/* The 16 integers of a type's codes; constants, whatever the kernel. */
DEVICE void code_table(enum tensor_type type, uint32_t table[4])
{
    UNROLL for (unsigned i = 0; i < 4; i++)
    {
        if (type == TENSOR_Q4)
            table[i] = bytes_of(integer_of_q4(4 * i), integer_of_q4(4 * i + 1), integer_of_q4(4 * i + 2),
                                integer_of_q4(4 * i + 3));
        else
            table[i] = bytes_of(integer_of_e2m1(4 * i), integer_of_e2m1(4 * i + 1), integer_of_e2m1(4 * i + 2),
                                integer_of_e2m1(4 * i + 3));
    }
}

/* What a row of a panel of q4 multiplies its sum of blocks by; 1 for the others. */
DEVICE float row_scaled(enum tensor_type type, const uint8_t *panel, uint32_t row, float sum)
{
    return type == TENSOR_Q4 ? sum * widen_f16(((const uint16_t *)(const void *)panel)[row]) : sum;
}

/* A group of a row times its activations, the integers summed over both halves; before the activations' scale. */
DEVICE float group_product(enum tensor_type type, const uint8_t *block, uint32_t row, uint32_t g, int32_t first,
                           int32_t second)
{
    if (type == TENSOR_Q4)
        return (float)(q4_scale_of(block, row, 2 * g) * first + q4_scale_of(block, row, 2 * g + 1) * second);
    return (float)(first + second) * scale_of(type, block, row, g);
}

/* ---- few rows ---- */

/* Where the rows of x of a tile are. */
struct tile_x {
    const float *f[8];
    const int8_t *q[8];
    const float *scale[8];
};

DEVICE void find_rows(const struct args_dot *a, const struct tile *t, bool quantised, int m, struct tile_x *x)
{
    const uint64_t groups = (a->k + GROUP - 1) / GROUP;
    UNROLL for (int i = 0; i < m; i++)
    {
        const uint64_t row = tile_row(a, t, (uint32_t)i) / a->divisor;
        if (quantised) {
            x->q[i] = a->q + row * groups * GROUP;
            x->scale[i] = a->q_scale + row * groups;
        } else
            x->f[i] = a->x.data + row * a->x.stride;
    }
}

/* The chains of four rows of block b of a panel of floats; `quad` says which. */
DEVICE void chain_floats(enum tensor_type type, const uint8_t *panel, uint64_t k, uint64_t b, uint32_t quad,
                         const struct tile_x *x, int m, float acc[8][4])
{
    const uint32_t n = (uint32_t)(k - b * DOT_BLOCK < DOT_BLOCK ? k - b * DOT_BLOCK : DOT_BLOCK);
    const uint32_t pair = type == TENSOR_BF16 ? 2 : 1; /* k of a load */
    const uint8_t *block = panel + b * DOT_BLOCK * PANEL_ROWS * (type == TENSOR_F32 ? 4 : 2);
    for (uint32_t k0 = 0; k0 < n; k0 += 8 * pair) { /* panels are padded to 32 k: whole loads lie within */
        uint32_t w[8][4];
        UNROLL for (uint32_t i = 0; i < 8; i++)
        {
            if (type == TENSOR_F16) {
                const uint64_t two = *(const uint64_t *)(const void *)(block + (k0 + i) * 32 + quad * 8);
                UNROLL for (uint32_t r = 0; r < 4; r++) w[i][r] = (uint32_t)(two >> 16 * r & 0xffff);
            } else {
                const struct words4 v = load_once(block + (k0 / pair + i) * 64 + quad * 16);
                UNROLL for (uint32_t r = 0; r < 4; r++) w[i][r] = v.w[r];
            }
        }
        UNROLL for (uint32_t i = 0; i < 8; i++)
        {
            UNROLL for (uint32_t half = 0; half < pair; half++)
            {
                const uint32_t at = k0 + i * pair + half;
                if (at < n) {
                    UNROLL for (int j = 0; j < m; j++)
                    {
                        const float xk = x->f[j][b * DOT_BLOCK + at];
                        UNROLL for (uint32_t r = 0; r < 4; r++)
                        {
                            const uint32_t bits = type == TENSOR_BF16 ? (half ? w[i][r] & 0xffff0000u : w[i][r] << 16)
                                                                      : w[i][r];
                            const float weight = type == TENSOR_F16 ? widen_f16((uint16_t)bits) : float_of_bits(bits);
                            acc[j][r] = fmaf(weight, xk, acc[j][r]);
                        }
                    }
                }
            }
        }
    }
}

/* The same of a quantised block: a group of 32 at a time, whose sums of integers are exact. */
DEVICE void chain_integers(enum tensor_type type, const uint8_t *panel, uint64_t k, uint64_t b, uint32_t quad,
                           const struct tile_x *x, int m, float acc[8][4])
{
    size_t groups;
    const uint8_t *block = panel + panel_block(type, k, b, &groups);
    const uint8_t *lines = block + block_scale_bytes(type, groups) + quad * 16;
    const uint32_t loads = type == TENSOR_Q8 ? 8 : 4; /* of a group */
    uint32_t table[4];
    code_table(type, table);
    for (uint32_t g = 0; g < groups; g++) {
        uint32_t w[8][4]; /* line of 4 k, row */
        UNROLL for (uint32_t i = 0; i < loads; i++)
        {
            const struct words4 v = load_once(lines + (g * loads + i) * 64);
            UNROLL for (uint32_t r = 0; r < 4; r++)
            {
                uint32_t both[2];
                if (type == TENSOR_Q8)
                    w[i][r] = signed_q8(v.w[r]);
                else {
                    signed_nibbles(v.w[r], table, both);
                    w[2 * i][r] = both[0];
                    w[2 * i + 1][r] = both[1];
                }
            }
        }
        UNROLL for (int j = 0; j < m; j++)
        {
            const uint64_t group = b * BLOCK_GROUPS + g;
            const struct words4 *q = (const struct words4 *)(const void *)(x->q[j] + group * GROUP);
            const struct words4 q0 = q[0], q1 = q[1];
            const float as = x->scale[j][group];
            UNROLL for (uint32_t r = 0; r < 4; r++)
            {
                int32_t first = 0, second = 0;
                UNROLL for (uint32_t i = 0; i < 4; i++)
                {
                    first = dot4(w[i][r], q0.w[i], first);
                    second = dot4(w[4 + i][r], q1.w[i], second);
                }
                acc[j][r] = fmaf(group_product(type, block, quad * 4 + r, g, first, second), as, acc[j][r]);
            }
        }
    }
}

DEVICE bool is_quantised(enum tensor_type type)
{
    return type == TENSOR_Q8 || type == TENSOR_Q4 || type == TENSOR_MXFP4;
}

/* One item: the chains of a block of a panel into sums[row of x][16]. */
DEVICE void dot_item(const struct args_dot *a, enum tensor_type type, const uint8_t *panel, uint64_t b, uint32_t quad,
                     const struct tile_x *x, int m, float *sums)
{
    float acc[8][4];
    UNROLL for (int j = 0; j < m; j++)
    {
        UNROLL for (uint32_t r = 0; r < 4; r++) acc[j][r] = 0;
    }
    if (is_quantised(type))
        chain_integers(type, panel, a->k, b, quad, x, m, acc);
    else
        chain_floats(type, panel, a->k, b, quad, x, m, acc);
    UNROLL for (int j = 0; j < m; j++)
    {
        UNROLL for (uint32_t r = 0; r < 4; r++) sums[j * PANEL_ROWS + quad * 4 + r] = acc[j][r];
    }
}

/* A block of `span` panels and up to m rows. Blocks along k come in rounds of as many as `sums` has room for; more than
 * one round means two panels at most, and so two numbers for each thread. */
DEVICE void dot_rows(const struct args_dot *a, enum tensor_type type, int m, float *sums /* [DOT_ITEMS * 16] */)
{
    const uint32_t thread = thread_index(), numbers = (uint32_t)m * PANEL_ROWS,
                   first = block_index() / a->tiles * a->span;
    const uint32_t panels = a->n_panels - first < a->span ? a->n_panels - first : a->span;
    const uint64_t blocks = (a->k + DOT_BLOCK - 1) / DOT_BLOCK, round = DOT_ITEMS / (uint32_t)m / a->span;
    const struct tile t = tile_of(a, block_index() % a->tiles, (uint32_t)m);
    if (!t.count)
        return;
    const uint8_t *weights = a->panels + t.expert * a->bank_stride + first * a->panel_bytes;
    struct tile_x x;
    uint32_t n = 0; /* blocks of a round */
    float running[2] = {0, 0};
    find_rows(a, &t, is_quantised(type), m, &x);
    for (uint64_t from = 0; from < blocks; from += n) {
        n = (uint32_t)(blocks - from < round ? blocks - from : round);
        for (uint32_t item = thread / 4; item < panels * n; item += 32)
            dot_item(a, type, weights + item / n * a->panel_bytes, from + item % n, thread % 4, &x, m,
                     sums + item * numbers);
        sync_block();
        for (uint32_t i = thread; i < panels * numbers; i += 128) {
            float *at = sums + i / numbers * n * numbers + i % numbers;
            float sum = from ? (i < 128 ? running[0] : running[1]) + at[0] : at[0];
            for (uint32_t b = 1; b < n; b++)
                sum = sum + at[b * numbers];
            at[0] = sum;
            if (i < 128)
                running[0] = sum;
            else
                running[1] = sum;
        }
        sync_block();
    }
    const uint32_t unit = a->gate >= 0 ? 2 : 1;
    for (uint32_t i = thread; i < panels / unit * numbers; i += 128) {
        const uint32_t p = i / numbers * unit, row = i % numbers / PANEL_ROWS, row16 = i % PANEL_ROWS;
        const float *at = sums + p * n * numbers + i % numbers;
        const uint8_t *panel = weights + p * a->panel_bytes;
        if (row < t.count)
            finish(a, &t, tile_row(a, &t, row), first + p, row16, row_scaled(type, panel, row16, at[0]),
                   unit == 2 ? row_scaled(type, panel + a->panel_bytes, row16, at[n * numbers]) : 0);
    }
}

#define DOT_KERNELS(name, type)                                         \
    KERNEL(dot_##name##_1, struct args_dot, 128, 4)                     \
    {                                                                   \
        SHARED __attribute__((aligned(16))) float sums[DOT_ITEMS * 16]; \
        dot_rows(&a, type, 1, sums);                                    \
    }                                                                   \
    KERNEL(dot_##name##_4, struct args_dot, 128, 3)                     \
    {                                                                   \
        SHARED __attribute__((aligned(16))) float sums[DOT_ITEMS * 16]; \
        dot_rows(&a, type, 4, sums);                                    \
    }                                                                   \
    KERNEL(dot_##name##_8, struct args_dot, 128, 2)                     \
    {                                                                   \
        SHARED __attribute__((aligned(16))) float sums[DOT_ITEMS * 16]; \
        dot_rows(&a, type, 8, sums);                                    \
    }

DOT_KERNELS(f32, TENSOR_F32)
DOT_KERNELS(bf16, TENSOR_BF16)
DOT_KERNELS(f16, TENSOR_F16)
DOT_KERNELS(q8, TENSOR_Q8)
DOT_KERNELS(q4, TENSOR_Q4)
DOT_KERNELS(mxfp4, TENSOR_MXFP4)

/* ---- many rows ---- */

/* A warp's place in the products of mma: rows 8 * octet + ... of x are its columns. Lines of 4 k are put on the mma's k
 * as suits both sides, since a group's sum of integers has no order: k 4 * part + 0 .. 3 is line 2 * part, and 16 more
 * is line 2 * part + 1, part being lane % 4. */
struct mma_place {
    uint32_t group, part; /* lane / 4, lane % 4 */
    const uint8_t *panel[2];
    const int8_t *q[4];     /* of row 8 * octet + group */
    const float *scale[4][2]; /* of rows 8 * octet + 2 * part, + 1 */
};

/* The weights of rows `group` and `group` + 8 in a group of 32 k, as the fragment a. */
DEVICE void load_a(enum tensor_type type, const uint8_t *lines, uint32_t g, const struct mma_place *at,
                   const uint32_t table[4], uint32_t a[4])
{
    UNROLL for (uint32_t half = 0; half < 2; half++)
    {
        const uint32_t row = at->group + 8 * half;
        if (type == TENSOR_Q8) {
            const uint8_t *from = lines + (g * 8 + at->part * 2) * 64 + row * 4;
            a[half] = signed_q8(*(const uint32_t *)(const void *)from);
            a[half + 2] = signed_q8(*(const uint32_t *)(const void *)(from + 64));
        } else {
            uint32_t both[2];
            signed_nibbles(*(const uint32_t *)(const void *)(lines + (g * 4 + at->part) * 64 + row * 4), table, both);
            a[half] = both[0];
            a[half + 2] = both[1];
        }
    }
}

/* What an mma's sums are times the weights' scales. They began at the bits of 1.5 * 2^23, so that they are floats as
 * they come (NUMBERS.md, "Side doors"). Of q4 the halves have sums of their own, and all is exact. */
#define MMA_ZERO 0x4b400000

DEVICE float mma_product(enum tensor_type type, int32_t sum, int32_t second, const float scales[2])
{
    const float f = float_of_bits((uint32_t)sum);
    if (type == TENSOR_Q4)
        return fmaf(float_of_bits((uint32_t)second) - ROUND_MAGIC, scales[1], (f - ROUND_MAGIC) * scales[0]);
    return fmaf(f, scales[0], -(ROUND_MAGIC * scales[0]));
}

/* The scales of a row in a group: one, or one for each half. */
DEVICE void mma_scales(enum tensor_type type, const uint8_t *block, uint32_t row, uint32_t g, float scales[2])
{
    scales[0] = type == TENSOR_Q4 ? (float)q4_scale_of(block, row, 2 * g) : scale_of(type, block, row, g);
    scales[1] = type == TENSOR_Q4 ? (float)q4_scale_of(block, row, 2 * g + 1) : 0;
}

/* One block of 256: the chains of two panels and four octets into acc. */
DEVICE void mma_block(enum tensor_type type, uint64_t k, uint64_t b, const struct mma_place *at, float acc[2][4][4])
{
    size_t groups, offset = panel_block(type, k, b, &groups), scales = block_scale_bytes(type, groups);
    uint32_t table[4];
    code_table(type, table);
    for (uint32_t g = 0; g < groups; g++) {
        const uint64_t group = b * BLOCK_GROUPS + g;
        uint32_t bs[4][2];
        float as[4][2];
        UNROLL for (uint32_t o = 0; o < 4; o++)
        {
            const uint32_t *q = (const uint32_t *)(const void *)(at->q[o] + group * GROUP + at->part * 8);
            bs[o][0] = q[0];
            bs[o][1] = q[1];
            as[o][0] = at->scale[o][0][group];
            as[o][1] = at->scale[o][1][group];
        }
        UNROLL for (uint32_t p = 0; p < 2; p++)
        {
            const uint8_t *block = at->panel[p] + offset;
            uint32_t w[4];
            float ws[2][2]; /* of rows group and group + 8 */
            mma_scales(type, block, at->group, g, ws[0]);
            mma_scales(type, block, at->group + 8, g, ws[1]);
            load_a(type, block + scales, g, at, table, w);
            UNROLL for (uint32_t o = 0; o < 4; o++)
            {
                int32_t first[4] = {MMA_ZERO, MMA_ZERO, MMA_ZERO, MMA_ZERO};
                int32_t second[4] = {MMA_ZERO, MMA_ZERO, MMA_ZERO, MMA_ZERO};
                if (type == TENSOR_Q4) { /* parts 0 and 1 have the first half's lines, 2 and 3 the second's */
                    const uint32_t low = at->part < 2 ? 0xffffffffu : 0;
                    const uint32_t b0[2] = {bs[o][0] & low, bs[o][1] & low}, b1[2] = {bs[o][0] & ~low, bs[o][1] & ~low};
                    mma_s8(first, w, b0);
                    mma_s8(second, w, b1);
                } else
                    mma_s8(first, w, bs[o]);
                UNROLL for (uint32_t i = 0; i < 4; i++)
                {
                    const float product = mma_product(type, first[i], second[i], ws[i / 2]);
                    acc[p][o][i] = fmaf(product, as[o][i % 2], acc[p][o][i]);
                }
            }
        }
    }
}

/* A block of MMA_PANELS panels and MMA_ROWS rows: two panels for each warp, gate and up where there is a gate. */
DEVICE void mma_rows(const struct args_dot *a, enum tensor_type type)
{
    const uint32_t lane = thread_index() % 32, first = block_index() / a->tiles * MMA_PANELS + thread_index() / 32 * 2;
    const struct tile t = tile_of(a, block_index() % a->tiles, MMA_ROWS);
    const uint64_t groups = (a->k + GROUP - 1) / GROUP, blocks = (a->k + DOT_BLOCK - 1) / DOT_BLOCK;
    struct mma_place at;
    float sum[2][4][4];
    if (!t.count || first >= a->n_panels)
        return;
    at.group = lane / 4;
    at.part = lane % 4;
    UNROLL for (uint32_t p = 0; p < 2; p++) /* a panel behind the last is the last: computed, not kept */
    {
        const uint32_t panel = first + p < a->n_panels ? first + p : first;
        at.panel[p] = a->panels + t.expert * a->bank_stride + panel * a->panel_bytes;
    }
    UNROLL for (uint32_t o = 0; o < 4; o++)
    {
        at.q[o] = a->q + tile_row(a, &t, o * 8 + at.group) / a->divisor * groups * GROUP;
        at.scale[o][0] = a->q_scale + tile_row(a, &t, o * 8 + at.part * 2) / a->divisor * groups;
        at.scale[o][1] = a->q_scale + tile_row(a, &t, o * 8 + at.part * 2 + 1) / a->divisor * groups;
    }
    for (uint64_t b = 0; b < blocks; b++) {
        float acc[2][4][4];
        UNROLL for (uint32_t i = 0; i < 32; i++) acc[i / 16][i / 4 % 4][i % 4] = 0;
        mma_block(type, a->k, b, &at, acc);
        UNROLL for (uint32_t i = 0; i < 32; i++)
        {
            float *to = &sum[i / 16][i / 4 % 4][i % 4];
            *to = b ? *to + acc[i / 16][i / 4 % 4][i % 4] : acc[i / 16][i / 4 % 4][i % 4];
        }
    }
    UNROLL for (uint32_t i = 0; i < 32; i++)
    {
        const uint32_t p = i / 16, o = i / 4 % 4, c = i % 4, x = o * 8 + at.part * 2 + c % 2;
        const bool mine = x < t.count && first + p < a->n_panels && (a->gate < 0 || p == 0);
        const uint32_t row16 = at.group + c / 2 * 8;
        if (mine)
            finish(a, &t, tile_row(a, &t, x), first + p, row16, row_scaled(type, at.panel[p], row16, sum[p][o][c]),
                   row_scaled(type, at.panel[1], row16, sum[1][o][c]));
    }
}

KERNEL(mma_q8, struct args_dot, 128, 2)
{
    mma_rows(&a, TENSOR_Q8);
}

KERNEL(mma_q4, struct args_dot, 128, 2)
{
    mma_rows(&a, TENSOR_Q4);
}

KERNEL(mma_mxfp4, struct args_dot, 128, 2)
{
    mma_rows(&a, TENSOR_MXFP4);
}
