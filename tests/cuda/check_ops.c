/* SPDX-License-Identifier: Apache-2.0 */
/* Every op of the GPU back end leaves the bits that the CPU's leaves with the generic table: on random shapes, odd ones
 * too, in steps of one row and of many, with each way of reaching the weights. The GPU is emulated (fake_driver.c), the
 * interface is the back ends' own: numbers get into slots by embed and out by peek. Weights lie in a file in memory
 * that is mapped as an image is. A failure names its seed; CHECK_SEED=N begins there.
 * CHECK_MACHINE is added to what STELE_FAKE_CUDA says. */
#include <dlfcn.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

#include "../blas/cases.h"
#include "cuda_library.h"
#include "ops.h"
#include "../suite.h"

enum {
    FILE_BYTES = 16 << 20,
    SPANS_MAX = 64,
    ROWS_MAX = 136,
    IDS = 64, /* rows of the table that fills slots */
    SEQUENCES = 3,
    CONTEXT = 400,
};

/* The numbers of a row of slots begin at a multiple of WIDTH for each slot; strides are odd. */
enum { SLOTS = 8 };

struct world {
    struct rng rng;
    uint64_t seed;
    uint8_t *file; /* writable mapping; the back ends see `bytes` */
    const uint8_t *bytes;
    int fd;
    size_t used;
    struct blas_span spans[SPANS_MAX];
    size_t span_count;
    struct blas_view slots[SLOTS];
    size_t width; /* numbers of a slot's row */
    struct blas_setup setup;
    const struct blas_backend *backends[2];
    struct blas_device *devices[2];
    struct blas_row rows[ROWS_MAX];
    uint32_t tables[SEQUENCES][(CONTEXT + 63) / 64];
    struct blas_step step;
    struct blas_matrix fill;
    struct blas_rope rope;
    float *rope_rows;
};

static int rounds;

static uint64_t seed_of(int round)
{
    const char *base = getenv("CHECK_SEED");
    return (base ? strtoull(base, NULL, 10) : 0) + (uint64_t)round;
}

/* `eager`: what brings weights happens as early as it may, else as late. */
static const struct cuda_library *library(int eager)
{
    char path[PATH_MAX] = "";
    ck_assert_int_gt(readlink("/proc/self/exe", path, sizeof path - 1), 0);
    char *end = strstr(path, "/tests/cuda/");
    ck_assert_ptr_nonnull(end);
    strcpy(end, "/emulate/libstele-cuda.so");
    char machine[256];
    const char *more = getenv("CHECK_MACHINE");
    snprintf(machine, sizeof machine, "host=1 register=1 eager=%d %s", eager, more ? more : "");
    setenv("STELE_FAKE_CUDA", machine, 1);
    void *opened = dlopen(path, RTLD_NOW);
    ck_assert_msg(opened != NULL, "%s", dlerror());
    const struct cuda_library *found = dlsym(opened, CUDA_LIBRARY_SYMBOL);
    ck_assert_ptr_nonnull(found);
    return found;
}

/* ---- weights ---- */

static void world_make(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.state = seed * 977;
    w->fd = memfd_create("weights", MFD_CLOEXEC);
    ck_assert(w->fd >= 0 && !ftruncate(w->fd, FILE_BYTES));
    w->file = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
    w->bytes = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, w->fd, 0);
    ck_assert(w->file != MAP_FAILED && w->bytes != MAP_FAILED);
    w->used = 4096;
}

/* Room in the file: where to write it. `seen` is where the back ends see it. */
static uint8_t *take(struct world *w, size_t bytes, const void **seen)
{
    uint8_t *at = w->file + w->used;
    *seen = w->bytes + w->used;
    ck_assert_uint_lt(w->used + bytes + 64, FILE_BYTES);
    ck_assert_uint_lt(w->span_count, SPANS_MAX);
    w->spans[w->span_count++] = (struct blas_span){*seen, bytes};
    w->used = round_up(w->used + bytes, 64) + 64 * rng_below(&w->rng, 40);
    return at;
}

static const float *vector(struct world *w, size_t n, size_t share)
{
    const void *seen;
    float *x = (float *)(void *)take(w, n * sizeof *x, &seen);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_mixed(&w->rng, share);
    return seen;
}

