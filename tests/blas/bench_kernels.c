/* SPDX-License-Identifier: Apache-2.0 */
/* How near kernels come to what bounds them, per table and type:
 *
 *   decode    bytes of weights read a second by one row, over a buffer larger than the caches; the bound is a plain read
 *             of the same buffer
 *   rows N    the same for 4 to 32 rows; the bound is the slower of that read and of the peak below
 *   prefill   operations a second (a multiplication and an addition are two) of 512 rows, 2048 x 2048, in calls of 4
 *             panels and 128 rows as cpu.c makes them; the bound is a loop of the table's instruction on registers
 *   openblas  for float types the same product in binary32 by OpenBLAS, where it is installed, with its kernels for the
 *             table's instructions; the share is the rate of ours over it
 *   attend    bytes of keys and values read a second in the attention of one token as a session does it, on one thread
 *             and on two: 32 heads, 8 KV heads of 64, 8,192 positions; the bound is a read with as many threads
 *
 * Times are CPU times, those of attend of the clock. A bound is measured right beside each run; figures are medians over
 * the runs, the share is the median of shares, spread is the distance from the first to the third quartile of shares over
 * their median. Where even the first quartile of shares is above SHARE_MOST, it is exit 1: then the bound is none.
 *
 *   bench_kernels [-r RUNS] [TABLE [TYPE [decode|prefill|attend]]] */
#include <dlfcn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>

#include "../memory_stream.h"
#include "cases.h"
#include "ops.h"
#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    RUNS_MAX = 101,
    DECODE_K = 2048,
    PREFILL_M = 512,
    PREFILL_K = 2048,
    PREFILL_N = 2048,
    ATTEND_HEADS = 32,
    ATTEND_KV_HEADS = 8,
    ATTEND_DIM = 64,
    ATTEND_POSITIONS = 8192,
    READ_CHUNK = 128 << 10,
    PEAK_LOOPS = 400000,
    PEAK_CHAINS = 12, /* of a loop: 4 cycles of latency times 2 instructions a cycle want 8 */
    CALL_PANELS = 4,
    CALL_ROWS = 128,
};

#define SHARE_MOST 1.02

static const size_t decode_bytes = (size_t)192 << 20;

/* Of this thread on a CPU: what other processes take of the machine's time counts on neither side.
 */
static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- bounds ---- */

#if defined(__x86_64__)
/* An instruction on 12 registers, again and again: what is timed stands here and nowhere else. */
#define PEAK(name, vector, instruction)                                                            \
    static void name(void)                                                                         \
    {                                                                                              \
        long left = PEAK_LOOPS;                                                                    \
        __asm__ volatile(".irp i,0,1,2,3,4,5,6,7,8,9,10,11,14,15\n\t"                              \
                         "vpxor %%xmm\\i, %%xmm\\i, %%xmm\\i\n\t"                                  \
                         ".endr\n"                                                                 \
                         "1:\n\t"                                                                  \
                         ".irp i,0,1,2,3,4,5,6,7,8,9,10,11\n\t" instruction " %%" vector           \
                         "14, %%" vector "15, %%" vector "\\i\n\t"                                 \
                         ".endr\n\t"                                                               \
                         "decq %0\n\t"                                                             \
                         "jnz 1b\n\t"                                                              \
                         "vzeroupper"                                                              \
                         : "+r"(left)                                                              \
                         :                                                                         \
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                           "xmm9", "xmm10", "xmm11", "xmm14", "xmm15", "cc");                      \
    }
PEAK(peak_fma_512, "zmm", "vfmadd231ps")
PEAK(peak_dot_512, "zmm", "vpdpbusd")
PEAK(peak_fma_256, "ymm", "vfmadd231ps")
PEAK(peak_dot_256, "ymm", "vpmaddubsw")
#endif

struct peak {
    const char *table, *instruction;
    bool quantised;
    void (*run)(void);
    double operations; /* of one instruction */
    double q8;         /* instructions that a q8 product takes: 2 where it is made of halves */
};

static const struct peak peaks[] = {
#if defined(__x86_64__)
    {"avx512", "vfmadd231ps zmm", false, peak_fma_512, 32, 1},
    {"avx512", "vpdpbusd zmm", true, peak_dot_512, 128, 1},
    {"avx2", "vfmadd231ps ymm", false, peak_fma_256, 16, 1},
    {"avx2", "vpmaddubsw ymm", true, peak_dot_256, 64, 2},
#endif
    {NULL, NULL, false, NULL, 0, 0},
};

