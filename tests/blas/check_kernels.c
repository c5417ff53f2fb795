/* SPDX-License-Identifier: Apache-2.0 */
/* Every table gives the bits of the generic one, in every slot, for odd shapes and extreme numbers,
 * reads nothing behind its operands and writes nothing beyond its results. Inputs come from a seed
 * that a failure names: CHECK_SEED=N repeats a run from there, CHECK_ROUNDS=N is for slow machines. */
#include <inttypes.h>
#include <stdio.h>

#include "cases.h"
#include "../suite.h"

static int rounds(void)
{
    return rounds_of(240);
}

static uint64_t seed_of(int round)
{
    const char *first = getenv("CHECK_SEED");
    return (first ? strtoull(first, NULL, 10) : 0) + (uint64_t)round;
}

/* Table i, or NULL where this CPU cannot run it. */
static const struct blas_kernels *table_usable(int i)
{
    const struct blas_kernels *kernels = blas_table((size_t)i);
    return kernels->usable() ? kernels : NULL;
}

/* Mostly small, sometimes a few hundred; never one kind only. */
static size_t random_size(struct rng *r, size_t most)
{
    static const size_t edges[] = {1,  2,  7,  8,   15,  16,  17,  31,  32,  33,
                                   63, 64, 65, 255, 256, 257, 288, 511, 512, 513};
    size_t n =
        rng_below(r, 3) ? rng_from(r, 1, most) : edges[rng_below(r, sizeof edges / sizeof *edges)];
    return n < most ? n : most;
}

/* The place of the first byte of `got` that is not wanted, -1 of one before it that was written;
 * its end if all is well. */
static long first_wrong(const struct guarded *want, const struct guarded *got)
{
    const uint8_t *w = want->p, *g = got->p;
    size_t at = 0;
    while (at < got->bytes && w[at] == g[at])
        at++;
    return guarded_intact(got) ? (long)at : -1;
}

/* `format` and what follows say how to repeat it. */
#define ASSERT_SAME(want, got, format, ...)                                                        \
    do {                                                                                           \
        long at_ = first_wrong(&(want), &(got));                                                   \
        ck_assert_msg(at_ == (long)(got).bytes, format ": byte %ld", __VA_ARGS__, at_);            \
    } while (0)

static void dot_compare(const struct blas_kernels *kernels, const struct dot_case *c, uint64_t seed)
{
    size_t bytes = dot_case_numbers(c) * sizeof(float);
    struct guarded want = guarded_make(bytes), got = guarded_make(bytes);
    dot_case_run(c, &blas_generic, want.p);
    dot_case_run(c, kernels, got.p);
    ASSERT_SAME(want, got, "%s dot %s m=%zu n_panels=%zu k=%zu y_stride=%zu seed=%" PRIu64,
                kernels->name, type_name(c->type), c->m, c->n_panels, c->k, c->y_stride, seed);
    guarded_free(&want);
    guarded_free(&got);
}

START_TEST(dot_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i / TENSOR_TYPES);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t m = random_size(&r, seed % 8 ? 14 : 300), k = random_size(&r, m > 50 ? 300 : 1100);
        size_t n_panels = rng_from(&r, 1, m > 50 ? 3 : 7);
        struct dot_case c =
            dot_case_make(&r, (enum tensor_type)(_i % TENSOR_TYPES), m, n_panels, k, seed % 4);
        dot_compare(kernels, &c, seed);
        dot_case_free(&c);
    }
}
END_TEST

/* The result of a row and of a panel depends on no other row or panel of the call. */
START_TEST(dot_at_once_is_one_by_one)
{
    const struct blas_kernels *kernels = table_usable(_i / TENSOR_TYPES);
    const enum tensor_type type = (enum tensor_type)(_i % TENSOR_TYPES);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t m = random_size(&r, seed % 8 ? 30 : 300), k = random_size(&r, 600),
               n_panels = rng_from(&r, 1, 9);
        struct dot_case c = dot_case_make(&r, type, m, n_panels, k, seed % 4);
        size_t bytes = dot_case_numbers(&c) * sizeof(float), groups = (k + GROUP - 1) / GROUP;
        struct guarded all = guarded_make(bytes), single = guarded_make(bytes);
        dot_case_run(&c, kernels, all.p);
        for (size_t i = 0; i < m; i++)
            for (size_t p = 0; p < n_panels; p++) {
                struct blas_rows x = {.f = c.x.f + i * c.x.f_stride,
                                      .f_stride = c.x.f_stride,
                                      .q = c.x.q + i * groups * GROUP,
                                      .scale = c.x.scale + i * groups,
                                      .sum = c.x.sum + i * 2 * groups};
                kernels->dot[type]((float *)single.p + i * c.y_stride + p * PANEL_ROWS, c.y_stride,
                                   (const uint8_t *)c.panels.p + p * panel_bytes(type, k), 1, k, &x,
                                   1);
            }
        ASSERT_SAME(single, all, "%s dot %s m=%zu n_panels=%zu k=%zu seed=%" PRIu64, kernels->name,
                    type_name(type), m, n_panels, k, seed);
        guarded_free(&all);
        guarded_free(&single);
        dot_case_free(&c);
    }
}
END_TEST