static struct blas_bank bank(struct world *w, enum tensor_type type, size_t rows, size_t k, size_t count, size_t share)
{
    const void *seen;
    size_t one = panel_count(rows) * panel_bytes(type, k), stride = count > 1 ? one + 64 * rng_below(&w->rng, 3) : one;
    uint8_t *to = take(w, stride * (count - 1) + one, &seen);
    for (size_t e = 0; e < count; e++)
        for (size_t p = 0; p < panel_count(rows); p++)
            random_panel(&w->rng, type, to + e * stride + p * panel_bytes(type, k), k, share);
    return (struct blas_bank){{type, rows, k, seen}, stride, count};
}

static struct blas_matrix matrix(struct world *w, enum tensor_type type, size_t rows, size_t k, size_t share)
{
    return bank(w, type, rows, k, 1, share).first;
}

/* ---- devices and steps ---- */

/* Opens both back ends over what was made; `width` is what the widest slot needs. */
static void open_devices(struct world *w, const struct cuda_library *cuda, size_t width, size_t share)
{
    static const char *const reaches[] = {"host", "register", "remap", "ring"};
    const void *seen;
    w->width = round_up(width, PANEL_ROWS);
    size_t stride = w->width + 4 * rng_below(&w->rng, 5) + rng_below(&w->rng, 2);
    for (size_t s = 0; s < SLOTS; s++)
        w->slots[s] = (struct blas_view){s * ROWS_MAX * stride, stride};
    w->fill = (struct blas_matrix){TENSOR_F32, IDS, w->width, NULL};
    uint8_t *to = take(w, panel_count(IDS) * panel_bytes(TENSOR_F32, w->width), &seen);
    w->fill.panels = seen;
    for (size_t p = 0; p < panel_count(IDS); p++)
        random_panel(&w->rng, TENSOR_F32, to + p * panel_bytes(TENSOR_F32, w->width), w->width, share);
    w->setup.threads = 1;
    w->setup.rows_max = ROWS_MAX;
    w->setup.scratch_numbers = SLOTS * ROWS_MAX * stride;
    w->setup.kernels = &blas_generic;
    w->setup.sequences = SEQUENCES;
    w->setup.positions = CONTEXT;
    w->setup.weights = (struct blas_weights){"weights", w->bytes, FILE_BYTES, w->fd, w->spans, w->span_count};
    w->setup.limit = (const uint64_t[]){1, UINT64_MAX, 1, 100000, UINT64_MAX}[w->seed % 5];
    setenv("STELE_CUDA_MAP", reaches[(w->seed + 3) % 4], 1); /* the first has a ring, and keeps nothing */
    w->backends[0] = &blas_cpu;
    w->backends[1] = cuda->backend;
    for (int i = 0; i < 2; i++) {
        struct stele_error err;
        ck_assert_msg(w->backends[i]->open(&w->devices[i], &w->setup, &err) == STELE_OK, "seed=%" PRIu64 ": %s",
                      w->seed, err.text);
    }
}

static void world_free(struct world *w)
{
    for (int i = 0; i < 2; i++)
        w->backends[i]->close(w->devices[i]);
    munmap(w->file, FILE_BYTES);
    munmap((void *)(uintptr_t)w->bytes, FILE_BYTES);
    close(w->fd);
    free(w->rope_rows);
}

/* A step of `count` rows, whose slots hold rows of the table. */
static void begin(struct world *w, size_t count)
{
    w->step.count = count;
    w->step.rows = w->rows;
    w->step.ropes = &w->rope;
    w->step.rope_count = w->rope.pairs ? 1 : 0;
    for (size_t r = 0; r < count; r++) {
        if (!w->rope.pairs)
            w->rows[r] = (struct blas_row){0, 0, 0, w->tables[0]};
        w->rows[r].id = (uint32_t)rng_below(&w->rng, IDS);
    }
    for (int i = 0; i < 2; i++)
        w->backends[i]->begin(w->devices[i], &w->step);
    for (size_t s = 0; s < SLOTS; s++) {
        for (size_t r = 0; r < count; r++)
            w->rows[r].id = (w->rows[r].id + 7) % IDS;
        struct op_embed op = {w->slots[s], w->fill, s % 3 ? 1.0f : 0.75f};
        for (int i = 0; i < 2; i++)
            w->backends[i]->embed(w->devices[i], &op);
    }
}

