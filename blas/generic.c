/* SPDX-License-Identifier: Apache-2.0 */
/* The definition of every result (NUMBERS.md) as plain C: read this to know what a kernel computes. It is compiled twice,
 * once for any CPU and once with the fma instruction, since fmaf as a function costs 20 times as much; both are the table
 * "generic" and give the same bits. */
#include "kernels.h"
#include "numbers.h"

static float weight_f32(const void *panel, size_t row, size_t k)
{
    return ((const float *)panel)[panel_index_float(TENSOR_F32, row, k)];
}

static float weight_bf16(const void *panel, size_t row, size_t k)
{
    return float_of_bf16(((const uint16_t *)panel)[panel_index_float(TENSOR_BF16, row, k)]);
}

static float weight_f16(const void *panel, size_t row, size_t k)
{
    return float_of_f16(((const uint16_t *)panel)[panel_index_float(TENSOR_F16, row, k)]);
}

static inline __attribute__((always_inline)) void dot_float(enum tensor_type type,
                                                            float weight(const void *, size_t, size_t), float *y,
                                                            size_t y_stride, const void *panels, size_t n_panels,
                                                            size_t k, const struct blas_rows *x, size_t m)
{
    for (size_t p = 0; p < n_panels; p++) {
        const uint8_t *panel = (const uint8_t *)panels + p * panel_bytes(type, k);
        for (size_t i = 0; i < m; i++)
            for (size_t row = 0; row < PANEL_ROWS; row++) {
                float sum = 0;
                for (size_t from = 0; from < k; from += DOT_BLOCK) {
                    size_t to = k - from < DOT_BLOCK ? k : from + DOT_BLOCK;
                    float acc = 0;
                    for (size_t j = from; j < to; j++)
                        acc = fmaf(weight(panel, row, j), x->f[i * x->f_stride + j], acc);
                    sum = from ? sum + acc : acc;
                }
                y[i * y_stride + p * PANEL_ROWS + row] = sum;
            }
    }
}

static void dot_f32_generic(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                            const struct blas_rows *x, size_t m)
{
    dot_float(TENSOR_F32, weight_f32, y, y_stride, panels, n_panels, k, x, m);
}

static void dot_bf16_generic(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                             const struct blas_rows *x, size_t m)
{
    dot_float(TENSOR_BF16, weight_bf16, y, y_stride, panels, n_panels, k, x, m);
}

static void dot_f16_generic(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                            const struct blas_rows *x, size_t m)
{
    dot_float(TENSOR_F16, weight_f16, y, y_stride, panels, n_panels, k, x, m);
}

/* A group of a row of a block times its activations' integers. */
static inline float group_product(enum tensor_type type, const uint8_t *block, size_t groups, size_t row, size_t g,
                                  const int8_t *q)
{
    int isum[GROUP / HALF] = {0};
    for (size_t j = 0; j < GROUP; j++)
        isum[j / HALF] += block_integer(type, block, groups, row, g * GROUP + j) * q[j];
    if (type == TENSOR_Q4)
        return (float)(q4_scale_of(block, row, 2 * g) * isum[0] + q4_scale_of(block, row, 2 * g + 1) * isum[1]);
    return (float)(isum[0] + isum[1]) * block_scale_of(type, block, row, g);
}

/* One chain: a row of a block times a block of activations. */
static inline float block_chain(enum tensor_type type, const uint8_t *block, size_t groups, size_t row, const int8_t *q,
                                const float *scale)
{
    float acc = 0;
    for (size_t g = 0; g < groups; g++)
        acc = fmaf(group_product(type, block, groups, row, g, q + g * GROUP), scale[g], acc);
    return acc;
}

static inline __attribute__((always_inline)) void dot_quantised(enum tensor_type type, float *y, size_t y_stride,
                                                                const void *panels, size_t n_panels, size_t k,
                                                                const struct blas_rows *x, size_t m)
{
    size_t k32 = round_up(k, GROUP), blocks = (k + DOT_BLOCK - 1) / DOT_BLOCK;
    for (size_t p = 0; p < n_panels; p++) {
        const uint8_t *panel = (const uint8_t *)panels + p * panel_bytes(type, k);
        for (size_t i = 0; i < m; i++)
            for (size_t row = 0; row < PANEL_ROWS; row++) {
                float sum = 0;
                for (size_t b = 0; b < blocks; b++) {
                    size_t groups, offset = panel_block(type, k, b, &groups);
                    float acc = block_chain(type, panel + offset, groups, row, x->q + i * k32 + b * DOT_BLOCK,
                                            x->scale + i * (k32 / GROUP) + b * BLOCK_GROUPS);
                    sum = b ? sum + acc : acc;
                }
                y[i * y_stride + p * PANEL_ROWS + row] = type == TENSOR_Q4 ? sum * q4_row_scale_of(panel, row) : sum;
            }
    }
}