START_TEST(quantise_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t k = random_size(&r, 1100), k32 = round_up(k, GROUP), groups = k32 / GROUP;
        struct guarded x = guarded_floats(&r, k, seed % 9);
        for (size_t g = 0; g < groups;
             g++) { /* whole groups small, at the limit of 2^-100, and with halves */
            float factor =
                (const float[]){1, 1, 1, 0x1p-99f, 0x1p-101f, 0x1p-148f, 1, 1}[rng_below(&r, 8)];
            for (size_t j = g * GROUP; j < (g + 1) * GROUP && j < k; j++)
                ((float *)x.p)[j] *= factor;
            if (seed % 3 == 0)
                for (size_t j = g * GROUP; j < (g + 1) * GROUP && j < k; j++)
                    ((float *)x.p)[j] =
                        j % GROUP ? (float)(int)rng_from(&r, 0, 508) / 2 - 127 : 127;
        }
        struct guarded want[3], got[3];
        for (int i = 0; i < 3; i++) {
            const size_t bytes = (const size_t[]){k32, groups * 4, 2 * groups * 4}[i];
            want[i] = guarded_make(bytes);
            got[i] = guarded_make(bytes);
        }
        blas_generic.quantise(want[0].p, want[1].p, want[2].p, x.p, k);
        kernels->quantise(got[0].p, got[1].p, got[2].p, x.p, k);
        for (int i = 0; i < 3; i++) {
            ASSERT_SAME(want[i], got[i], "%s quantise k=%zu seed=%" PRIu64, kernels->name, k, seed);
            guarded_free(&want[i]);
            guarded_free(&got[i]);
        }
        guarded_free(&x);
    }
}
END_TEST

START_TEST(rms_norm_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t n = random_size(&r, 1100);
        struct guarded x = guarded_floats(&r, n, seed % 4), weight = guarded_floats(&r, n, 0);
        struct guarded want = guarded_make(n * 4), got = guarded_make(n * 4);
        float epsilon = seed % 5 ? 1e-5f : 1e-12f;
        blas_generic.rms_norm(want.p, x.p, weight.p, n, epsilon);
        kernels->rms_norm(got.p, x.p, weight.p, n, epsilon);
        ASSERT_SAME(want, got, "%s rms_norm n=%zu seed=%" PRIu64, kernels->name, n, seed);
        kernels->rms_norm(x.p, x.p, weight.p, n, epsilon);
        ASSERT_SAME(want, x, "%s rms_norm in place n=%zu seed=%" PRIu64, kernels->name, n, seed);
        guarded_free(&x);
        guarded_free(&weight);
        guarded_free(&want);
        guarded_free(&got);
    }
}
END_TEST

START_TEST(rotate_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t pairs = random_size(&r, 130);
        struct guarded cosine = guarded_floats(&r, pairs, 0), sine = guarded_floats(&r, pairs, 0);
        struct guarded want = guarded_floats(&r, 2 * pairs, seed % 4),
                       got = guarded_make(2 * pairs * 4);
        memcpy(got.p, want.p, want.bytes);
        blas_generic.rotate(want.p, cosine.p, sine.p, pairs);
        kernels->rotate(got.p, cosine.p, sine.p, pairs);
        ASSERT_SAME(want, got, "%s rotate pairs=%zu seed=%" PRIu64, kernels->name, pairs, seed);
        guarded_free(&cosine);
        guarded_free(&sine);
        guarded_free(&want);
        guarded_free(&got);
    }
}
END_TEST