/* The same bits; of a NaN neither sign nor payload is defined. */
static bool same_number(float a, float b)
{
    return float_bits(a) == float_bits(b) || (isnan(a) && isnan(b));
}

/* Waits for both; all slots from `first` on must be the same, and so must be what finish says. */
static void compare(struct world *w, const char *what, size_t first)
{
    static float numbers[2][1 << 21];
    struct blas_fault faults[2];
    for (int i = 0; i < 2; i++) {
        struct stele_error err;
        ck_assert_msg(w->backends[i]->finish(w->devices[i], &faults[i], &err) == STELE_OK, "%s seed=%" PRIu64 ": %s",
                      what, w->seed, err.text);
    }
    for (size_t s = first; s < SLOTS; s++) {
        const size_t stride = w->slots[s].stride, all = (w->step.count - 1) * stride + w->width;
        ck_assert_uint_le(all, sizeof numbers[0] / sizeof *numbers[0]);
        for (int i = 0; i < 2; i++)
            w->backends[i]->peek(w->devices[i], w->slots[s], 0, all, numbers[i]);
        size_t n = 0;
        while (n < all && (n % stride >= w->width || same_number(numbers[0][n], numbers[1][n])))
            n++;
        ck_assert_msg(n == all, "%s: slot %zu row %zu of %zu number %zu: %a instead of %a, seed=%" PRIu64, what, s,
                      n / stride, w->step.count, n % stride, (double)numbers[1][n], (double)numbers[0][n], w->seed);
    }
}

static size_t random_count(struct world *w)
{
    static const size_t edges[] = {1, 1, 2, 4, 5, 8, 9, 31, 32, 33, 48, 64, 65, 128, 129, ROWS_MAX};
    return rng_below(&w->rng, 3) ? edges[rng_below(&w->rng, sizeof edges / sizeof *edges)]
                                 : rng_from(&w->rng, 1, 48);
}

static size_t random_size(struct world *w, size_t most)
{
    static const size_t edges[] = {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1024};
    size_t n =
        rng_below(&w->rng, 2) ? rng_from(&w->rng, 1, most) : edges[rng_below(&w->rng, sizeof edges / sizeof *edges)];
    return n < most ? n : most;
}

static void use_k(struct world *w, enum tensor_type type, size_t k)
{
    if (type_quantised(type) && k > w->setup.k_max)
        w->setup.k_max = k;
}

/* ---- the ops ---- */

START_TEST(linear_is_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    const enum tensor_type type = (enum tensor_type)_i;
    for (int round = 0; round < rounds; round++) {
        static struct world w;
        world_make(&w, seed_of(round));
        const int gate = (int)rng_below(&w.rng, GATES) - 1; /* clamped ones are the experts' */
        const size_t share = w.seed % 4, k = w.seed % 11 ? random_size(&w, 700) : rng_from(&w.rng, 2100, 9000);
        const size_t panels = rng_from(&w.rng, 1, k > 2000 ? 2 : 6) * (gate >= 0 ? 2 : 1);
        struct op_linear op = {
            .weight = matrix(&w, type, panels * PANEL_ROWS - (gate >= 0 ? 0 : rng_below(&w.rng, 16)), k, share),
            .gate = gate,
            .scale = rng_below(&w.rng, 2) ? 1.0f : 0.3f};
        use_k(&w, type, k);
        if (rng_below(&w.rng, 2))
            op.bias = vector(&w, panels * PANEL_ROWS, share);
        open_devices(&w, cuda, k > panels * PANEL_ROWS ? k : panels * PANEL_ROWS, share);
        op.in = w.slots[0];
        op.out = w.slots[1];
        op.has_residual = rng_below(&w.rng, 2);
        op.residual = w.slots[1 + rng_below(&w.rng, 2)];
        for (int step = 0; step < 4; step++) { /* new, again: a graph, again, another shape */
            begin(&w, step < 3 ? 1 + w.seed % 9 : random_count(&w));
            for (int i = 0; i < 2; i++)
                w.backends[i]->linear(w.devices[i], &op);
            compare(&w, type_name(type), 0);
        }
        world_free(&w);
    }
}
END_TEST