static void dot_q8_generic(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                           const struct blas_rows *x, size_t m)
{
    dot_quantised(TENSOR_Q8, y, y_stride, panels, n_panels, k, x, m);
}

static void dot_q4_generic(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                           const struct blas_rows *x, size_t m)
{
    dot_quantised(TENSOR_Q4, y, y_stride, panels, n_panels, k, x, m);
}

static void dot_mxfp4_generic(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                              const struct blas_rows *x, size_t m)
{
    dot_quantised(TENSOR_MXFP4, y, y_stride, panels, n_panels, k, x, m);
}

static void quantise_generic(int8_t *q, float *scale, int32_t *sum, const float *x, size_t k)
{
    const size_t groups = (k + GROUP - 1) / GROUP;
    for (size_t g = 0; g < groups; g++) {
        size_t n = k - g * GROUP < GROUP ? k - g * GROUP : GROUP;
        float largest = 0;
        for (size_t j = 0; j < n; j++) {
            float a = fabsf(x[g * GROUP + j]);
            largest = a > largest || isnan(a) ? a : largest;
        }
        float step = !isfinite(largest) ? NAN : largest < 0x1p-100f ? 0.0f : largest / 127.0f;
        int total[GROUP / HALF][2] = {0};
        for (size_t j = 0; j < GROUP; j++) {
            int integer = 0;
            if (j < n && step > 0) /* |x / step| <= 127: the sum with the magic number rounds as rint does */
                integer = (int)(x[g * GROUP + j] / step + ROUND_MAGIC - ROUND_MAGIC);
            q[g * GROUP + j] = (int8_t)integer;
            total[j / HALF][j / 2 % 2] += integer;
        }
        scale[g] = step;
        sum[g] = words_of(total[0][0], total[0][1]);
        sum[groups + g] = words_of(total[1][0], total[1][1]);
    }
}

/* The second half of the tree of 64. */
static float tree_64(float p[64])
{
    for (size_t s = 32; s; s /= 2)
        for (size_t i = 0; i < s; i++)
            p[i] = p[i] + p[i + s];
    return p[0];
}

static void rms_norm_generic(float *y, const float *x, const float *weight, size_t n, float epsilon)
{
    float p[64] = {0};
    for (size_t i = 0; i < n; i++)
        p[i % 64] = fmaf(x[i], x[i], p[i % 64]);
    float r = 1.0f / sqrtf(tree_64(p) / (float)n + epsilon);
    for (size_t i = 0; i < n; i++)
        y[i] = (x[i] * r) * weight[i];
}

static void rotate_generic(float *x, const float *cosine, const float *sine, size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        float a = x[i], b = x[i + pairs];
        x[i] = fmaf(a, cosine[i], -(b * sine[i]));
        x[i + pairs] = fmaf(b, cosine[i], a * sine[i]);
    }
}

static void gate_silu_generic(float *y, const float *gate, const float *up, size_t n, float limit)
{
    (void)limit;
    for (size_t i = 0; i < n; i++)
        y[i] = num_silu(gate[i]) * up[i];
}

static void gate_gelu_generic(float *y, const float *gate, const float *up, size_t n, float limit)
{
    (void)limit;
    for (size_t i = 0; i < n; i++)
        y[i] = num_gelu(gate[i]) * up[i];
}

static void gate_clamped_generic(float *y, const float *gate, const float *up, size_t n, float limit)
{
    for (size_t i = 0; i < n; i++)
        y[i] = num_clamped(gate[i], up[i], limit);
}

static void soft_cap_generic(float *x, size_t n, float cap)
{
    for (size_t i = 0; i < n; i++)
        x[i] = cap * num_tanh(x[i] / cap);
}

static bool kv_store_f32_generic(void *kv, size_t position, const float *key, const float *value, size_t head_dim)
{
    float *to = kv;
    bool finite = true;
    for (size_t d = 0; d < head_dim; d++) {
        to[kv_key_index(head_dim, position, d)] = key[d];
        to[kv_value_index(head_dim, position, d)] = value[d];
        finite = finite && isfinite(key[d]) && isfinite(value[d]);
    }
    return finite;
}

