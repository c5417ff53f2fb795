/* SPDX-License-Identifier: Apache-2.0 */
/* Random operands for the tests and benchmarks of blas, made from a seed, in memory that ends at a
 * guard page: a read or write behind it faults, a write before it is found by guarded_intact. */
#ifndef TESTS_BLAS_CASES_H
#define TESTS_BLAS_CASES_H

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"
#include "numbers.h"

/* ---- random numbers: splitmix64 ---- */

struct rng {
    uint64_t state;
};

static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* From 0 to n - 1. */
static inline size_t rng_below(struct rng *r, size_t n)
{
    return rng_next(r) % n;
}

/* From low to high, both included. */
static inline size_t rng_from(struct rng *r, size_t low, size_t high)
{
    return low + rng_below(r, high - low + 1);
}

/* Between -1 and 1, small ones more often than large ones. */
static inline float rng_float(struct rng *r)
{
    float a = (float)(int32_t)rng_next(r) * 0x1p-31f, b = (float)(int32_t)rng_next(r) * 0x1p-31f;
    return a * b;
}

/* Zeros, subnormals, tiny and large numbers; no sum of products of a few thousand overflows. */
static inline float rng_extreme(struct rng *r)
{
    static const float numbers[] = {
        0.0f, -0.0f, 0x1p-149f, -0x1.8p-140f,   0x1p-126f, 1e-30f,   0x1p50f,  -1e15f,
        1.0f, -1.0f, 127.0f,    0x1.fffffep-1f, 65504.f,   0x1p-24f, 0x1p-15f, -3e-5f};
    return numbers[rng_below(r, sizeof numbers / sizeof *numbers)];
}

/* A share of extremes of 0 to 8 in 8. */
static inline float rng_mixed(struct rng *r, size_t share)
{
    return rng_below(r, 8) < share ? rng_extreme(r) : rng_float(r);
}

/* ---- memory that is watched ---- */

enum { GUARD_FILL = 0xa5 };

struct guarded {
    uint8_t *map; /* whole pages, filled; then one that may not be touched */
    size_t map_bytes;
    void *p; /* the last bytes before that page */
    size_t bytes;
};

static inline struct guarded guarded_make(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct guarded g = {.map_bytes = round_up(bytes + 64, page), .bytes = bytes};
    g.map =
        mmap(NULL, g.map_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + g.map_bytes, page, PROT_NONE))
        abort();
    memset(g.map, GUARD_FILL, g.map_bytes);
    g.p = g.map + g.map_bytes - bytes;
    return g;
}

static inline void guarded_free(struct guarded *g)
{
    munmap(g->map, g->map_bytes + (size_t)sysconf(_SC_PAGESIZE));
}

/* Is all before the bytes as it was made? */
static inline bool guarded_intact(const struct guarded *g)
{
    for (size_t i = 0; i < g->map_bytes - g->bytes; i++)
        if (g->map[i] != GUARD_FILL)
            return false;
    return true;
}

