/* SPDX-License-Identifier: Apache-2.0 */
/* What products of all types share: tiles of rows, weights as they are stored, and what follows a product. Included by
 * kernels.cu. */

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

/* Four stored bytes of q8 as signed ones. */
DEVICE uint32_t signed_q8(uint32_t stored)
{
    return stored ^ 0x80808080u;
}

/* The eight codes of a word as signed bytes: the word's low four bits of each byte, and the high ones. The codes'
 * integers are the 16 bytes of `table`. */
DEVICE void signed_nibbles(uint32_t stored, const uint32_t table[4], uint32_t out[2])
{
    const uint32_t low = stored & 0x77777777u, eight = stored >> 3 & 0x11111111u; /* pick_bytes takes four of each */
    uint32_t halves[2];
    UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        const uint32_t high = pick_bytes(0xff00u, 0, eight >> 16 * i);
        halves[i] = (pick_bytes(table[0], table[1], low >> 16 * i) & ~high) |
                    (pick_bytes(table[2], table[3], low >> 16 * i) & high);
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
