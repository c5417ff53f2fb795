/* SPDX-License-Identifier: Apache-2.0 */
/* How near whole steps of a model come to what bounds them: a session of the image, and right beside each measurement its
 * bound over the same mapping with as many threads.
 *
 *   bench_step IMAGE [-t THREADS] [-r ROUNDS] [-n STEPS] [-c POSITION] [-p]
 *
 * A round reads all weights once, then decodes STEPS tokens at POSITION (0), logits included. Prints one JSON object:
 * tokens_per_s and bound_gb_s are medians over the rounds, share the median of (bytes of weights and KV that a step reads
 * over its time) / (rate of the read), spread the distance between the quartiles of shares over their median. quiet is the
 * share of the best tenths on both sides: what other programs take of the machine's time counts least there.
 * -p also prints to stderr where a step's time goes, op by op. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../memory_stream.h"
#include "executor.h"
#include "image.h"
#include "pool.h"

enum { ROUNDS_MAX = 999, READ_CHUNK = 128 << 10 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "bench_step: %s: %s\n", what, why);
    exit(1);
}

/* ---- where a step's time goes: a back end that looks at the clock around another ---- */

static double op_seconds[PLAN_CODES];

#define TIMED(CODE, call)                                                                                              \
    double begin = now();                                                                                              \
    call;                                                                                                              \
    op_seconds[CODE] += now() - begin
#define TIMED_OP(CODE, name)                                                                                           \
    static void timed_##name(struct blas_device *d, const struct op_##name *op)                                        \
    {                                                                                                                  \
        TIMED(CODE, blas_cpu.name(d, op));                                                                             \
    }
TIMED_OP(PLAN_EMBED, embed)
TIMED_OP(PLAN_NORM, norm)
TIMED_OP(PLAN_ATTENTION, attention)
TIMED_OP(PLAN_ROUTER, router)
TIMED_OP(PLAN_EXPERTS, experts)
TIMED_OP(PLAN_GATE, gate)

/* Matrices of one shape. */
static struct shape {
    size_t rows, k;
    double bytes, seconds;
} shapes[16];

static void timed_linear(struct blas_device *d, const struct op_linear *op)
{
    TIMED(PLAN_LINEAR, blas_cpu.linear(d, op));
    double end = now();
    const struct blas_matrix *w = &op->weight;
    struct shape *s = shapes;
    while (s->rows && (s->rows != w->rows || s->k != w->k) && s < shapes + 15)
        s++;
    *s = (struct shape){w->rows, w->k, s->bytes + (double)(panel_count(w->rows) * panel_bytes(w->type, w->k)),
                        s->seconds + end - begin};
}

static bool timed_rope_kv(struct blas_device *d, const struct op_rope_kv *op, size_t *row)
{
    TIMED(PLAN_ROPE_KV, bool good = blas_cpu.rope_kv(d, op, row));
    return good;
}

static void timed_logits(struct blas_device *d, const struct op_logits *op, size_t from, size_t count, float *out)
{
    TIMED(PLAN_LOGITS, blas_cpu.logits(d, op, from, count, out));
}

static struct blas_backend timed_backend(void)
{
    struct blas_backend b = blas_cpu;
    b.embed = timed_embed;
    b.norm = timed_norm;
    b.linear = timed_linear;
    b.rope_kv = timed_rope_kv;
    b.attention = timed_attention;
    b.router = timed_router;
    b.experts = timed_experts;
    b.gate = timed_gate;
    b.logits = timed_logits;
    return b;
}

static void print_profile(const struct stele_session *s, double steps, double all)
{
    double sum = 0;
    for (int code = 0; code < PLAN_CODES; code++) {
        if (op_seconds[code] > 0)
            fprintf(stderr, "%-12s %9.1f us a step\n", plan_forms[code].name, 1e6 * op_seconds[code] / steps);
        sum += op_seconds[code];
    }
    for (struct shape *m = shapes; m->rows; m++)
        fprintf(stderr, "%6zu x %-6zu %8.1f us a step, %5.1f GB/s\n", m->rows, m->k, 1e6 * m->seconds / steps,
                1e-9 * m->bytes / m->seconds);
    fprintf(stderr, "%-12s %9.1f us a step, %u ops\n", "between", 1e6 * (all - sum) / steps, s->plan.counts.ops);
}

/* ---- the bound ---- */

struct reading {
    const uint8_t *bytes;
    size_t length;
};

static void read_chunks(void *context, size_t from, size_t to, size_t thread)
{
    const struct reading *r = context;
    (void)thread;
    size_t begin = from * READ_CHUNK, end = to * READ_CHUNK < r->length ? to * READ_CHUNK : r->length;
    stream_read(r->bytes + begin, (end - begin) / 128 * 128);
}

/* Bytes a second. */
static double read_rate(struct pool *pool, struct reading *r)
{
    double begin = now();
    pool_run(pool, (r->length + READ_CHUNK - 1) / READ_CHUNK, read_chunks, r);
    return (double)r->length / (now() - begin);
}

/* ---- steps ---- */

/* What a step reads of the weights: all tensors but an embedding that is not the head as well; of a bank of experts, of
 * which the table states one, as many as a token takes. */