START_TEST(logits_are_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    const enum tensor_type type = (enum tensor_type)_i;
    for (int round = 0; round < rounds; round++) {
        static struct world w;
        static float out[2][ROWS_MAX * 200];
        world_make(&w, seed_of(round));
        const size_t share = w.seed % 4, k = random_size(&w, 600), rows = rng_from(&w.rng, 1, 200);
        struct op_logits op = {.head = matrix(&w, type, rows, k, share),
                               .scale = rng_below(&w.rng, 2) ? 1.0f : 0.125f,
                               .cap = rng_below(&w.rng, 2) ? 0.0f : 30.0f};
        use_k(&w, type, k);
        w.setup.vocabulary = rows;
        open_devices(&w, cuda, k, share);
        op.in = w.slots[2];
        const size_t count = random_count(&w), from = rng_below(&w.rng, count), n = rng_from(&w.rng, 1, count - from);
        begin(&w, count);
        for (int i = 0; i < 2; i++)
            w.backends[i]->logits(w.devices[i], &op, from, n, out[i]);
        ck_assert_msg(!memcmp(out[0], out[1], n * rows * sizeof(float)), "%s logits seed=%" PRIu64, type_name(type),
                      w.seed);
        compare(&w, "logits", 0);
        world_free(&w);
    }
}
END_TEST

START_TEST(embeddings_are_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    const enum tensor_type type = (enum tensor_type)_i;
    for (int round = 0; round < rounds / 4; round++) {
        static struct world w;
        world_make(&w, seed_of(round));
        const size_t k = random_size(&w, 600);
        struct op_embed op = {.table = matrix(&w, type, IDS, k, w.seed % 4),
                              .scale = rng_below(&w.rng, 2) ? 1.0f : 8.5f};
        open_devices(&w, cuda, k, 0);
        op.out = w.slots[3];
        begin(&w, random_count(&w));
        for (int i = 0; i < 2; i++)
            w.backends[i]->embed(w.devices[i], &op);
        compare(&w, "embed", 0);
        world_free(&w);
    }
}
END_TEST

START_TEST(norm_is_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    for (int round = 0; round < rounds; round++) {
        static struct world w;
        world_make(&w, seed_of(round));
        const size_t n = random_size(&w, 1100), share = w.seed % 4;
        struct op_norm op = {.weight = vector(&w, n, 0), .n = n, .epsilon = w.seed % 5 ? 1e-5f : 1e-12f};
        open_devices(&w, cuda, n, share);
        op.in = w.slots[0];
        op.has_residual = rng_below(&w.rng, 2);
        op.residual = w.slots[1 + rng_below(&w.rng, 2)];
        op.out = w.slots[op.has_residual ? 1 : rng_below(&w.rng, 2)];
        begin(&w, random_count(&w));
        for (int i = 0; i < 2; i++)
            w.backends[i]->norm(w.devices[i], &op);
        compare(&w, "norm", 0);
        world_free(&w);
    }
}
END_TEST

/* Rows of the step: each sequence goes on by some positions, or one alone does. */
static size_t random_rows(struct world *w, uint32_t next[SEQUENCES], bool many, bool alone)
{
    size_t count = 0;
    const uint32_t only = (uint32_t)rng_below(&w->rng, SEQUENCES);
    for (uint32_t s = alone ? only : 0; s < (alone ? only + 1 : SEQUENCES); s++)
        for (size_t n = many ? rng_from(&w->rng, 14, 24) : rng_below(&w->rng, 3); n && next[s] < CONTEXT && count < ROWS_MAX; n--, count++)
            w->rows[count] = (struct blas_row){0, next[s]++, s, w->tables[s]};
    if (!count)
        w->rows[count++] = (struct blas_row){0, next[0]++, 0, w->tables[0]};
    for (size_t i = 0; i < w->setup.rows_max * 2 * w->rope.pairs; i++)
        w->rope_rows[i] = rng_float(&w->rng);
    return count;
}

static void make_rope(struct world *w, size_t pairs)
{
    w->rope_rows = calloc(2 * ROWS_MAX * pairs + 1, sizeof *w->rope_rows);
    ck_assert_ptr_nonnull(w->rope_rows);
    w->rope = (struct blas_rope){w->rope_rows, pairs};
    w->setup.rope_numbers = 2 * pairs;
    for (uint32_t s = 0; s < SEQUENCES; s++) /* blocks in any order */
        for (uint32_t b = 0; b < (CONTEXT + 63) / 64; b++)
            w->tables[s][b] = b * SEQUENCES + (s + b) % SEQUENCES;
}

