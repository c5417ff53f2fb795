/* SPDX-License-Identifier: Apache-2.0 */
/* The generic table against arithmetic of others: its products against OpenBLAS in binary64 over
 * the same numbers. What check_kernels.c proves of the other tables carries this over to them. */
#include <cblas.h>
#include <inttypes.h>

#include "cases.h"
#include "../suite.h"

enum { ROUNDS = 60 };

/* The weight (row, k) of a panel as the number that it stands for. */
static double weight_of(const struct dot_case *c, const uint8_t *panel, size_t row, size_t k)
{
    if (!type_quantised(c->type)) {
        size_t at = panel_index_float(c->type, row, k);
        const uint16_t *half = (const uint16_t *)(const void *)panel;
        if (c->type == TENSOR_F32)
            return (double)((const float *)(const void *)panel)[at];
        return (double)(c->type == TENSOR_BF16 ? float_of_bf16(half[at]) : float_of_f16(half[at]));
    }
    size_t groups, offset = panel_block(c->type, c->k, k / DOT_BLOCK, &groups), in = k % DOT_BLOCK;
    const uint8_t *block = panel + offset;
    int byte = block[block_weight(c->type, groups, row, in)], four = in & 4 ? byte >> 4 : byte & 15;
    if (c->type == TENSOR_MXFP4) {
        static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        double value = ldexp(values[four & 7], block[block_scale(c->type, row, in / GROUP)] - 127);
        return four & 8 ? -value : value;
    }
    if (c->type == TENSOR_Q4) {
        static const double book[16] = {-32, -26, -21, -17, -13, -9, -6, -3, 0, 3, 6, 9, 13, 17, 22, 28};
        uint16_t row_scale;
        memcpy(&row_scale, panel + 2 * row, sizeof row_scale);
        return book[four] * (int8_t)block[block_scale(c->type, row, in / HALF)] * (double)float_of_f16(row_scale);
    }
    uint16_t scale;
    memcpy(&scale, block + block_scale(c->type, row, in / GROUP), sizeof scale);
    return (byte - Q8_ZERO) * (double)float_of_f16(scale);
}

static double activation_of(const struct dot_case *c, size_t row, size_t k)
{
    const size_t groups = (c->k + GROUP - 1) / GROUP;
    if (!type_quantised(c->type))
        return (double)c->x.f[row * c->x.f_stride + k];
    return c->x.q[row * groups * GROUP + k] * (double)c->x.scale[row * groups + k / GROUP];
}

struct oracle {
    double *y;   /* [m][n], the product */
    double *abs; /* [m][n], the same of the operands' absolute values */
    double *w, *x;
};

static void oracle_product(const struct dot_case *c, double *y, const double *x, const double *w)
{
    const int m = (int)c->m, n = (int)(c->n_panels * PANEL_ROWS), k = (int)c->k;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0, x, k, w, k, 0.0, y, n);
}

static struct oracle oracle_make(const struct dot_case *c)
{
    const size_t n = c->n_panels * PANEL_ROWS;
    struct oracle o = {.y = calloc(c->m * n, sizeof(double)),
                       .abs = calloc(c->m * n, sizeof(double)),
                       .w = calloc(n * c->k, sizeof(double)),
                       .x = calloc(c->m * c->k, sizeof(double))};
    ck_assert(o.y && o.abs && o.w && o.x);
    for (size_t row = 0; row < n; row++)
        for (size_t k = 0; k < c->k; k++) {
            const uint8_t *panel =
                (const uint8_t *)c->panels.p + row / PANEL_ROWS * panel_bytes(c->type, c->k);
            o.w[row * c->k + k] = weight_of(c, panel, row % PANEL_ROWS, k);
        }
    for (size_t row = 0; row < c->m; row++)
        for (size_t k = 0; k < c->k; k++)
            o.x[row * c->k + k] = activation_of(c, row, k);
    oracle_product(c, o.y, o.x, o.w);
    for (size_t i = 0; i < n * c->k; i++)
        o.w[i] = fabs(o.w[i]);
    for (size_t i = 0; i < c->m * c->k; i++)
        o.x[i] = fabs(o.x[i]);
    oracle_product(c, o.abs, o.x, o.w);
    return o;
}

static void oracle_free(struct oracle *o)
{
    free(o->y);
    free(o->abs);
    free(o->w);
    free(o->x);
}

static struct dot_case random_case(struct rng *r, int type)
{
    size_t m = rng_from(r, 1, 12), n_panels = rng_from(r, 1, 4), k = rng_from(r, 1, 1500);
    return dot_case_make(r, (enum tensor_type)type, m, n_panels, k, 0);
}