static double weight_bytes(const struct stele_session *s)
{
    uint32_t embedding = s->plan.ops[0].embed.table, head = s->plan.ops[s->plan.counts.ops - 1].logits.head;
    double sum = 0;
    for (uint32_t i = 0; i < s->plan.tensor_count; i++)
        if (i != embedding || embedding == head)
            sum += (double)s->plan.tensors[i].bytes;
    for (uint32_t i = 0; i < s->plan.counts.ops; i++)
        if (s->plan.ops[i].code == PLAN_EXPERTS) {
            const struct plan_experts *op = &s->plan.ops[i].experts;
            sum += (double)(op->top - 1) * (double)(s->plan.tensors[op->up].bytes + s->plan.tensors[op->down].bytes);
        }
    return sum;
}

static double kv_bytes(const struct stele_session *s, uint32_t position)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->plan.counts.states; i++) {
        const struct plan_state *state = &s->plan.states[i];
        double seen = state->window && state->window < position ? state->window : position;
        sum += seen * 2 * state->heads * state->head_dim * (s->kv_type == KV_F16 ? 2 : 4);
    }
    return sum;
}

static void step(struct stele_session *s, uint32_t first, const uint32_t *ids, uint32_t count, float *logits)
{
    struct stele_error err;
    struct stele_slice slice = {.first = first, .count = count, .logits_from = logits ? count - 1 : count, .ids = ids};
    if (stele_step(s, &slice, 1, &err) != STELE_OK || (logits && stele_logits(s, 0, 1, logits, &err) != STELE_OK))
        fail("step", err.text);
}

static void fill(struct stele_session *s, uint32_t positions)
{
    static uint32_t ids[512];
    for (uint32_t i = 0; i < 512; i++)
        ids[i] = 1 + i * 7919 % (s->plan.counts.vocabulary - 1);
    for (uint32_t at = 0, n; at < positions; at += n) {
        n = positions - at < s->chunk ? positions - at : s->chunk;
        n = n < 512 ? n : 512;
        step(s, at, ids, n, NULL);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static double rates[ROUNDS_MAX], bounds[ROUNDS_MAX], shares[ROUNDS_MAX];
    uint32_t threads = 1, rounds = 15, steps = 8, position = 0;
    bool profile = false;
    for (int c; (c = getopt(argc, argv, "t:r:n:c:p")) >= 0;) {
        uint32_t n = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
        if (c == 'p')
            profile = true;
        else if (c == '?')
            return 2;
        else
            *(c == 't' ? &threads : c == 'r' ? &rounds : c == 'n' ? &steps : &position) = n;
    }
    if (optind + 1 != argc || !threads || !rounds || rounds > ROUNDS_MAX || !steps) {
        fputs("usage: bench_step IMAGE [-t THREADS] [-r ROUNDS] [-n STEPS] [-c POSITION] [-p]\n", stderr);
        return 2;
    }
    struct stele_image *image;
    struct stele_session *s;
    struct stele_error err;
    struct stele_options o = {.threads = threads, .kernels = getenv("STELE_KERNELS")};
    if (stele_image_open(&image, argv[optind], &err) != STELE_OK || stele_session_open(&s, image, &o, &err) != STELE_OK)
        fail(argv[optind], err.text);
    struct pool *pool = pool_open(threads);
    float *logits = malloc(s->plan.counts.vocabulary * sizeof *logits);
    if (!pool || !logits || position + steps > s->context)
        fail(argv[optind], "no memory, or the position lies beyond the context");
    struct blas_backend timed = timed_backend();
    uint64_t length;
    const uint8_t *weights = image_section(s->image, SECTION_WEIGHTS, &length);
    struct reading reading = {weights, length};
    uint32_t id = 1;
    double bytes = weight_bytes(s) + kv_bytes(s, position + steps / 2), all = 0;
    fill(s, position);
    step(s, position, &id, 1, logits);
    if (profile)
        s->backend = &timed;
    for (uint32_t r = 0; r < rounds; r++) {
        bounds[r] = read_rate(pool, &reading);
        double begin = now();
        for (uint32_t i = 0; i < steps; i++, id = 1 + id * 7919 % (s->plan.counts.vocabulary - 1))
            step(s, position + i, &id, 1, logits);
        double time = now() - begin;
        all += time;
        rates[r] = steps / time;
        shares[r] = bytes * rates[r] / bounds[r];
    }
    if (profile)
        print_profile(s, (double)rounds * steps, all);
    qsort(rates, rounds, sizeof *rates, ascending);
    qsort(bounds, rounds, sizeof *bounds, ascending);
    qsort(shares, rounds, sizeof *shares, ascending);
    double share = shares[rounds / 2];
    double quiet = bytes * rates[rounds - 1 - rounds / 10] / bounds[rounds - 1 - rounds / 10];
    printf("{\"tokens_per_s\": %.3f, \"read_gb_s\": %.3f, \"bound_gb_s\": %.3f, \"share\": %.4f, \"spread\": %.4f, "
           "\"quiet\": %.4f, \"threads\": %u, \"kernels\": \"%s\"}\n",
           rates[rounds / 2], bytes * rates[rounds / 2] * 1e-9, bounds[rounds / 2] * 1e-9, share,
           (shares[rounds * 3 / 4] - shares[rounds / 4]) / share, quiet, threads, s->kernels);
    free(logits);
    pool_close(pool);
    stele_session_close(s);
    stele_image_close(image);
    return 0;
}