/* Arguments of exp: ordinary ones, both ends and their neighbours, far beyond. */
static float random_exponent(struct rng *r)
{
    static const float edges[] = {0.0f,           -0.0f, -87.0f,  -0x1.5c0002p6f,
                                  -0x1.5bfffep6f, 88.0f, 88.001f, 0x1.5fffffep6f,
                                  -1e30f,         1e15f, -88.5f,  -100.0f};
    if (!rng_below(r, 6))
        return edges[rng_below(r, sizeof edges / sizeof *edges)];
    return rng_float(r) * (rng_below(r, 2) ? 100.0f : 8.0f);
}

/* Every slot that uses exp sees all of its ranges. */
static struct guarded guarded_exponents(struct rng *r, size_t n)
{
    struct guarded g = guarded_make(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        ((float *)g.p)[i] = random_exponent(r);
    return g;
}

START_TEST(gates_are_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t n = random_size(&r, 600), g = rng_below(&r, GATES);
        const float limit = 0.5f + fabsf(rng_float(&r)) * 8;
        struct guarded gate = guarded_exponents(&r, n), up = guarded_floats(&r, n, seed % 4);
        struct guarded want = guarded_make(n * 4), got = guarded_make(n * 4);
        blas_generic.gate[g](want.p, gate.p, up.p, n, limit);
        kernels->gate[g](got.p, gate.p, up.p, n, limit);
        ASSERT_SAME(want, got, "%s gate %zu n=%zu seed=%" PRIu64, kernels->name, g, n, seed);
        kernels->gate[g](gate.p, gate.p, up.p, n, limit);
        ASSERT_SAME(want, gate, "%s gate %zu in place n=%zu seed=%" PRIu64, kernels->name, g, n, seed);
        guarded_free(&gate);
        guarded_free(&up);
        guarded_free(&want);
        guarded_free(&got);
    }
}
END_TEST

START_TEST(soft_cap_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t n = random_size(&r, 600);
        const float cap = 0.25f + fabsf(rng_float(&r)) * 50;
        struct guarded want = guarded_exponents(&r, n), got = guarded_make(n * 4);
        memcpy(got.p, want.p, n * 4);
        blas_generic.soft_cap(want.p, n, cap);
        kernels->soft_cap(got.p, n, cap);
        ASSERT_SAME(want, got, "%s soft_cap n=%zu seed=%" PRIu64, kernels->name, n, seed);
        guarded_free(&want);
        guarded_free(&got);
    }
}
END_TEST

START_TEST(log_sum_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t n = random_size(&r, 1100);
        struct guarded x = guarded_exponents(&r, n), want = guarded_make(8), got = guarded_make(8);
        if (seed % 8 == 0) /* the largest is a zero, of either sign */
            for (size_t i = 0; i < n; i++)
                ((float *)x.p)[i] = rng_below(&r, 4) ? -fabsf(((float *)x.p)[i]) : 0.0f;
        blas_generic.log_sum(want.p, (float *)want.p + 1, x.p, n);
        kernels->log_sum(got.p, (float *)got.p + 1, x.p, n);
        ASSERT_SAME(want, got, "%s log_sum n=%zu seed=%" PRIu64, kernels->name, n, seed);
        guarded_free(&x);
        guarded_free(&want);
        guarded_free(&got);
    }
}
END_TEST

static size_t random_head_dim(struct rng *r)
{
    static const size_t dims[] = {12, 24, 64, 80, 128, 256};
    return rng_below(r, 2) ? dims[rng_below(r, 6)] : rng_from(r, 1, 300);
}

static size_t kv_bytes(int type, size_t head_dim)
{
    return kv_head_numbers(head_dim) * (type == KV_F16 ? 2 : 4);
}