/* n floats, of which a share is extreme. */
static inline struct guarded guarded_floats(struct rng *r, size_t n, size_t share)
{
    struct guarded g = guarded_make(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        ((float *)g.p)[i] = rng_mixed(r, share);
    return g;
}

/* ---- products ---- */

/* A scale: not negative, finite; some are 0 or subnormal. */
static inline uint16_t random_scale(struct rng *r, size_t share)
{
    if (rng_below(r, 8) < share)
        return (uint16_t)(rng_below(r, 4) ? rng_below(r, 0x400) : rng_below(r, 2) * 0x7bff);
    return f16_of_float(0.01f + 0.1f * fabsf(rng_float(r)));
}

/* The same for mxfp4; the smallest two are subnormal. Largest ones times all would overflow. */
static inline uint8_t random_power(struct rng *r, size_t share)
{
    static const uint8_t edges[] = {0, 1, 2, 3, 126, 127, 128, 180};
    if (rng_below(r, 8) < share)
        return rng_below(r, 4) ? edges[rng_below(r, sizeof edges)] : MXFP4_SCALE_MAX;
    return (uint8_t)rng_from(r, 118, 124);
}

/* Fills one block of a quantised panel: `numbers` k of it are weights, the rest is padding. */
static inline void random_block(struct rng *r, enum tensor_type type, uint8_t *block, size_t groups,
                                size_t numbers, size_t share)
{
    const int zero = type == TENSOR_Q8 ? Q8_ZERO : type == TENSOR_Q4 ? Q4_ZERO : 0;
    const int low = type == TENSOR_Q8 ? 1 : type == TENSOR_Q4 ? 0 : 7; /* of mxfp4: 6 */
    const int limit = type == TENSOR_Q8 ? 255 : 15;                    /* of mxfp4: -6 */
    const size_t columns = GROUP / type_scales(type);                  /* under one scale */
    memset(block, 0, block_bytes(type, groups));
    for (size_t s = 0; s < groups * type_scales(type); s++)
        for (size_t row = 0; row < PANEL_ROWS; row++) {
            uint8_t *at = block + block_scale(type, row, s);
            if (type == TENSOR_MXFP4) {
                *at = random_power(r, share);
            } else if (type == TENSOR_Q4) { /* -128 too, though no writer makes it */
                *at = (uint8_t)(rng_below(r, 8) < share ? 127 + rng_below(r, 3) : rng_below(r, 256));
            } else {
                uint16_t scale = random_scale(r, share);
                memcpy(at, &scale, sizeof scale);
            }
            size_t kind = rng_below(r, 8);
            for (size_t k = s * columns; k < (s + 1) * columns; k++) {
                int w = (int)rng_from(r, type == TENSOR_Q8 ? 1 : 0, (size_t)limit);
                if (kind < share) /* a group of zeros, or of the largest ones */
                    w = kind == 0 ? zero : kind == 1 ? limit : low;
                if (k >= numbers)
                    w = zero;
                uint8_t *byte = block + block_weight(type, groups, row, k);
                *byte = (uint8_t)(type_nibbles(type) && k & 4 ? *byte | w << 4 : *byte | w);
            }
        }
}

/* Fills one panel of k columns. */
static inline void random_panel(struct rng *r, enum tensor_type type, uint8_t *panel, size_t k,
                                size_t share)
{
    if (type_quantised(type)) {
        memset(panel, 0, panel_head_bytes(type));
        for (size_t row = 0; panel_head_bytes(type) && row < PANEL_ROWS; row++) {
            uint16_t scale = random_scale(r, share);
            memcpy(panel + row * sizeof scale, &scale, sizeof scale);
        }
        for (size_t b = 0; b * DOT_BLOCK < k; b++) {
            size_t groups, offset = panel_block(type, k, b, &groups);
            random_block(r, type, panel + offset, groups, k - b * DOT_BLOCK, share);
        }
        return;
    }
    memset(panel, 0, panel_bytes(type, k));
    for (size_t row = 0; row < PANEL_ROWS; row++)
        for (size_t j = 0; j < k; j++) {
            size_t at = panel_index_float(type, row, j);
            float w = rng_mixed(r, share);
            if (type == TENSOR_F32)
                ((float *)(void *)panel)[at] = w;
            else if (type == TENSOR_BF16)
                ((uint16_t *)(void *)panel)[at] = bf16_of_float(w);
            else
                ((uint16_t *)(void *)panel)[at] = f16_of_float(fabsf(w) < 65504.0f ? w : 65504.0f);
        }
}

/* A product's operands; every array ends at a guard page. */
struct dot_case {
    enum tensor_type type;
    size_t m, n_panels, k, y_stride;
    struct guarded panels, f, q, scale, sum;
    struct blas_rows x;
};

static inline void dot_case_rows(struct dot_case *c, struct rng *r, size_t share)
{
    const size_t k32 = round_up(c->k, GROUP), groups = k32 / GROUP;
    c->x.f_stride = c->k + rng_below(r, 9);
    c->f = guarded_floats(r, (c->m - 1) * c->x.f_stride + c->k, share);
    c->q = guarded_make(c->m * k32);
    c->scale = guarded_make(c->m * groups * sizeof(float));
    c->sum = guarded_make(c->m * 2 * groups * sizeof(int32_t));
    int8_t *q = c->q.p;
    float *scale = c->scale.p;
    int32_t *sum = c->sum.p;
    for (size_t g = 0; g < c->m * groups; g++) {
        size_t first = g % groups * GROUP, kind = rng_below(r, 8);
        int32_t *halves = sum + g / groups * 2 * groups + g % groups;
        scale[g] = fabsf(rng_float(r)) * (kind < share ? 0x1p-100f : 1.0f);
        int totals[2][2] = {{0, 0}, {0, 0}};
        for (size_t j = 0; j < GROUP; j++) {
            int v = (int)rng_below(r, 255) - 127;
            if (kind < share) /* a group of one of the ends, or of zeros */
                v = kind == 0 ? 127 : kind == 1 ? -127 : kind == 2 ? 0 : v;
            v = first + j < c->k ? v : 0;
            q[g * GROUP + j] = (int8_t)v;
            totals[j / HALF][j / 2 % 2] += v;
        }
        halves[0] = words_of(totals[0][0], totals[0][1]);
        halves[groups] = words_of(totals[1][0], totals[1][1]);
        if (kind == 2 && share)
            scale[g] = 0;
    }
    c->x = (struct blas_rows){
        .f = c->f.p, .f_stride = c->x.f_stride, .q = q, .scale = scale, .sum = sum};
}

static inline struct dot_case dot_case_make(struct rng *r, enum tensor_type type, size_t m,
                                            size_t n_panels, size_t k, size_t share)
{
    struct dot_case c = {.type = type, .m = m, .n_panels = n_panels, .k = k};
    c.y_stride = n_panels * PANEL_ROWS + rng_below(r, 5);
    c.panels = guarded_make(n_panels * panel_bytes(type, k));
    for (size_t p = 0; p < n_panels; p++)
        random_panel(r, type, (uint8_t *)c.panels.p + p * panel_bytes(type, k), k, share);
    dot_case_rows(&c, r, share);
    return c;
}

static inline void dot_case_free(struct dot_case *c)
{
    struct guarded *all[] = {&c->panels, &c->f, &c->q, &c->scale, &c->sum};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        guarded_free(all[i]);
}

/* Numbers of a result with this case's stride. */
static inline size_t dot_case_numbers(const struct dot_case *c)
{
    return (c->m - 1) * c->y_stride + c->n_panels * PANEL_ROWS;
}

static inline void dot_case_run(const struct dot_case *c, const struct blas_kernels *kernels,
                                float *y)
{
    kernels->dot[c->type](y, c->y_stride, c->panels.p, c->n_panels, c->k, &c->x, c->m);
}

#endif