/* Sequences grow over many steps; every so often one goes on with another's block. The first few seeds have windows, rings,
 * sinks and caps, alone and together. */
START_TEST(keys_values_and_attention_are_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    for (int round = 0; round < rounds; round++) {
        static struct world w;
        uint32_t next[SEQUENCES] = {0};
        world_make(&w, seed_of(round));
        static const size_t dims[] = {2, 24, 64, 80, 128, 17};
        const size_t dim = dims[rng_below(&w.rng, 6)], kv_heads = rng_from(&w.rng, 1, 3),
                     heads = kv_heads * rng_from(&w.rng, 1, 6);
        const size_t blocks = (CONTEXT + 63) / 64, numbers = kv_heads * kv_head_numbers(dim);
        struct blas_kv kv = {.heads = kv_heads, .head_dim = dim, .window = w.seed % 2 ? 70 : 0};
        w.setup.kv_type = _i;
        kv.block_bytes = round_up(numbers * (_i == KV_F16 ? 2 : 4), 64);
        kv.ring = w.seed % 4 == 1 ? 3 : 0;
        kv.offset = 4096;
        w.setup.kv_bytes = kv.offset + kv.block_bytes * blocks * SEQUENCES;
        w.setup.heads_max = heads;
        w.setup.head_dim_max = dim;
        struct op_rope_kv rope = {.heads = heads, .epsilon = 1e-6f, .kv = kv};
        struct op_attention attend = {
            .heads = heads, .scale = 0.3f, .cap = w.seed % 5 < 3 ? 0.0f : 20.0f, .kv = kv};
        if (rng_below(&w.rng, 2))
            rope.q_norm = vector(&w, dim, 0);
        if (rng_below(&w.rng, 2))
            rope.k_norm = vector(&w, dim, 0);
        if (w.seed % 3)
            attend.sinks = vector(&w, heads, 0);
        make_rope(&w, rng_from(&w.rng, 1, dim / 2));
        if (rng_below(&w.rng, 4))
            rope.rope = &w.rope;
        open_devices(&w, cuda, heads * dim, 0);
        rope.q = attend.q = w.slots[0];
        rope.k = w.slots[1];
        rope.v = w.slots[2];
        attend.out = w.slots[3];
        for (int step = 0; step < 24; step++) {
            size_t row;
            begin(&w, random_rows(&w, next, step % 3 != 0, step % 4 == 1));
            for (int i = 0; i < 2; i++)
                ck_assert(w.backends[i]->rope_kv(w.devices[i], &rope, &row));
            if (w.step.count > 2 && step % 2) { /* as for the last layer: only the later rows go on */
                w.step = (struct blas_step){w.rows + 1, w.step.count - 1, 1, &w.rope, w.step.rope_count};
                for (int i = 0; i < 2; i++)
                    w.backends[i]->narrow(w.devices[i], &w.step);
            }
            for (int i = 0; i < 2; i++)
                w.backends[i]->attention(w.devices[i], &attend);
            compare(&w, "attention", 0);
            w.step.first = 0;
            if (step == 20 && !kv.ring)
                for (int i = 0; i < 2; i++)
                    w.backends[i]->copy_kv(w.devices[i], &kv, w.tables[0][0], w.tables[1][0]);
        }
        world_free(&w);
    }
}
END_TEST