START_TEST(kv_store_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i / 2);
    const int type = _i % 2;
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t dim = random_head_dim(&r), position = rng_below(&r, KV_BLOCK);
        struct guarded key = guarded_floats(&r, dim, 0), value = guarded_floats(&r, dim, 0);
        struct guarded want = guarded_make(kv_bytes(type, dim)),
                       got = guarded_make(kv_bytes(type, dim));
        static const float odd[] = {65504.0f,  65519.996f, 65520.0f,   -65520.0f,  1e6f,
                                    3e38f,     0x1p-24f,   0x1p-25f,   0x1.8p-24f, 6e-8f,
                                    0x1p-149f, 0x1.002p0f, 0x1.006p0f, INFINITY,   -INFINITY};
        for (size_t i = 0; i < seed % 4; i++) {
            ((float *)key.p)[rng_below(&r, dim)] = odd[rng_below(&r, sizeof odd / sizeof *odd)];
            ((float *)value.p)[rng_below(&r, dim)] = odd[rng_below(&r, sizeof odd / sizeof *odd)];
        }
        bool want_finite = blas_generic.kv_store[type](want.p, position, key.p, value.p, dim);
        bool finite = kernels->kv_store[type](got.p, position, key.p, value.p, dim);
        ASSERT_SAME(want, got, "%s kv_store %s head_dim=%zu position=%zu seed=%" PRIu64,
                    kernels->name, type ? "f16" : "f32", dim, position, seed);
        ck_assert_msg(finite == want_finite, "%s kv_store %s finite: head_dim=%zu seed=%" PRIu64,
                      kernels->name, type ? "f16" : "f32", dim, seed);
        guarded_free(&key);
        guarded_free(&value);
        guarded_free(&want);
        guarded_free(&got);
    }
}
END_TEST

/* A KV block whose positions [0, last) are written; what lies behind them is old and strange. */
static struct guarded random_kv(struct rng *r, int type, size_t dim, size_t last, size_t share)
{
    struct guarded kv = guarded_make(kv_bytes(type, dim));
    memset(kv.p, rng_below(r, 2) ? 0xff : 0, kv.bytes);
    for (size_t position = 0; position < last; position++) {
        float key[300], value[300];
        for (size_t d = 0; d < dim; d++) {
            float k = rng_mixed(r, share), v = rng_mixed(r, share);
            key[d] = fabsf(k) < 1e4f ? k * 4 : 1;
            value[d] = fabsf(v) < 6e4f ? v : 1;
        }
        blas_generic.kv_store[type](kv.p, position, key, value, dim);
    }
    return kv;
}

/* The rows of value that are results: the padding is undefined. */
static void attend_pad(float *value, size_t heads, size_t dim)
{
    for (size_t h = 0; h < heads; h++)
        for (size_t d = dim; d < kv_value_stride(dim); d++)
            value[h * kv_value_stride(dim) + d] = 0;
}

START_TEST(attend_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i / 2);
    const int type = _i % 2;
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t dim = random_head_dim(&r), heads = rng_from(&r, 1, seed % 6 ? 8 : 40);
        size_t first = rng_below(&r, 2) ? 0 : rng_below(&r, KV_BLOCK);
        size_t last = rng_below(&r, 2) ? KV_BLOCK : rng_from(&r, first + 1, KV_BLOCK);
        struct guarded kv = random_kv(&r, type, dim, last, seed % 3);
        size_t q_stride = dim + rng_below(&r, 5);
        struct guarded q = guarded_floats(&r, (heads - 1) * q_stride + dim, seed % 3 == 1);
        for (size_t i = 0; i < q.bytes / 4; i++)
            if (fabsf(((float *)q.p)[i]) > 1e5f)
                ((float *)q.p)[i] = 1;
        if (seed % 7 == 0) /* scores of zero, of either sign */
            for (size_t i = 0; i < q.bytes / 4; i++)
                ((float *)q.p)[i] = rng_below(&r, 2) ? 0.0f : -0.0f;
        struct guarded want[3], got[3];
        for (int i = 0; i < 3; i++) {
            size_t bytes = heads * 4 * (i == 2 ? kv_value_stride(dim) : 1);
            want[i] = guarded_make(bytes);
            got[i] = guarded_make(bytes);
        }
        struct attend_block b = {.cap = rng_below(&r, 3) ? 0.0f : 1.0f + fabsf(rng_float(&r)) * 30,
                                 .q = q.p,
                                 .q_stride = q_stride,
                                 .heads = heads,
                                 .head_dim = dim,
                                 .kv = kv.p,
                                 .first = first,
                                 .last = last,
                                 .scale = seed % 2 ? 0.125f : 0.7f};
        blas_generic.attend[type](&(struct attend_sum){want[0].p, want[1].p, want[2].p}, &b);
        kernels->attend[type](&(struct attend_sum){got[0].p, got[1].p, got[2].p}, &b);
        attend_pad(want[2].p, heads, dim);
        attend_pad(got[2].p, heads, dim);
        for (int i = 0; i < 3; i++) {
            ASSERT_SAME(want[i], got[i],
                        "%s attend %s %s heads=%zu head_dim=%zu [%zu, %zu) seed=%" PRIu64,
                        kernels->name, type ? "f16" : "f32",
                        (const char *[]){"max", "sum", "value"}[i], heads, dim, first, last, seed);
            guarded_free(&want[i]);
            guarded_free(&got[i]);
        }
        guarded_free(&kv);
        guarded_free(&q);
    }
}
END_TEST