/* Operations a second of a table's instruction for a type; 0 where there is no loop for it. */
static double peak_rate(const char *table, enum tensor_type type)
{
    for (const struct peak *p = peaks; p->table; p++)
        if (!strcmp(p->table, table) && p->quantised == type_quantised(type)) {
            double start = seconds();
            p->run();
            return p->operations * PEAK_CHAINS * PEAK_LOOPS / (seconds() - start) /
                   (type == TENSOR_Q8 ? p->q8 : 1);
        }
    return 0;
}

/* ---- figures ---- */

struct figure {
    double rate[RUNS_MAX], share[RUNS_MAX];
    size_t runs;
    bool compares; /* with another, which bounds nothing */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void figure_add(struct figure *f, double rate, double bound)
{
    f->rate[f->runs] = rate;
    f->share[f->runs++] = bound > 0 ? rate / bound : 0;
}

static bool bounds_hold = true;

static void figure_print(struct figure *f, const char *table, const char *type, const char *what,
                         const char *unit)
{
    qsort(f->rate, f->runs, sizeof *f->rate, compare);
    qsort(f->share, f->runs, sizeof *f->share, compare);
    double share = f->share[f->runs / 2],
           spread = f->share[f->runs * 3 / 4] - f->share[f->runs / 4];
    printf("%-8s %-5s %-10s %8.2f %-7s", table, type, what, f->rate[f->runs / 2] * 1e-9, unit);
    if (share > 0)
        printf(" %6.1f %%   spread %4.1f %%\n", 100 * share, 100 * spread / share);
    else
        printf("      -\n");
    fflush(stdout);
    if (f->share[f->runs / 4] > SHARE_MOST && !f->compares) {
        fprintf(stderr, "bench_kernels: %s %s %s: %.1f %% of a bound that is none\n", table, type, what, 100 * share);
        bounds_hold = false;
    }
}

/* ---- the products ---- */

static void *pages(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

/* n_panels copies of a random panel of ordinary weights. */
static uint8_t *weights_make(enum tensor_type type, size_t n_panels, size_t k)
{
    struct rng r = {7};
    size_t bytes = panel_bytes(type, k);
    uint8_t *w = pages(round_up(n_panels * bytes, 4096));
    random_panel(&r, type, w, k, 0);
    for (size_t p = 1; p < n_panels; p++)
        memcpy(w + p * bytes, w, bytes);
    return w;
}

/* A run goes over the buffer in slices, now a slice read, now the slice half a buffer away worked
 * on, so that other load falls on both alike and neither finds in the cache what the other left. */
enum { SLICES = 16 };

struct slices {
    double read_s, work_s;
};

typedef void slice_work(const void *context, size_t first, size_t last);

/* `units` of `bytes` each from p on; work(context, first, last) works on some of them. */
static struct slices slices_run(const uint8_t *p, size_t units, size_t bytes, slice_work *work,
                                const void *context)
{
    struct slices total = {0, 0};
    for (size_t i = 0; i < SLICES; i++) {
        size_t at = (i + SLICES / 2) % SLICES, first = i * units / SLICES,
               last = (i + 1) * units / SLICES;
        double start = seconds();
        stream_read(p + first * bytes, (last - first) * bytes / 128 * 128);
        double middle = seconds();
        work(context, at * units / SLICES, (at + 1) * units / SLICES);
        total.read_s += middle - start;
        total.work_s += seconds() - middle;
    }
    return total;
}

struct decode {
    const struct blas_kernels *kernels;
    enum tensor_type type;
    const uint8_t *w;
    const struct blas_rows *x;
    size_t m;
};

/* In calls of up to 128 panels, so that results stay small. */
static void decode_slice(const void *context, size_t first, size_t last)
{
    static float y[32 * 128 * PANEL_ROWS];
    const struct decode *d = context;
    const size_t bytes = panel_bytes(d->type, DECODE_K);
    for (size_t p = first, n; p < last; p += n) {
        n = last - p < 128 ? last - p : 128;
        d->kernels->dot[d->type](y, 128 * PANEL_ROWS, d->w + p * bytes, n, DECODE_K, d->x, d->m);
    }
}

static void bench_decode(const struct blas_kernels *kernels, enum tensor_type type, size_t runs)
{
    enum { SIZES = 5 };
    static const size_t rows[SIZES] = {1, 4, 8, 16, 32};
    static const char *const names[SIZES] = {"decode", "rows 4", "rows 8", "rows 16", "rows 32"};
    struct rng r = {11};
    const size_t bytes = panel_bytes(type, DECODE_K), n_panels = decode_bytes / bytes;
    uint8_t *w = weights_make(type, n_panels, DECODE_K);
    struct dot_case x = {.type = type, .m = 32, .k = DECODE_K};
    struct figure figures[SIZES] = {0};
    dot_case_rows(&x, &r, 0);
    for (size_t run = 0; run < runs; run++)
        for (size_t i = 0; i < SIZES; i++) {
            struct decode d = {kernels, type, w, &x.x, rows[i]};
            double peak = peak_rate(kernels->name, type), all = (double)(n_panels * bytes);
            struct slices s = slices_run(w, n_panels, bytes, decode_slice, &d);
            double bound = all / s.read_s;
            /* bytes a second at which the operations of so many rows arrive */
            double limit = peak * (double)bytes / (2.0 * PANEL_ROWS * DECODE_K * (double)rows[i]);
            if (peak > 0 && limit < bound)
                bound = limit;
            figure_add(&figures[i], all / s.work_s, bound);
        }
    for (size_t i = 0; i < SIZES; i++)
        figure_print(&figures[i], kernels->name, type_name(type), names[i], "GB/s");
    struct guarded *all[] = {&x.f, &x.q, &x.scale, &x.sum};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        guarded_free(all[i]);
    munmap(w, round_up(n_panels * bytes, 4096));
}

/* cblas_sgemm */
typedef void sgemm(int order, int a_form, int b_form, int m, int n, int k, float alpha, const float *a, int a_stride,
                   const float *b, int b_stride, float beta, float *c, int c_stride);

/* OpenBLAS with its kernels for the table's instructions: it asks the environment when it is loaded, and
 * takes CPUs that it does not know for old ones. NULL where it is not there. */
static sgemm *openblas_open(const char *table)
{
    setenv("OPENBLAS_CORETYPE", strcmp(table, "avx512") ? "Haswell" : "SkylakeX", 0);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    void *library = dlopen("libopenblas.so.0", RTLD_NOW);
    union {
        void *object;
        sgemm *function;
    } symbol = {library ? dlsym(library, "cblas_sgemm") : NULL};
    return symbol.function;
}

static void bench_prefill(const struct blas_kernels *kernels, enum tensor_type type, size_t runs)
{
    static _Alignas(64) float y[CALL_ROWS * CALL_PANELS * PANEL_ROWS];
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    struct rng r = {13};
    const size_t groups = PREFILL_K / GROUP;
    const size_t other_stride = PREFILL_N + 16; /* no multiple of 4 KiB, as slots have it */
    const size_t other_bytes = PREFILL_N * PREFILL_K * sizeof(float);
    const size_t result_bytes = PREFILL_M * other_stride * sizeof(float);
    uint8_t *w = weights_make(type, PREFILL_N / PANEL_ROWS, PREFILL_K);
    float *other = pages(other_bytes), *result = pages(result_bytes);
    sgemm *theirs = type_quantised(type) ? NULL : openblas_open(kernels->name);
    struct dot_case x = {.type = type, .m = PREFILL_M, .k = PREFILL_K};
    struct figure figure = {0}, openblas = {.compares = true};
    dot_case_rows(&x, &r, 0);
    for (size_t i = 0; theirs && i < PREFILL_N * PREFILL_K; i++)
        other[i] = rng_float(&r);
    for (size_t run = 0; run < runs; run++) {
        const double operations = 2.0 * PREFILL_M * PREFILL_N * PREFILL_K;
        double bound = peak_rate(kernels->name, type), start = seconds();
        for (size_t p = 0; p < PREFILL_N / PANEL_ROWS; p += CALL_PANELS)
            for (size_t row = 0; row < PREFILL_M; row += CALL_ROWS) {
                struct blas_rows part = {.f = x.x.f + row * x.x.f_stride,
                                         .f_stride = x.x.f_stride,
                                         .q = x.x.q + row * PREFILL_K,
                                         .scale = x.x.scale + row * groups,
                                         .sum = x.x.sum + row * 2 * groups};
                kernels->dot[type](y, CALL_PANELS * PANEL_ROWS, w + p * panel_bytes(type, PREFILL_K), CALL_PANELS,
                                   PREFILL_K, &part, CALL_ROWS);
            }
        double middle = seconds(), rate = operations / (middle - start);
        figure_add(&figure, rate, bound);
        if (!theirs)
            continue;
        theirs(ROW_MAJOR, PLAIN, TRANSPOSED, PREFILL_M, PREFILL_N, PREFILL_K, 1, x.x.f, (int)x.x.f_stride, other, PREFILL_K,
               0, result, (int)other_stride);
        openblas.rate[openblas.runs] = operations / (seconds() - middle);
        openblas.share[openblas.runs] = rate / openblas.rate[openblas.runs];
        openblas.runs++;
    }
    figure_print(&figure, kernels->name, type_name(type), "prefill", "GOP/s");
    if (theirs)
        figure_print(&openblas, kernels->name, type_name(type), "openblas", "GOP/s");
    struct guarded *all[] = {&x.f, &x.q, &x.scale, &x.sum};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        guarded_free(all[i]);
    munmap(w, round_up(PREFILL_N / PANEL_ROWS * panel_bytes(type, PREFILL_K), 4096));
    munmap(result, result_bytes);
    munmap(other, other_bytes);
}

/* Attention of one token as a session does it: the op of the back end, its memory, its threads. */
struct attention {
    struct blas_device *device;
    struct pool *pool; /* for the bound */
    const uint8_t *other;
    size_t bytes; /* of a layer */
    struct op_rope_kv store;
    struct op_attention op;
};

static double wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The first KV block of each layer is filled with random numbers, the others are copies. */
static void attention_fill(struct attention *a, size_t layers)
{
    enum { Q = ATTEND_HEADS * ATTEND_DIM, KV = ATTEND_KV_HEADS * ATTEND_DIM, ALL = 2 * Q + 2 * KV };
    static struct blas_row rows[KV_BLOCK];
    static struct blas_step step = {.rows = rows, .count = KV_BLOCK};
    static uint32_t blocks[ATTEND_POSITIONS / KV_BLOCK];
    struct rng r = {17};
    size_t bad, bytes = panel_bytes(TENSOR_F32, ALL) * panel_count(KV_BLOCK);
    float *numbers = pages(round_up(bytes, 4096));
    for (uint32_t i = 0; i < ATTEND_POSITIONS / KV_BLOCK; i++)
        blocks[i] = i;
    for (uint32_t i = 0; i < KV_BLOCK; i++)
        rows[i] = (struct blas_row){.id = i, .position = i, .blocks = blocks};
    for (size_t i = 0; i < bytes / sizeof *numbers; i++)
        numbers[i] = rng_float(&r);
    struct blas_view row = {.stride = ALL};
    struct op_embed embed = {row, {TENSOR_F32, KV_BLOCK, ALL, numbers}, 1};
    a->op = (struct op_attention){.q = row,
                                  .out = {Q + 2 * KV, ALL},
                                  .heads = ATTEND_HEADS,
                                  .scale = 0.125f,
                                  .kv = {.block_bytes = a->bytes / (ATTEND_POSITIONS / KV_BLOCK),
                                         .heads = ATTEND_KV_HEADS,
                                         .head_dim = ATTEND_DIM}};
    struct op_rope_kv store = {.q = row, .k = {Q, ALL}, .v = {Q + KV, ALL}, .heads = ATTEND_HEADS, .kv = a->op.kv};
    blas_cpu.begin(a->device, &step);
    blas_cpu.embed(a->device, &embed);
    for (size_t i = 0; i < layers; i++) {
        store.kv.offset = i * a->bytes;
        blas_cpu.rope_kv(a->device, &store, &bad);
        for (size_t b = 1; b < ATTEND_POSITIONS / KV_BLOCK; b++)
            blas_cpu.copy_kv(a->device, &store.kv, b, 0);
    }
    rows[0].position = ATTEND_POSITIONS - 1;
    step.count = 1;
    munmap(numbers, round_up(bytes, 4096));
}

static void read_chunks(void *context, size_t from, size_t to, size_t thread)
{
    const struct attention *a = context;
    (void)thread;
    stream_read(a->other + from * READ_CHUNK, (to - from) * READ_CHUNK);
}

/* By turns a layer's keys and values, and as many bytes of another buffer. */
static void bench_attend(const struct blas_kernels *kernels, int type, size_t threads, size_t runs)
{
    struct attention a = {.bytes = ATTEND_POSITIONS / KV_BLOCK * ATTEND_KV_HEADS *
                                   kv_head_numbers(ATTEND_DIM) * (type == KV_F16 ? 2 : 4)};
    const size_t layers = decode_bytes / a.bytes;
    struct figure figure = {0};
    struct stele_error err;
    struct blas_setup setup = {.threads = threads,
                               .rows_max = KV_BLOCK,
                               .scratch_numbers = KV_BLOCK * 2 * (ATTEND_HEADS + ATTEND_KV_HEADS) * ATTEND_DIM,
                               .kv_bytes = layers * a.bytes,
                               .kv_type = type,
                               .heads_max = ATTEND_HEADS,
                               .head_dim_max = ATTEND_DIM,
                               .kernels = kernels};
    uint8_t *other = pages(layers * a.bytes);
    memset(other, 1, layers * a.bytes);
    a.pool = pool_open(threads);
    if (!a.pool || blas_cpu.open(&a.device, &setup, &err) != STELE_OK) {
        fputs("no memory\n", stderr);
        exit(1);
    }
    attention_fill(&a, layers);
    for (size_t run = 0; run < runs; run++) {
        double read_s = 0, work_s = 0;
        for (size_t i = 0; i < layers; i++) {
            a.other = other + (i + layers / 2) % layers * a.bytes;
            a.op.kv.offset = i * a.bytes;
            double start = wall();
            pool_run(a.pool, a.bytes / READ_CHUNK, read_chunks, &a);
            double middle = wall();
            blas_cpu.attention(a.device, &a.op);
            read_s += middle - start;
            work_s += wall() - middle;
        }
        figure_add(&figure, (double)(layers * a.bytes) / work_s, (double)(layers * a.bytes) / read_s);
    }
    figure_print(&figure, kernels->name, type ? "f16" : "f32", threads > 1 ? "attend, 2" : "attend", "GB/s");
    blas_cpu.close(a.device);
    pool_close(a.pool);
    munmap(other, layers * a.bytes);
}

static bool wanted(const char *name, const char *only)
{
    return !only || !strcmp(name, only);
}

static void bench_table(const struct blas_kernels *kernels, const char *type, const char *what, size_t runs)
{
    for (size_t t = 0; t < TENSOR_TYPES; t++) {
        if (wanted(type_name((enum tensor_type)t), type) && wanted("decode", what))
            bench_decode(kernels, (enum tensor_type)t, runs);
        if (wanted(type_name((enum tensor_type)t), type) && wanted("prefill", what))
            bench_prefill(kernels, (enum tensor_type)t, runs);
    }
    for (size_t threads = 1; wanted("attend", what) && threads <= 2; threads++) {
        if (wanted("f16", type))
            bench_attend(kernels, KV_F16, threads, runs);
        if (wanted("f32", type))
            bench_attend(kernels, KV_F32, threads, runs);
    }
}

int main(int argc, char **argv)
{
    size_t runs = 9;
    int option;
    while ((option = getopt(argc, argv, "r:")) != -1) {
        runs = option == 'r' ? strtoul(optarg, NULL, 10) : 0;
        if (!runs || runs > RUNS_MAX) {
            fprintf(stderr, "usage: bench_kernels [-r RUNS] [TABLE [TYPE [decode|prefill|attend]]]\n");
            return 2;
        }
    }
    const char *table = optind < argc ? argv[optind] : NULL,
               *type = optind + 1 < argc ? argv[optind + 1] : NULL,
               *what = optind + 2 < argc ? argv[optind + 2] : NULL;
    for (size_t i = 0; blas_table(i); i++) {
        const struct blas_kernels *kernels = blas_table(i);
        if (!kernels->usable() || !wanted(kernels->name, table) ||
            (!table && !strcmp(kernels->name, "generic")))
            continue;
        pid_t child = fork(); /* one for each table: OpenBLAS chooses its kernels once */
        int status = 1;
        if (child == 0) {
            bench_table(kernels, type, what, runs);
            return bounds_hold ? 0 : 1;
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status)
            return 1;
    }
    return 0;
}