/* The first row of the first op is named, and later steps are none the worse. */
START_TEST(keys_beyond_the_type_are_named)
{
    const struct cuda_library *cuda = library(_i % 2);
    static struct world w;
    struct blas_fault fault;
    struct stele_error err;
    size_t row;
    world_make(&w, 1);
    struct blas_kv kv = {.heads = 1, .head_dim = 8, .block_bytes = 4096};
    w.setup.kv_type = KV_F16;
    w.setup.kv_bytes = 4096 * 8 * SEQUENCES;
    w.setup.heads_max = 1;
    w.setup.head_dim_max = 8;
    make_rope(&w, 4);
    open_devices(&w, cuda, 64, 0);
    const void *seen;
    struct blas_matrix large = {TENSOR_F32, 1, 8, NULL};
    float *numbers = (float *)(void *)take(&w, panel_bytes(TENSOR_F32, 8), &seen);
    large.panels = seen;
    for (size_t i = 0; i < 8 * PANEL_ROWS; i++)
        numbers[i] = 65520;
    struct op_rope_kv op = {.q = w.slots[0], .k = w.slots[1], .v = w.slots[2], .heads = 1, .kv = kv};
    struct op_embed embed = {w.slots[4], large, 1};
    uint32_t next[SEQUENCES] = {0};
    for (int step = 0; step < 3; step++) {
        begin(&w, random_rows(&w, next, true, false));
        for (size_t r = 0; r < w.step.count; r++)
            w.rows[r].id = 0;
        w.backends[1]->embed(w.devices[1], &embed);
        w.backends[1]->rope_kv(w.devices[1], &op, &row);
        if (step != 1) {
            struct op_rope_kv bad = op;
            bad.v = w.slots[4];
            w.backends[1]->rope_kv(w.devices[1], &bad, &row);
        }
        ck_assert_int_eq(w.backends[1]->finish(w.devices[1], &fault, &err), STELE_OK);
        ck_assert(fault.op == (step == 1 ? SIZE_MAX : 1));
        ck_assert(step == 1 || fault.row == 0);
    }
    world_free(&w);
}
END_TEST

static void router_and_experts(struct world *w, const struct cuda_library *cuda, enum tensor_type up_type,
                               enum tensor_type down_type)
{
    const size_t count = random_size(w, 40), top = rng_from(&w->rng, 1, count < 9 ? count : 9), share = w->seed % 3;
    const size_t k = random_size(w, 300), hidden = rng_from(&w->rng, 1, 4) * PANEL_ROWS;
    const int gate = (int)rng_below(&w->rng, GATES + 1) - 1;
    const size_t width = hidden * (gate >= 0 ? 1 : 2), down_k = rng_from(&w->rng, width - 15, width);
    uint8_t used[2][64] = {{0}};
    struct op_router route = {.weight = matrix(w, TENSOR_F32, count, k, 0),
                              .top = top,
                              .routing = (enum blas_routing)rng_below(&w->rng, 3)};
    struct op_experts op = {.up = bank(w, up_type, 2 * hidden, k, count, share),
                            .down = bank(w, down_type, k, down_k, count, share),
                            .top = top,
                            .gate = gate,
                            .scale = rng_below(&w->rng, 2) ? 1.0f : 0.5f,
                            .limit = 7};
    use_k(w, up_type, k);
    use_k(w, down_type, down_k);
    if (rng_below(&w->rng, 2))
        route.bias = vector(w, round_up(count, PANEL_ROWS), 0);
    if (rng_below(&w->rng, 2)) {
        op.up_bias = vector(w, 2 * hidden * count, 0);
        op.down_bias = vector(w, round_up(k, PANEL_ROWS) * count, 0);
    }
    w->setup.experts_max = count;
    w->setup.top_max = top;
    w->setup.expert_width = round_up(2 * hidden > k ? 2 * hidden : k, PANEL_ROWS);
    open_devices(w, cuda, w->setup.expert_width > 2 * top ? w->setup.expert_width : 2 * top, share);
    struct blas_view *s = w->slots; /* gathered and gated come first: what they hold is nobody's business */
    op.gathered = s[0], op.gated = s[1];
    route.in = op.in = s[2];
    route.out = op.route = s[3];
    op.sum = s[4];
    op.out = s[5];
    op.has_residual = rng_below(&w->rng, 2);
    op.residual = s[5 + rng_below(&w->rng, 2)];
    for (int step = 0; step < 3; step++) {
        begin(w, step < 2 ? 1 + w->seed % 3 : random_count(w));
        for (int i = 0; i < 2; i++) {
            op.used = used[i];
            w->backends[i]->router(w->devices[i], &route);
            w->backends[i]->experts(w->devices[i], &op);
        }
        compare(w, type_name(up_type), 2);
        ck_assert_msg(!memcmp(used[0], used[1], sizeof used[0]), "used experts seed=%" PRIu64, w->seed);
    }
}

START_TEST(routers_and_experts_are_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    for (int round = 0; round < rounds; round++) {
        static struct world w;
        world_make(&w, seed_of(round));
        enum tensor_type down =
            rng_below(&w.rng, 3) ? (enum tensor_type)_i : (enum tensor_type)rng_below(&w.rng, TENSOR_TYPES);
        router_and_experts(&w, cuda, (enum tensor_type)_i, down);
        world_free(&w);
    }
}
END_TEST