START_TEST(attend_join_is_generic)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (int round = 0; kernels && round < rounds(); round++) {
        const uint64_t seed = seed_of(round);
        struct rng r = {seed};
        size_t dim = random_head_dim(&r), heads = rng_from(&r, 1, 9),
               numbers = heads * kv_value_stride(dim);
        struct guarded max = guarded_exponents(&r, heads), sum = guarded_floats(&r, heads, 0);
        struct guarded value = guarded_floats(&r, numbers, seed % 3), want[3], got[3];
        for (int i = 0; i < 3; i++) {
            want[i] = i == 0 ? guarded_exponents(&r, heads)
                             : guarded_floats(&r, i == 2 ? numbers : heads, 0);
            got[i] = guarded_make(want[i].bytes);
            memcpy(got[i].p, want[i].p, want[i].bytes);
        }
        struct attend_sum block = {max.p, sum.p, value.p};
        blas_generic.attend_join(&(struct attend_sum){want[0].p, want[1].p, want[2].p}, &block,
                                 heads, dim);
        kernels->attend_join(&(struct attend_sum){got[0].p, got[1].p, got[2].p}, &block, heads,
                             dim);
        attend_pad(want[2].p, heads, dim);
        attend_pad(got[2].p, heads, dim);
        for (int i = 0; i < 3; i++) {
            ASSERT_SAME(want[i], got[i], "%s attend_join heads=%zu head_dim=%zu seed=%" PRIu64,
                        kernels->name, heads, dim, seed);
            guarded_free(&want[i]);
            guarded_free(&got[i]);
        }
        guarded_free(&max);
        guarded_free(&sum);
        guarded_free(&value);
    }
}
END_TEST

/* A group that holds a NaN or an infinity, at each place of it, with large, small and no numbers around it. */
START_TEST(a_group_with_a_nan_is_one_to_every_product)
{
    const struct blas_kernels *kernels = table_usable(_i);
    static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY}, others[] = {0.0f, 1.0f, -1e30f, 0x1p-120f, NAN};
    for (size_t i = 0; kernels && i < 4 * 5 * 45; i++) {
        const size_t k = 45, at = i % k, group = at / GROUP;
        float x[45], scale[2];
        int8_t q[2 * GROUP];
        int32_t sum[4];
        for (size_t j = 0; j < k; j++)
            x[j] = others[i / k % 5];
        x[at] = odd[i / k / 5];
        kernels->quantise(q, scale, sum, x, k);
        ck_assert_msg(isnan(scale[group]), "%s: %g at %zu among %g: scale %g", kernels->name, (double)x[at], at,
                      (double)others[i / k % 5], (double)scale[group]);
        ck_assert(i / k % 5 == 4 || isfinite(scale[!group]));
    }
}
END_TEST

static float is_kept(const struct blas_kernels *kernels, size_t what, size_t at, size_t n)
{
    float x[70], up[70], max, sum;
    for (size_t i = 0; i < n; i++)
        x[i] = up[i] = 0.5f;
    *(what % 2 && what < 6 ? &up[at] : &x[at]) = NAN;
    if (what < 6)
        kernels->gate[what / 2](x, x, up, n, 7);
    else if (what == 6)
        kernels->soft_cap(x, n, 30);
    else {
        kernels->log_sum(&max, &sum, x, n);
        return sum;
    }
    return x[at];
}

START_TEST(a_nan_stays_one)
{
    const struct blas_kernels *kernels = table_usable(_i);
    for (size_t what = 0; kernels && what < 8; what++)
        for (size_t n = 1; n <= 70; n += 23)
            for (size_t at = 0; at < n; at++)
                ck_assert_msg(isnan(is_kept(kernels, what, at, n)), "%s: %zu, at %zu of %zu", kernels->name, what, at, n);
}
END_TEST