/* A term passes no more than K + 1 roundings of half an ulp: one for each step of its chain, for a
 * quantised group one more, and one for each block behind. So |error| <= (K + 1) 2^-24 sum |w| |x|,
 * but for terms of second order. */
START_TEST(products_are_within_their_roundings_of_openblas)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct rng r = {(uint64_t)round};
        struct dot_case c = random_case(&r, _i);
        struct oracle o = oracle_make(&c);
        const size_t n = c.n_panels * PANEL_ROWS;
        float *y = calloc(dot_case_numbers(&c), sizeof *y);
        ck_assert_ptr_nonnull(y);
        dot_case_run(&c, &blas_generic, y);
        for (size_t i = 0; i < c.m * n; i++) {
            double error = fabs((double)y[i / n * c.y_stride + i % n] - o.y[i]);
            ck_assert_msg(
                error <= (double)(c.k + 1) * 0x1.0001p-24 * o.abs[i] + 0x1p-149,
                "type %d m=%zu n=%zu k=%zu seed=%d: (%zu, %zu) is %g off, sum of absolutes %g", _i,
                c.m, n, c.k, round, i / n, i % n, error, o.abs[i]);
        }
        free(y);
        oracle_free(&o);
        dot_case_free(&c);
    }
}
END_TEST

/* As a whole, a product differs from the definition in binary64 by less than 1e-5 of its norm. */
START_TEST(quantised_products_are_the_definition)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct rng r = {(uint64_t)(1000 + round)};
        struct dot_case c = random_case(&r, _i);
        struct oracle o = oracle_make(&c);
        const size_t n = c.n_panels * PANEL_ROWS;
        float *y = calloc(dot_case_numbers(&c), sizeof *y);
        ck_assert_ptr_nonnull(y);
        dot_case_run(&c, &blas_generic, y);
        double off = 0, norm = 0;
        for (size_t i = 0; i < c.m * n; i++) {
            double error = (double)y[i / n * c.y_stride + i % n] - o.y[i];
            off += error * error;
            norm += o.y[i] * o.y[i];
        }
        ck_assert_msg(off <= 1e-10 * norm, "type %d m=%zu n=%zu k=%zu seed=%d: %g of %g", _i, c.m,
                      n, c.k, 1000 + round, sqrt(off), sqrt(norm));
        free(y);
        oracle_free(&o);
        dot_case_free(&c);
    }
}
END_TEST

/* q * scale is the nearest multiple of the scale, the largest number's q is 127, the sums are those
 * of q. */
START_TEST(activations_are_the_definition)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct rng r = {(uint64_t)round};
        size_t k = rng_from(&r, 1, 400), groups = (k + GROUP - 1) / GROUP;
        struct guarded x = guarded_floats(&r, k, 0);
        struct guarded q = guarded_make(groups * GROUP), scale = guarded_make(groups * 4),
                       sum = guarded_make(2 * groups * 4);
        blas_generic.quantise(q.p, scale.p, sum.p, x.p, k);
        for (size_t g = 0; g < groups; g++) {
            double largest = 0, step = (double)((float *)scale.p)[g];
            int total[2][2] = {{0, 0}, {0, 0}}, end = 0;
            for (size_t j = g * GROUP; j < (g + 1) * GROUP; j++) {
                double number = j < k ? (double)((float *)x.p)[j] : 0;
                int integer = ((int8_t *)q.p)[j];
                largest = fabs(number) > largest ? fabs(number) : largest;
                end = abs(integer) > end ? abs(integer) : end;
                total[j % GROUP / HALF][j % 4 / 2] += integer;
                ck_assert_msg(fabs(number - integer * step) <= step * 0.50001,
                              "k=%zu seed=%d: number %zu", k, round, j);
            }
            ck_assert_msg(fabs(step - largest / 127) <= largest * 0x1p-24 && end == 127,
                          "k=%zu seed=%d: group %zu", k, round, g);
            for (size_t half = 0; half < 2; half++) { /* two words each, little-endian */
                int16_t words[2];
                memcpy(words, (int32_t *)sum.p + half * groups + g, sizeof words);
                ck_assert_int_eq(total[half][0], words[0]);
                ck_assert_int_eq(total[half][1], words[1]);
            }
        }
        struct guarded *all[] = {&x, &q, &scale, &sum};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            guarded_free(all[i]);
    }
}
END_TEST

int main(void)
{
    openblas_set_num_threads(1); /* Check forks */
    Suite *suite = suite_create("oracle");
    TCase *tc = tcase_create("generic");
    tcase_add_loop_test(tc, products_are_within_their_roundings_of_openblas, 0, TENSOR_TYPES);
    tcase_add_loop_test(tc, quantised_products_are_the_definition, TENSOR_Q8, TENSOR_TYPES);
    tcase_add_test(tc, activations_are_the_definition);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