/* A route that no router made: the same expert twice, none that exists, halves, in any order. */
START_TEST(hostile_routes_are_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    for (int round = 0; round < rounds; round++) {
        static struct world w;
        uint8_t used[2][64] = {{0}};
        world_make(&w, seed_of(round));
        const size_t count = rng_from(&w.rng, 1, 12), top = rng_from(&w.rng, 1, count), k = 48;
        struct op_experts op = {.up = bank(&w, TENSOR_Q8, 32, k, count, 0),
                                .down = bank(&w, TENSOR_Q8, k, 16, count, 0),
                                .top = top,
                                .gate = GATE_SILU,
                                .scale = 1};
        use_k(&w, TENSOR_Q8, k);
        w.setup.experts_max = count;
        w.setup.top_max = top;
        w.setup.expert_width = 48;
        const void *seen;
        struct blas_matrix routes = {TENSOR_F32, IDS, 48, NULL};
        float *numbers = (float *)(void *)take(&w, panel_count(IDS) * panel_bytes(TENSOR_F32, 48), &seen);
        routes.panels = seen;
        static const float odd[] = {0.5f, -1, 1e30f, -0.0f, 1e-40f, 4294967296.0f};
        for (size_t i = 0; i < panel_count(IDS) * panel_bytes(TENSOR_F32, 48) / 4; i++)
            numbers[i] = rng_below(&w.rng, 4) ? (float)rng_below(&w.rng, count + 1) : odd[rng_below(&w.rng, 6)];
        open_devices(&w, cuda, 64, 0);
        op.gathered = w.slots[0], op.gated = w.slots[1], op.in = w.slots[2], op.route = w.slots[3];
        op.sum = w.slots[4], op.out = w.slots[5];
        struct op_embed embed = {w.slots[3], routes, 1};
        begin(&w, random_count(&w));
        for (int i = 0; i < 2; i++) {
            op.used = used[i];
            w.backends[i]->embed(w.devices[i], &embed);
            w.backends[i]->experts(w.devices[i], &op);
        }
        compare(&w, "hostile route", 2);
        ck_assert(!memcmp(used[0], used[1], sizeof used[0]));
        world_free(&w);
    }
}
END_TEST

START_TEST(gate_is_the_cpus)
{
    const struct cuda_library *cuda = library(_i % 2);
    const enum tensor_type type = (enum tensor_type)_i;
    for (int round = 0; round < rounds / 2; round++) {
        static struct world w;
        world_make(&w, seed_of(round));
        const size_t k = random_size(&w, 600), n = random_size(&w, 400);
        struct op_gate op = {.weight = matrix(&w, type, 1, k, w.seed % 3), .n = n};
        use_k(&w, type, k);
        open_devices(&w, cuda, k > n ? k : n, 0);
        op.in = w.slots[0];
        op.branch = w.slots[1];
        op.residual = w.slots[2];
        op.out = w.slots[2 + rng_below(&w.rng, 2)];
        begin(&w, random_count(&w));
        for (int i = 0; i < 2; i++)
            w.backends[i]->gate(w.devices[i], &op);
        compare(&w, "gate", 0);
        world_free(&w);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cuda ops");
    struct {
        const char *name;
        const TTest *test;
        int loops;
    } cases[] = {{"embed", embeddings_are_the_cpus, TENSOR_TYPES},
                 {"linear", linear_is_the_cpus, TENSOR_TYPES},
                 {"logits", logits_are_the_cpus, TENSOR_TYPES},
                 {"norm", norm_is_the_cpus, 1},
                 {"attention", keys_values_and_attention_are_the_cpus, 2},
                 {"fault", keys_beyond_the_type_are_named, 1},
                 {"experts", routers_and_experts_are_the_cpus, TENSOR_TYPES},
                 {"routes", hostile_routes_are_the_cpus, 1},
                 {"gate", gate_is_the_cpus, TENSOR_TYPES}};
    rounds = rounds_of(20);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TCase *tc = tcase_create(cases[i].name);
        tcase_set_timeout(tc, 300);
        tcase_add_loop_test(tc, cases[i].test, 0, cases[i].loops);
        suite_add_tcase(suite, tc);
    }
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