/* In a query, so in every score; in a key, so in one. */
START_TEST(a_nan_stays_one_in_attention)
{
    enum { DIM = 16 };
    const struct blas_kernels *kernels = table_usable(_i / 2);
    const size_t seen[] = {1, 5, 64};
    for (size_t i = 0; kernels && i < 3 * 2 * 2; i++) {
        struct rng r = {i};
        float q[DIM], k[DIM], v[DIM], max, sum, value[DIM];
        struct guarded kv = guarded_make(KV_BLOCK * (DIM + kv_value_stride(DIM)) * sizeof(float));
        struct attend_block b = {.q = q, .q_stride = DIM, .heads = 1, .head_dim = DIM, .kv = kv.p, .last = seen[i % 3],
                                 .scale = 0.25f, .cap = i / 6 ? 20.0f : 0};
        struct attend_sum out = {&max, &sum, value};
        for (size_t at = 0; at < b.last; at++) {
            for (size_t d = 0; d < DIM; d++) {
                q[d] = rng_float(&r);
                k[d] = rng_float(&r);
                v[d] = rng_float(&r);
            }
            if (i / 3 % 2 && at == b.last / 2)
                k[3] = NAN;
            kernels->kv_store[_i % 2](kv.p, at, k, v, DIM);
        }
        if (i / 3 % 2 == 0)
            q[7] = NAN;
        kernels->attend[_i % 2](&out, &b);
        for (size_t d = 0; d < DIM; d++)
            ck_assert_msg(isnan(value[d] * (1.0f / sum)), "%s: case %zu, number %zu", kernels->name, i, d);
        guarded_free(&kv);
    }
}
END_TEST

/* No caller tests for NULL. */
START_TEST(every_slot_is_filled)
{
    const struct blas_kernels *k = blas_table((size_t)_i);
    for (size_t i = 0; i < TENSOR_TYPES; i++)
        ck_assert_ptr_nonnull(k->dot[i]);
    ck_assert(k->name && k->usable && k->quantise && k->rms_norm && k->rotate && k->soft_cap && k->gate[GATE_SILU] &&
              k->gate[GATE_GELU] && k->gate[GATE_CLAMPED] &&
              k->kv_store[0] && k->kv_store[1] && k->attend[0] && k->attend[1] && k->attend_join &&
              k->log_sum);
}
END_TEST

START_TEST(a_name_chooses_its_table)
{
    const struct blas_kernels *any = blas_choose(NULL);
    ck_assert_ptr_nonnull(any);
    ck_assert_ptr_eq(any, blas_choose(""));
    ck_assert_ptr_null(blas_choose("mmx"));
    for (size_t i = 0; blas_table(i); i++) {
        const struct blas_kernels *named = blas_choose(blas_table(i)->name);
        if (blas_table(i)->usable())
            ck_assert_str_eq(named->name, blas_table(i)->name);
    }
}
END_TEST

int main(void)
{
    int tables = 0;
    while (blas_table((size_t)tables))
        tables++;
    Suite *suite = suite_create("kernels");
    TCase *tc = tcase_create("tables");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, every_slot_is_filled, 0, tables);
    tcase_add_test(tc, a_name_chooses_its_table);
    tcase_add_loop_test(tc, dot_is_generic, 0, tables * TENSOR_TYPES);
    tcase_add_loop_test(tc, dot_at_once_is_one_by_one, 0, tables * TENSOR_TYPES);
    tcase_add_loop_test(tc, quantise_is_generic, 0, tables);
    tcase_add_loop_test(tc, rms_norm_is_generic, 0, tables);
    tcase_add_loop_test(tc, rotate_is_generic, 0, tables);
    tcase_add_loop_test(tc, gates_are_generic, 0, tables);
    tcase_add_loop_test(tc, soft_cap_is_generic, 0, tables);
    tcase_add_loop_test(tc, log_sum_is_generic, 0, tables);
    tcase_add_loop_test(tc, kv_store_is_generic, 0, tables * 2);
    tcase_add_loop_test(tc, attend_is_generic, 0, tables * 2);
    tcase_add_loop_test(tc, attend_join_is_generic, 0, tables);
    tcase_add_loop_test(tc, a_group_with_a_nan_is_one_to_every_product, 0, tables);
    tcase_add_loop_test(tc, a_nan_stays_one, 0, tables);
    tcase_add_loop_test(tc, a_nan_stays_one_in_attention, 0, tables * 2);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
