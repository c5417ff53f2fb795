/* SPDX-License-Identifier: Apache-2.0 */
/* Where every number of a matrix and of a KV block lies; part of the format, and the one header besides types.h that blas
 * takes from this room. The packer and every kernel call these functions: one formula,
 * one place. FORMAT.md ("Weights") and NUMBERS.md say why the order is this one.
 *
 * A matrix [rows][k] is cut into panels of 16 output rows; a panel runs along k, in blocks of 256:
 *
 *   f32        [k][16]                                    64 bytes a k
 *   f16        [k][16]                                    32 bytes a k
 *   bf16       [k/2][16][2]   pairs of k                  64 bytes a pair: one shift or one mask widens 16 rows
 *   q8, block  scales [groups][16] binary16, padded to 64 bytes, then [k/4][16][4] bytes of w + 128
 *   q4, block  scales [k/16][16] int8, padded likewise, then [k/8][16][4] bytes of codes: k-line 2i in the low,
 *              2i + 1 in the high four bits. Before the panel's first block a head of 64 bytes: [16] binary16, then zeros
 *   mxfp4      weights as q4's, no head, scales [groups][16] bytes: E8M0; and a code is E2M1
 *
 * A k-line is 64 bytes: 4 consecutive k of 16 rows. Rows are padded to 16 and k to 32; padding is weight 0 (stored 128,
 * 8 or 0) and scale 0. The last block of a panel is as long as its groups need. */
#ifndef IMAGE_PANEL_H
#define IMAGE_PANEL_H

#include "types.h"

enum {
    PANEL_ROWS = 16,    /* output rows of a panel */
    GROUP = 32,         /* k that share a scale, of activations too */
    HALF = 16,          /* k that share one in q4: half a group */
    DOT_BLOCK = 256,    /* k of one chain of fma (NUMBERS.md, "Dot products") */
    BLOCK_GROUPS = DOT_BLOCK / GROUP,
    KV_BLOCK = 64,      /* positions of a KV block (NUMBERS.md, "Attention") */
    Q8_ZERO = 128,      /* stored byte of weight 0 */
    Q4_ZERO = 8,        /* code of weight 0 */
    Q4_HEAD_BYTES = 64, /* before the blocks of a panel: a scale for each row */
    MXFP4_SCALE_MAX = 232, /* largest scale byte: 2^(232 - 128) (NUMBERS.md says why) */
};

static inline uint64_t panel_count(uint64_t rows)
{
    return (rows + PANEL_ROWS - 1) / PANEL_ROWS;
}

/* True for the types whose activations are rounded to 8 bits. */
static inline bool type_quantised(enum tensor_type type)
{
    return type == TENSOR_Q8 || type == TENSOR_Q4 || type == TENSOR_MXFP4;
}

/* True for the quantised types that keep two weights in a byte. */
static inline bool type_nibbles(enum tensor_type type)
{
    return type == TENSOR_Q4 || type == TENSOR_MXFP4;
}

/* Scales that a row has for each group of a block. */
static inline size_t type_scales(enum tensor_type type)
{
    return type == TENSOR_Q4 ? GROUP / HALF : 1;
}

/* Byte offset, in a quantised block, of scale `scale` of a row: that of a group, of q4 that of half a group. */
static inline size_t block_scale(enum tensor_type type, size_t row, size_t scale)
{
    return (scale * PANEL_ROWS + row) * (type == TENSOR_Q8 ? 2 : 1);
}

/* Bytes of the scales before a block of `groups` groups. */
static inline size_t block_scale_bytes(enum tensor_type type, size_t groups)
{
    return round_up(block_scale(type, 0, groups * type_scales(type)), 64);
}

/* Bytes of a quantised block of `groups` groups. */
static inline size_t block_bytes(enum tensor_type type, size_t groups)
{
    return block_scale_bytes(type, groups) + groups * GROUP * PANEL_ROWS / (type_nibbles(type) ? 2 : 1);
}

/* Bytes of a panel before its first block. */
static inline size_t panel_head_bytes(enum tensor_type type)
{
    return type == TENSOR_Q4 ? Q4_HEAD_BYTES : 0;
}

/* Bytes of one panel of k columns; a multiple of 64. k is at most 2^28, so nothing overflows. */
static inline uint64_t panel_bytes(enum tensor_type type, uint64_t k)
{
    uint64_t groups = (k + GROUP - 1) / GROUP;
    if (!type_quantised(type))
        return groups * GROUP * PANEL_ROWS * (type == TENSOR_F32 ? 4 : 2);
    uint64_t blocks = groups / BLOCK_GROUPS, rest = groups % BLOCK_GROUPS;
    return panel_head_bytes(type) + blocks * block_bytes(type, BLOCK_GROUPS) + (rest ? block_bytes(type, rest) : 0);
}

/* Index, in numbers, of (row, k) in a panel of floats. */
static inline size_t panel_index_float(enum tensor_type type, size_t row, size_t k)
{
    if (type == TENSOR_BF16)
        return k / 2 * (2 * PANEL_ROWS) + row * 2 + k % 2;
    return k * PANEL_ROWS + row;
}

/* Byte offset of block `block` in a panel of k columns, and the groups that it has. */
static inline size_t panel_block(enum tensor_type type, size_t k, size_t block, size_t *groups)
{
    size_t all = (k + GROUP - 1) / GROUP, before = block * BLOCK_GROUPS;
    *groups = all - before < BLOCK_GROUPS ? all - before : BLOCK_GROUPS;
    return panel_head_bytes(type) + block * block_bytes(type, BLOCK_GROUPS);
}

/* Byte offset, in a quantised block, of the weight (row, k), k counted from the block's first; for four bits the byte that
 * holds it, in its high ones where bit 2 of k is set. */
static inline size_t block_weight(enum tensor_type type, size_t groups, size_t row, size_t k)
{
    size_t line = type_nibbles(type) ? k / 8 : k / 4;
    return block_scale_bytes(type, groups) + line * 64 + row * 4 + k % 4;
}

/* A KV block holds 64 positions of one layer. For each KV head, one after the other:
 *   K  [64/16][head_dim][16]   panels of 16 positions, as weights lie
 *   V  [64][value stride]      rows, padded to 16 numbers; the padding stays zero */
static inline size_t kv_value_stride(size_t head_dim)
{
    return round_up(head_dim, 16);
}

/* Numbers of one KV head of a block. */
static inline size_t kv_head_numbers(size_t head_dim)
{
    return KV_BLOCK * (head_dim + kv_value_stride(head_dim));
}

/* Index, in numbers, of K (position in the block, d) and of V, from the start of the head. */
static inline size_t kv_key_index(size_t head_dim, size_t position, size_t d)
{
    return position / PANEL_ROWS * (head_dim * PANEL_ROWS) + d * PANEL_ROWS + position % PANEL_ROWS;
}

static inline size_t kv_value_index(size_t head_dim, size_t position, size_t d)
{
    return KV_BLOCK * head_dim + position * kv_value_stride(head_dim) + d;
}

#endif
