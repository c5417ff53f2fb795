/* SPDX-License-Identifier: Apache-2.0 */
/* Products of panels of floats with rows of activations, M rows at a time; included by kernels.cu. Four lanes share a
 * block of 256 along k, four of its 16 rows each, and read 16 bytes at a time; each chain stays in one lane. The sums
 * of blocks meet in shared memory, where one thread for each number adds them upwards:
 *
 *     item (panel, block) -> lanes 4i .. 4i + 3: chains of M rows -> sums[panel][block][row of x][16] -> finish */

/* Where the rows of x of a tile are. */
struct tile_x {
    const float *row[8];
};

/* k of a load of a lane: 16 bytes of four rows, or 8 of f16. */
DEVICE uint32_t load_k(enum tensor_type type)
{
    return type == TENSOR_BF16 ? 2 : 1;
}

/* `loads` loads of four rows of a block, from k0 on. Panels are padded to 32 k: whole loads lie within. */
DEVICE void load_floats(enum tensor_type type, const uint8_t *block, uint32_t k0, uint32_t quad, uint32_t loads,
                        uint32_t w[8][4])
{
    UNROLL for (uint32_t i = 0; i < loads; i++)
    {
        if (type == TENSOR_F16) {
            const uint64_t two = *(const uint64_t *)(const void *)(block + (k0 + i) * 32 + quad * 8);
            UNROLL for (uint32_t r = 0; r < 4; r++) w[i][r] = (uint32_t)(two >> 16 * r & 0xffff);
        } else {
            const struct words4 v = load_once(block + (k0 / load_k(type) + i) * 64 + quad * 16);
            UNROLL for (uint32_t r = 0; r < 4; r++) w[i][r] = v.w[r];
        }
    }
}

/* The chains of four rows go on by what was loaded from k0 on, of n. */
DEVICE void chain_floats(enum tensor_type type, const uint32_t w[8][4], uint32_t k0, uint32_t n, uint32_t loads,
                         const float *const x[8], int m, float acc[8][4])
{
    UNROLL for (uint32_t i = 0; i < loads * load_k(type); i++)
    {
        const uint32_t load = i / load_k(type), half = i % load_k(type);
        if (k0 + i < n) {
            UNROLL for (int j = 0; j < m; j++)
            {
                const float xk = x[j][k0 + i];
                UNROLL for (uint32_t r = 0; r < 4; r++)
                {
                    const uint32_t bits = type != TENSOR_BF16 ? w[load][r]
                                          : half              ? w[load][r] & 0xffff0000u
                                                              : w[load][r] << 16;
                    const float weight = type == TENSOR_F16 ? widen_f16((uint16_t)bits) : float_of_bits(bits);
                    acc[j][r] = fmaf(weight, xk, acc[j][r]);
                }
            }
        }
    }
}

/* One item: the chains of a block of a panel into sums[row of x][16]. While one half of what is loaded is used, the
 * other is on its way. */
DEVICE void dot_item(const struct args_dot *a, enum tensor_type type, const uint8_t *panel, uint64_t b, uint32_t quad,
                     const struct tile_x *x, int m, float *sums)
{
    const uint32_t n = (uint32_t)(a->k - b * DOT_BLOCK < DOT_BLOCK ? a->k - b * DOT_BLOCK : DOT_BLOCK);
    const uint32_t loads = m == 8 ? 4 / load_k(type) : 8, step = loads * load_k(type);
    const uint8_t *block = panel + b * DOT_BLOCK * PANEL_ROWS * (type == TENSOR_F32 ? 4 : 2);
    const float *rows[8];
    uint32_t w[2][8][4];
    float acc[8][4];
    UNROLL for (int j = 0; j < m; j++)
    {
        rows[j] = x->row[j] + b * DOT_BLOCK;
        UNROLL for (uint32_t r = 0; r < 4; r++) acc[j][r] = 0;
    }
    load_floats(type, block, 0, quad, loads, w[0]);
    for (uint32_t k = 0; k < n; k += 2 * step) {
        if (k + step < n)
            load_floats(type, block, k + step, quad, loads, w[1]);
        chain_floats(type, w[0], k, n, loads, rows, m, acc);
        if (k + step >= n)
            break;
        if (k + 2 * step < n)
            load_floats(type, block, k + 2 * step, quad, loads, w[0]);
        chain_floats(type, w[1], k + step, n, loads, rows, m, acc);
    }
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
    UNROLL for (int i = 0; i < m; i++) x.row[i] =
        a->x.data + tile_row(a, &t, (uint32_t)i) / a->divisor * a->x.stride;
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
        if (row < t.count)
            finish(a, &t, tile_row(a, &t, row), first + p, row16, at[0],
                   unit == 2 ? at[n * numbers] : 0);
    }
}

#define FLOAT_KERNELS(name, type)                                         \
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

FLOAT_KERNELS(f32, TENSOR_F32)
FLOAT_KERNELS(bf16, TENSOR_BF16)
FLOAT_KERNELS(f16, TENSOR_F16)