static bool kv_store_f16_generic(void *kv, size_t position, const float *key, const float *value, size_t head_dim)
{
    uint16_t *to = kv;
    bool finite = true;
    for (size_t d = 0; d < head_dim; d++) {
        uint16_t k = f16_of_float(key[d]), v = f16_of_float(value[d]);
        to[kv_key_index(head_dim, position, d)] = k;
        to[kv_value_index(head_dim, position, d)] = v;
        finite = finite && (k & 0x7c00) != 0x7c00 && (v & 0x7c00) != 0x7c00;
    }
    return finite;
}

static float kv_f32(const void *kv, size_t index)
{
    return ((const float *)kv)[index];
}

static float kv_f16(const void *kv, size_t index)
{
    return float_of_f16(((const uint16_t *)kv)[index]);
}

static inline __attribute__((always_inline)) void attend_head(float *max, float *sum, float *value,
                                                              const struct attend_block *b, const float *q,
                                                              float number(const void *, size_t))
{
    float e[KV_BLOCK] = {0}; /* scores, then exponentials; +0 where a position is not seen */
    float largest = -INFINITY;
    for (size_t j = b->first; j < b->last; j++) {
        float acc = 0;
        for (size_t d = 0; d < b->head_dim; d++)
            acc = fmaf(number(b->kv, kv_key_index(b->head_dim, j, d)), q[d], acc);
        e[j] = acc * b->scale;
        if (b->cap > 0)
            e[j] = b->cap * num_tanh(e[j] / b->cap);
        largest = e[j] > largest ? e[j] : largest;
    }
    for (size_t j = b->first; j < b->last; j++)
        e[j] = num_exp(e[j] - largest);
    for (size_t d = 0; d < b->head_dim; d++) {
        float acc = 0;
        for (size_t j = b->first; j < b->last; j++)
            acc = fmaf(e[j], number(b->kv, kv_value_index(b->head_dim, j, d)), acc);
        value[d] = acc;
    }
    *max = largest;
    *sum = tree_64(e);
}

static void attend_f32_generic(const struct attend_sum *out, const struct attend_block *b)
{
    for (size_t h = 0; h < b->heads; h++)
        attend_head(out->max + h, out->sum + h, out->value + h * kv_value_stride(b->head_dim), b,
                    b->q + h * b->q_stride, kv_f32);
}

static void attend_f16_generic(const struct attend_sum *out, const struct attend_block *b)
{
    for (size_t h = 0; h < b->heads; h++)
        attend_head(out->max + h, out->sum + h, out->value + h * kv_value_stride(b->head_dim), b,
                    b->q + h * b->q_stride, kv_f16);
}

static void attend_join_generic(const struct attend_sum *sum, const struct attend_sum *block, size_t heads,
                                size_t head_dim)
{
    for (size_t h = 0; h < heads; h++) {
        float *to = sum->value + h * kv_value_stride(head_dim);
        const float *from = block->value + h * kv_value_stride(head_dim);
        float m = sum->max[h] > block->max[h] ? sum->max[h] : block->max[h];
        float a = num_exp(sum->max[h] - m), b = num_exp(block->max[h] - m);
        sum->max[h] = m;
        sum->sum[h] = fmaf(block->sum[h], b, sum->sum[h] * a);
        for (size_t d = 0; d < head_dim; d++)
            to[d] = fmaf(from[d], b, to[d] * a);
    }
}

static void log_sum_generic(float *largest, float *sum, const float *x, size_t n)
{
    float m = x[0], p[64] = {0};
    for (size_t i = 1; i < n; i++)
        m = x[i] > m ? x[i] : m;
    for (size_t i = 0; i < n; i++)
        p[i % 64] = p[i % 64] + num_exp(x[i] - m);
    *largest = m;
    *sum = tree_64(p);
}

static bool usable_generic(void)
{
#ifdef __FMA__
    return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx");
#else
    return true;
#endif
}

#ifdef __FMA__
const struct blas_kernels blas_generic_fma = {
#else
const struct blas_kernels blas_generic = {
#endif
    .name = "generic",
    .usable = usable_generic,
    .dot = {dot_f32_generic, dot_bf16_generic, dot_f16_generic, dot_q8_generic, dot_q4_generic, dot_mxfp4_generic},
    .quantise = quantise_generic,
    .rms_norm = rms_norm_generic,
    .rotate = rotate_generic,
    .gate = {gate_silu_generic, gate_gelu_generic, gate_clamped_generic},
    .soft_cap = soft_cap_generic,
    .kv_store = {kv_store_f32_generic, kv_store_f16_generic},
    .attend = {attend_f32_generic, attend_f16_generic},
    .attend_join = attend_join_generic,
    .log_sum = log_sum_generic,
};
