/* SPDX-License-Identifier: Apache-2.0 */
/* A session: opened once, then stepped. Opening resolves every operand, so that a step is a walk over ops.
 *
 *     stele_session_open   plan_open (checks) -> resolve -> back end reserves memory
 *     stele_step           rows of all slices -> RoPE rows -> ops in order, the last layer's only for rows that matter
 *     stele_logits         the last op, in blocks of rows as the caller wants them
 */
#include "executor.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ahead.h"
#include "arrival.h"
#include "cpus.h"
#include "cuda_memory.h"
#include "gpus.h"
#include "library.h"
#include "numbers.h"
#include "residency.h"

/* Of an image that arrives, what does not fit into the first step is computed when all is there. */
enum { CHUNK_DEFAULT = 512, CHUNK_ARRIVING = 2048, THREADS_MAX = 256, SEQUENCES_MAX = 4096 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- resolving ---- */

struct resolver {
    struct stele_session *session;
    size_t experts; /* of the layers resolved so far */
    const uint8_t *weights;
    size_t kv_blocks;  /* of all sequences */
    size_t *kv_offset; /* [states] */
};

static struct blas_view view(const struct resolver *r, uint32_t slot, uint32_t column)
{
    const struct plan_slot *s = &r->session->plan.slots[slot];
    return (struct blas_view){(size_t)s->offset * r->session->chunk + column, s->stride};
}

static struct blas_matrix matrix(const struct resolver *r, uint32_t tensor)
{
    const struct image_tensor *t = &r->session->plan.tensors[tensor];
    return (struct blas_matrix){(enum tensor_type)t->type, t->rows, t->columns, r->weights + t->offset};
}

static const float *vector(const struct resolver *r, uint32_t tensor)
{
    return tensor == PLAN_NONE ? NULL : (const float *)(r->weights + r->session->plan.tensors[tensor].offset);
}

static size_t number_bytes(const struct stele_session *s)
{
    return s->kv_type == KV_F16 ? 2 : 4;
}

/* Blocks that a sequence needs of a state with a window: those that the rows of a step see and write. 0 where that is no
 * less than the whole context. */
static size_t ring_blocks(const struct stele_session *s, const struct plan_state *state)
{
    if (!state->window)
        return 0;
    size_t blocks = ((size_t)state->window + s->chunk + KV_BLOCK - 1) / KV_BLOCK + 1;
    return blocks < s->kv.blocks_each ? blocks : 0;
}

static struct blas_kv kv_of(const struct resolver *r, uint32_t state)
{
    const struct plan_state *s = &r->session->plan.states[state];
    return (struct blas_kv){
        .offset = r->kv_offset[state],
        .block_bytes = (size_t)s->position_numbers * KV_BLOCK * number_bytes(r->session),
        .heads = s->heads,
        .head_dim = s->head_dim,
        .window = s->window,
        .ring = ring_blocks(r->session, s),
    };
}

static void resolve_embed(struct resolver *r, struct executor_op *to, const struct plan_embed *op)
{
    to->out = op->out;
    to->embed = (struct op_embed){view(r, op->out, 0), matrix(r, op->table), op->scale};
}

static void resolve_norm(struct resolver *r, struct executor_op *to, const struct plan_norm *op)
{
    to->out = op->out;
    to->norm = (struct op_norm){
        .in = view(r, op->in, op->column),
        .out = view(r, op->out, op->column),
        .weight = vector(r, op->weight),
        .n = r->session->plan.tensors[op->weight].columns,
        .epsilon = op->epsilon,
        .has_residual = op->residual != PLAN_NONE,
    };
    if (op->residual != PLAN_NONE)
        to->norm.residual = view(r, op->residual, op->column);
}

/* The gate of an activation as the back end knows it; -1: none. */
static int gate_of(uint32_t activation)
{
    static const int gates[ACTIVATIONS] = {[ACTIVATION_NONE] = -1,
                                           [ACTIVATION_SILU_GATE] = GATE_SILU,
                                           [ACTIVATION_GELU_GATE] = GATE_GELU,
                                           [ACTIVATION_CLAMPED_GATE] = GATE_CLAMPED};
    return gates[activation];
}

static void resolve_linear(struct resolver *r, struct executor_op *to, const struct plan_linear *op)
{
    to->out = op->out;
    to->linear = (struct op_linear){
        .in = view(r, op->in, 0),
        .out = view(r, op->out, 0),
        .weight = matrix(r, op->weight),
        .bias = vector(r, op->bias),
        .gate = gate_of(op->activation),
        .has_residual = op->residual != PLAN_NONE,
        .scale = op->scale,
    };
    if (op->residual != PLAN_NONE)
        to->linear.residual = view(r, op->residual, 0);
}

static void resolve_rope_kv(struct resolver *r, struct executor_op *to, const struct plan_rope_kv *op)
{
    to->out = op->qkv;
    to->rope_kv = (struct op_rope_kv){
        .q = view(r, op->qkv, op->q),
        .k = view(r, op->qkv, op->k),
        .v = view(r, op->qkv, op->v),
        .heads = op->heads,
        .q_norm = vector(r, op->q_norm),
        .k_norm = vector(r, op->k_norm),
        .epsilon = op->epsilon,
        .rope = op->rope == PLAN_NONE ? NULL : &r->session->ropes[op->rope],
        .kv = kv_of(r, op->kv),
    };
}

static void resolve_attention(struct resolver *r, struct executor_op *to, const struct plan_attention *op)
{
    to->out = op->out;
    to->attention = (struct op_attention){view(r, op->qkv, op->q), view(r, op->out, 0), op->heads,
                                          op->scale,               op->cap,             vector(r, op->sinks),
                                          kv_of(r, op->kv)};
}

static void resolve_router(struct resolver *r, struct executor_op *to, const struct plan_router *op)
{
    static const enum blas_routing routings[ROUTINGS] = {
        [ROUTING_ALL] = BLAS_ROUTING_ALL, [ROUTING_NORMED] = BLAS_ROUTING_NORMED, [ROUTING_CHOSEN] = BLAS_ROUTING_CHOSEN};
    to->out = op->out;
    to->router = (struct op_router){view(r, op->in, 0),     view(r, op->out, 0), matrix(r, op->weight),
                                    vector(r, op->bias), op->top,             routings[op->routing]};
}

static struct blas_bank bank(const struct resolver *r, uint32_t tensor)
{
    const struct image_tensor *t = &r->session->plan.tensors[tensor];
    return (struct blas_bank){matrix(r, tensor), t->stride, t->count};
}

static void resolve_experts(struct resolver *r, struct executor_op *to, const struct plan_experts *op)
{
    to->out = op->out;
    to->experts = (struct op_experts){
        .in = view(r, op->in, 0),
        .route = view(r, op->route, 0),
        .out = view(r, op->out, 0),
        .gathered = view(r, op->gathered, 0),
        .gated = view(r, op->gated, 0),
        .sum = view(r, op->sum, 0),
        .up = bank(r, op->up),
        .down = bank(r, op->down),
        .top = op->top,
        .up_bias = vector(r, op->up_bias),
        .down_bias = vector(r, op->down_bias),
        .gate = gate_of(op->activation),
        .has_residual = op->residual != PLAN_NONE,
        .scale = op->scale,
        .limit = op->limit,
        .used = r->session->experts_used + r->experts,
    };
    r->experts += to->experts.up.count;
    if (op->residual != PLAN_NONE)
        to->experts.residual = view(r, op->residual, 0);
}

static void resolve_gate(struct resolver *r, struct executor_op *to, const struct plan_gate *op)
{
    to->out = op->out;
    to->gate = (struct op_gate){view(r, op->in, 0),       view(r, op->branch, 0),  view(r, op->out, 0),
                                view(r, op->residual, 0), matrix(r, op->weight), r->session->plan.slots[op->out].width};
}

static void resolve_logits(struct resolver *r, struct executor_op *to, const struct plan_logits *op)
{
    to->out = PLAN_NONE;
    to->logits = (struct op_logits){view(r, op->in, 0), matrix(r, op->head), op->scale, op->cap};
}

static void resolve(struct resolver *r)
{
    const struct plan *plan = &r->session->plan;
    for (uint32_t i = 0; i < plan->counts.ops; i++) {
        struct executor_op *to = &r->session->ops[i];
        to->code = (enum plan_code)plan->ops[i].code;
        if (to->code == PLAN_ROPE_KV)
            r->session->tail = i + 1;
        switch (to->code) {
#define PLAN_OP(CODE, name)                                                                                            \
    case PLAN_##CODE:                                                                                                  \
        resolve_##name(r, to, &plan->ops[i].name);                                                                     \
        break;
#define PLAN_ARG(kind, name)
#define PLAN_END(CODE, name)
#include "plan.def"
#undef PLAN_OP
#undef PLAN_ARG
#undef PLAN_END
        case PLAN_CODES:
            break;
        }
    }
}

/* ---- opening ---- */

static void measure_experts(const struct plan *plan, const struct plan_experts *op, struct blas_setup *setup)
{
    const struct image_tensor *up = &plan->tensors[op->up], *down = &plan->tensors[op->down];
    size_t width = round_up(up->rows > down->rows ? up->rows : down->rows, PANEL_ROWS);
    setup->experts_max = up->count > setup->experts_max ? up->count : setup->experts_max;
    setup->top_max = op->top > setup->top_max ? op->top : setup->top_max;
    setup->expert_width = width > setup->expert_width ? width : setup->expert_width;
}

/* Sizes that the back end's memory depends on: the widest quantised K, the most heads. */
static void measure(const struct stele_session *s, struct blas_setup *setup)
{
    for (uint32_t i = 0; i < s->plan.counts.ropes; i++)
        setup->rope_numbers += 2 * (size_t)s->plan.ropes[i].pairs;
    for (uint32_t i = 0; i < s->plan.tensor_count; i++) {
        const struct image_tensor *t = &s->plan.tensors[i];
        if (type_quantised((enum tensor_type)t->type) && t->columns > setup->k_max)
            setup->k_max = t->columns;
    }
    for (uint32_t i = 0; i < s->plan.counts.ops; i++)
        if (s->plan.ops[i].code == PLAN_EXPERTS)
            measure_experts(&s->plan, &s->plan.ops[i].experts, setup);
        else if (s->plan.ops[i].code == PLAN_ROUTER) {
            size_t rows = s->plan.tensors[s->plan.ops[i].router.weight].rows;
            setup->experts_max = rows > setup->experts_max ? rows : setup->experts_max;
        } else if (s->plan.ops[i].code == PLAN_ATTENTION) {
            const struct plan_attention *op = &s->plan.ops[i].attention;
            size_t head_dim = s->plan.states[op->kv].head_dim;
            setup->heads_max = op->heads > setup->heads_max ? op->heads : setup->heads_max;
            setup->head_dim_max = head_dim > setup->head_dim_max ? head_dim : setup->head_dim_max;
        }
}

/* f32 where every matrix is f32: rounding keys and values would be the only loss. */
static int default_kv(const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->tensor_count; i++)
        if (plan->tensors[i].type != TENSOR_F32)
            return KV_F16;
    return KV_F32;
}

static enum stele_status check_options(struct stele_session *s, const struct stele_options *o, struct stele_error *err)
{
    uint32_t trained = s->plan.counts.context;
    if (o->kv != STELE_KV_DEFAULT && o->kv != STELE_KV_F32 && o->kv != STELE_KV_F16)
        return stele_fail(err, STELE_USAGE, "no type %d of keys and values", (int)o->kv);
    s->context = o->context ? o->context : trained;
    if (s->context > trained)
        return stele_fail(err, STELE_USAGE, "a context of %" PRIu32 " is more than the %" PRIu32 " the model was trained for",
                          s->context, trained);
    if (o->threads > THREADS_MAX || o->sequences > SEQUENCES_MAX)
        return stele_fail(err, STELE_USAGE, "at most %d threads and %d sequences", THREADS_MAX, SEQUENCES_MAX);
    s->chunk = o->chunk ? o->chunk : s->image->arrival ? CHUNK_ARRIVING : CHUNK_DEFAULT;
    uint32_t most = s->context > o->sequences ? s->context : o->sequences;
    s->chunk = s->chunk < most ? s->chunk : most;
    s->kv_type = o->kv == STELE_KV_DEFAULT ? (uint32_t)default_kv(&s->plan) : o->kv == STELE_KV_F16 ? KV_F16 : KV_F32;
    return STELE_OK;
}

/* The arrays of the session; calloc'ed or untouched until used. */
static enum stele_status allocate(struct stele_session *s, struct stele_error *err)
{
    size_t pairs = 0;
    for (uint32_t i = 0; i < s->plan.counts.ropes; i++)
        pairs += s->plan.ropes[i].pairs;
    s->ops = calloc(s->plan.counts.ops, sizeof *s->ops);
    s->ropes = calloc(s->plan.counts.ropes + (size_t)1, sizeof *s->ropes);
    s->rope_rows = malloc((pairs * 2 * s->chunk + 1) * sizeof *s->rope_rows);
    s->rows = malloc(s->chunk * sizeof *s->rows);
    s->wanted = malloc(s->chunk * sizeof *s->wanted);
    for (uint32_t i = 0; i < s->plan.counts.ops; i++)
        if (s->plan.ops[i].code == PLAN_EXPERTS)
            s->expert_count += s->plan.tensors[s->plan.ops[i].experts.up].count;
    s->experts_used = calloc(s->expert_count + 1, sizeof *s->experts_used);
    if (!s->experts_used || !s->ops || !s->ropes || !s->rope_rows || !s->rows || !s->wanted)
        return stele_fail(err, STELE_SYSTEM, "no memory for a session of %" PRIu32 " rows", s->chunk);
    size_t at = 0;
    for (uint32_t i = 0; i < s->plan.counts.ropes; i++) {
        s->ropes[i] = (struct blas_rope){s->rope_rows + at, s->plan.ropes[i].pairs};
        at += (size_t)s->plan.ropes[i].pairs * 2 * s->chunk;
    }
    return STELE_OK;
}

/* Where the states' blocks lie, and how many bytes all need. */
static bool lay_out_kv(const struct stele_session *s, size_t *offsets, uint64_t *bytes)
{
    *bytes = 0;
    for (uint32_t i = 0; i < s->plan.counts.states; i++) {
        size_t ring = ring_blocks(s, &s->plan.states[i]), blocks = (ring ? ring : s->kv.blocks_each) * (size_t)s->kv.sequences;
        uint64_t part = (uint64_t)s->plan.states[i].position_numbers * KV_BLOCK * number_bytes(s);
        offsets[i] = *bytes;
        if (!size_mul(part, blocks, &part) || !size_add(*bytes, round_up(part, 4096), bytes) || *bytes > INT64_MAX)
            return false;
    }
    return true;
}

/* Whether an operand is a tensor of the image. */
static bool is_tensor(enum plan_kind kind, uint32_t operand)
{
    return (kind == KIND_MATRIX || kind == KIND_BANK || kind == KIND_VECTOR || kind == KIND_VECTOR_OR_NONE) &&
           operand != PLAN_NONE;
}

static struct blas_span span_of(const struct stele_session *s, const uint8_t *weights, uint32_t tensor)
{
    const struct image_tensor *t = &s->plan.tensors[tensor];
    return (struct blas_span){weights + t->offset, t->stride * (t->count - 1) + t->bytes};
}

/* The tensors that steps read, in plan order, for a back end that brings them to a memory of its own. Rows of embeddings are
 * read where they are. */
static enum stele_status list_spans(struct stele_session *s, const uint8_t *weights, struct stele_error *err)
{
    bool *listed = calloc(s->plan.tensor_count + (size_t)1, sizeof *listed);
    s->spans = calloc(s->plan.tensor_count + (size_t)1, sizeof *s->spans);
    for (uint32_t i = 0; listed && s->spans && i < s->plan.counts.ops; i++) {
        const struct plan_op *op = &s->plan.ops[i];
        for (size_t a = 0; op->code != PLAN_EMBED && plan_forms[op->code].args[a].name; a++) {
            const uint32_t tensor = op->args[a];
            if (!is_tensor(plan_forms[op->code].args[a].kind, tensor) || listed[tensor])
                continue;
            s->spans[s->span_count++] = span_of(s, weights, tensor);
            listed[tensor] = true;
        }
    }
    bool done = listed && s->spans;
    free(listed);
    return done ? STELE_OK : stele_fail(err, STELE_SYSTEM, "no memory for %" PRIu32 " tensors", s->plan.tensor_count);
}

/* Every op of the plan is one that the back end has, which becomes the CPU's where that is allowed. */
static enum stele_status check_ops(struct stele_session *s, struct stele_error *err)
{
    const struct blas_backend *b = s->backend;
    const bool has[PLAN_CODES] = {[PLAN_EMBED] = b->embed,         [PLAN_NORM] = b->norm,       [PLAN_LINEAR] = b->linear,
                                  [PLAN_ROPE_KV] = b->rope_kv,     [PLAN_ROUTER] = b->router,   [PLAN_EXPERTS] = b->experts,
                                  [PLAN_ATTENTION] = b->attention, [PLAN_LOGITS] = b->logits,   [PLAN_GATE] = b->gate};
    for (uint32_t i = 0; i < s->plan.counts.ops; i++)
        if (!has[s->plan.ops[i].code] && s->may_be_cpu) {
            s->backend = &blas_cpu;
            return STELE_OK;
        } else if (!has[s->plan.ops[i].code])
            return stele_fail(err, STELE_INPUT, "op %" PRIu32 " of the plan, %s, is none that --device %s computes", i,
                              plan_forms[s->plan.ops[i].code].name, b->name);
    return STELE_OK;
}

/* The back end could not reserve its memory, and *err says so. Where a smaller context would have fitted, by halves, says
 * which. */
static enum stele_status advise(struct stele_session *s, const struct blas_setup *setup, struct stele_error *err)
{
    struct blas_device *device;
    struct blas_setup smaller = *setup;
    for (uint32_t context = s->context / 2; context >= KV_BLOCK; context /= 2) {
        smaller.kv_bytes = setup->kv_bytes / (s->context / context);
        if (s->backend->open(&device, &smaller, NULL) != STELE_OK)
            continue;
        s->backend->close(device);
        return stele_fail(err, STELE_SYSTEM,
                          "cannot reserve %zu bytes of keys and values for a context of %" PRIu32 "; --context %" PRIu32
                          " fits",
                          setup->kv_bytes, s->context, context);
    }
    return STELE_SYSTEM;
}

/* What a device is opened for, but for threads, weights, keys and values. */
static struct blas_setup setup_of(const struct stele_session *s)
{
    struct blas_setup setup = {
        .rows_max = s->chunk,
        .scratch_numbers = (size_t)s->plan.counts.slot_numbers * s->chunk,
        .kv_type = (int)s->kv_type,
        .kernels = s->table,
        .sequences = s->kv.sequences,
        .positions = s->context,
        .vocabulary = s->plan.counts.vocabulary,
        .ordinal = s->ordinal,
    };
    measure(s, &setup);
    return setup;
}

static enum stele_status open_device(struct stele_session *s, const struct stele_options *o, const uint8_t *weights,
                                     struct stele_error *err)
{
    struct blas_setup setup = setup_of(s);
    setup.threads = o->threads ? o->threads : cpus_threads(THREADS_MAX);
    setup.weights = (struct blas_weights){s->image->name, s->image->bytes, s->image->length,
                                          s->image->fd,   s->spans,        s->span_count};
    setup.limit = o->vram ? o->vram : UINT64_MAX;
    struct resolver r = {.session = s, .weights = weights};
    r.kv_offset = calloc(s->plan.counts.states + (size_t)1, sizeof *r.kv_offset);
    if (!r.kv_offset)
        return stele_fail(err, STELE_SYSTEM, "no memory for %" PRIu32 " states", s->plan.counts.states);
    uint64_t bytes;
    enum stele_status status = STELE_OK;
    if (!lay_out_kv(s, r.kv_offset, &bytes))
        status = stele_fail(err, STELE_USAGE, "keys and values of %" PRIu32 " sequences of %" PRIu32
                            " positions are beyond all memory", s->kv.sequences, s->context);
    setup.kv_bytes = bytes;
    if (status == STELE_OK)
        status = s->backend->open(&s->device, &setup, err);
    if (status == STELE_SYSTEM && s->may_be_cpu) {
        s->backend = &blas_cpu;
        status = s->backend->open(&s->device, &setup, err);
    }
    if (status == STELE_SYSTEM && s->backend == &blas_cpu)
        status = advise(s, &setup, err);
    if (status == STELE_OK)
        resolve(&r);
    free(r.kv_offset);
    return status;
}

enum stele_status stele_session_open(struct stele_session **out, const struct stele_image *image,
                                     const struct stele_options *options, struct stele_error *err)
{
    static const struct stele_options all_zero;
    *out = NULL;
    options = options ? options : &all_zero;
    enum stele_status status = LIBRARY_CHECK_RESERVED(stele_options, options, err);
    if (status != STELE_OK)
        return status;
    const struct blas_kernels *kernels = blas_choose(options->kernels);
    if (!kernels)
        return stele_fail(err, STELE_USAGE, "no kernels \"%s\" that this CPU runs; generic always does", options->kernels);
    struct stele_session *s = calloc(1, sizeof *s);
    if (!s)
        return stele_fail(err, STELE_SYSTEM, "no memory for a session");
    s->image = (const struct image *)image;
    s->table = kernels;
    s->kernels = kernels->name;
    const uint8_t *weights;
    status = gpus_backend(&s->backend, &s->ordinal, &s->may_be_cpu, options->device, err);
    if (status == STELE_OK)
        status = plan_load(&s->plan, &s->plan_memory, &weights, s->image, err);
    if (status == STELE_OK)
        status = check_ops(s, err);
    if (status == STELE_OK)
        status = library_check_defaults(s->image, err);
    if (status == STELE_OK)
        status = check_options(s, options, err);
    if (status == STELE_OK)
        status = allocate(s, err);
    if (status == STELE_OK)
        status = kv_open(&s->kv, options->sequences ? options->sequences : 1, s->context, err);
    if (status == STELE_OK && s->backend != &blas_cpu)
        status = list_spans(s, weights, err);
    if (status == STELE_OK && s->backend != &blas_cpu) /* which brings them to a memory of its own at once */
        status = image_await_whole(s->image, err);
    if (status == STELE_OK)
        status = open_device(s, options, weights, err);
    if (status == STELE_OK)
        *out = s;
    else
        stele_session_close(s);
    return status;
}

void stele_session_close(struct stele_session *s)
{
    if (!s)
        return;
    ahead_stop(s->ahead);
    s->backend->close(s->device);
    kv_close(&s->kv);
    free(s->spans);
    free(s->kept);
    free(s->experts_used);
    free(s->wanted);
    free(s->rows);
    free(s->rope_rows);
    free(s->ropes);
    free(s->ops);
    free(s->plan_memory);
    free(s);
}

/* ---- stepping ---- */

/* Whether the rings still have what a row behind the first `positions` of a sequence sees. */
static bool rings_have(const struct stele_session *s, uint32_t sequence, uint32_t positions)
{
    for (uint32_t i = 0; positions && i < s->plan.counts.states; i++) {
        const struct plan_state *state = &s->plan.states[i];
        size_t ring = ring_blocks(s, state), seen = positions < state->window ? 0 : positions - state->window + 1;
        if (ring && (s->kv.reach[sequence] - 1) / KV_BLOCK - seen / KV_BLOCK >= ring)
            return false;
    }
    return true;
}

static enum stele_status check_slice(const struct stele_session *s, const struct stele_slice *slice, size_t rows,
                                     struct stele_error *err)
{
    if (slice->sequence >= s->kv.sequences)
        return stele_fail(err, STELE_USAGE, "sequence %" PRIu32 " of %" PRIu32, slice->sequence, s->kv.sequences);
    if (slice->first > s->context || slice->count > s->context - slice->first)
        return stele_fail(err, STELE_USAGE, "positions %" PRIu32 " + %" PRIu32 " lie beyond the context of %" PRIu32,
                          slice->first, slice->count, s->context);
    if (slice->count > s->chunk - rows)
        return stele_fail(err, STELE_USAGE, "a step of more than %" PRIu32 " rows", s->chunk);
    for (uint32_t i = 0; i < slice->count; i++)
        if (slice->ids[i] >= s->plan.counts.vocabulary)
            return stele_fail(err, STELE_USAGE, "id %" PRIu32 " at position %" PRIu32
                              ": the model has %" PRIu32 " ids", slice->ids[i], slice->first + i,
                              s->plan.counts.vocabulary);
    return STELE_OK;
}

/* The rows of all slices, and which of them want logits. */
static enum stele_status gather_rows(struct stele_session *s, const struct stele_slice *slices, size_t n,
                                     struct stele_error *err)
{
    s->row_count = s->wanted_count = 0;
    for (size_t i = 0; i < n; i++) {
        const struct stele_slice *slice = &slices[i];
        enum stele_status status = check_slice(s, slice, s->row_count, err);
        if (status != STELE_OK)
            return status;
        const char *why;
        if (!rings_have(s, slice->sequence, slice->first))
            return stele_fail(err, STELE_USAGE, "position %" PRIu32 " of sequence %" PRIu32
                              ": the windows have moved on beyond what it sees", slice->first, slice->sequence);
        if (slice->count && !kv_write(&s->kv, slice->sequence, slice->first, slice->count, &why))
            return stele_fail(err, STELE_USAGE, "positions of sequence %" PRIu32 " from %" PRIu32 " on %s", slice->sequence,
                              slice->first, why);
        const uint32_t *blocks = kv_table(&s->kv, slice->sequence);
        for (uint32_t j = 0; j < slice->count; j++) {
            if (j >= slice->logits_from)
                s->wanted[s->wanted_count++] = (uint32_t)s->row_count;
            s->rows[s->row_count++] = (struct blas_row){slice->ids[j], slice->first + j, slice->sequence, blocks};
        }
    }
    return STELE_OK;
}

/* NUMBERS.md, "RoPE": one row of cosines and sines a position. */
static void fill_rope(struct stele_session *s)
{
    for (uint32_t i = 0; i < s->plan.counts.ropes; i++) {
        const struct plan_rope *rope = &s->plan.ropes[i];
        bool is_long = rope->long_above && s->context > rope->long_above;
        const float *frequency = s->plan.constants + (is_long ? rope->long_first : rope->first);
        float magnitude = is_long ? rope->long_magnitude : rope->magnitude;
        float *row = s->rope_rows + (s->ropes[i].rows - s->rope_rows);
        for (size_t r = 0; r < s->row_count; r++, row += 2 * (size_t)rope->pairs)
            for (uint32_t p = 0; p < rope->pairs; p++) {
                float *cosine = &row[p], *sine = &row[rope->pairs + p];
                num_sincos((float)s->rows[r].position * frequency[p], sine, cosine);
                if (magnitude != 1) {
                    *cosine = *cosine * magnitude;
                    *sine = *sine * magnitude;
                }
            }
    }
}

/* Runs op i. False: rope_kv met a row whose keys or values the KV type does not hold. */
static bool run_op(struct stele_session *s, const struct executor_op *op, size_t *bad_row)
{
    switch (op->code) {
    case PLAN_EMBED:
        s->backend->embed(s->device, &op->embed);
        return true;
    case PLAN_NORM:
        s->backend->norm(s->device, &op->norm);
        return true;
    case PLAN_LINEAR:
        s->backend->linear(s->device, &op->linear);
        return true;
    case PLAN_ROPE_KV:
        return s->backend->rope_kv(s->device, &op->rope_kv, bad_row);
    case PLAN_ATTENTION:
        s->backend->attention(s->device, &op->attention);
        return true;
    case PLAN_ROUTER:
        s->backend->router(s->device, &op->router);
        return true;
    case PLAN_EXPERTS:
        s->backend->experts(s->device, &op->experts);
        return true;
    case PLAN_GATE:
        s->backend->gate(s->device, &op->gate);
        return true;
    case PLAN_LOGITS: /* on demand: stele_logits */
    case PLAN_CODES:
        break;
    }
    return true;
}

/* The first op after which row `row` of its slot holds a number that is not finite: the step once more, with a look after
 * each op. Keys and values are stored again as they are. */
static uint32_t find_fault(struct stele_session *s, size_t row)
{
    uint32_t last = s->plan.counts.ops - 1;
    size_t bad;
    float *numbers = malloc(PLAN_WIDTH_MAX * sizeof *numbers);
    if (!numbers)
        return last;
    uint32_t found = last;
    for (uint32_t i = 0; i < last && found == last; i++) {
        const struct executor_op *op = &s->ops[i];
        run_op(s, op, &bad);
        const struct plan_slot *slot = &s->plan.slots[op->out];
        struct blas_view at = {(size_t)slot->offset * s->chunk, slot->stride};
        s->backend->peek(s->device, at, row, slot->width, numbers);
        for (uint32_t j = 0; j < slot->width; j++)
            if (!isfinite(numbers[j]))
                found = i;
    }
    free(numbers);
    return found;
}

static enum stele_status not_finite(struct stele_session *s, size_t row, const char *what, struct stele_error *err)
{
    uint32_t op = find_fault(s, row);
    return stele_fail(err, STELE_DAMAGED,
                      "position %" PRIu32 ": %s not finite; op %" PRIu32
                      " (%s) is the first that made such a number, so weights or text are at fault",
                      s->rows[row].position, what, op, plan_forms[s->ops[op].code].name);
}

/* Keys or values of a row do not fit: either they are not finite at all, or the KV type is too small. */
static enum stele_status kv_refused(struct stele_session *s, uint32_t op, size_t row, struct stele_error *err)
{
    if (s->kv_type == KV_F32)
        return not_finite(s, row, "keys or values are", err);
    return stele_fail(err, STELE_DAMAGED,
                      "layer %" PRIu32 ", position %" PRIu32 ": keys or values are beyond binary16; try --kv f32",
                      s->plan.ops[op].rope_kv.kv, s->rows[row].position);
}

/* Confines the step to the rows from the first to the last whose logits are wanted. False: there are none. */
static bool narrow(struct stele_session *s, struct blas_step *step)
{
    if (!s->wanted_count)
        return false;
    step->first = s->wanted[0];
    step->count = s->wanted[s->wanted_count - 1] + (size_t)1 - step->first;
    step->rows = s->rows + step->first;
    s->backend->narrow(s->device, step);
    return true;
}

/* The step that was gathered, whole. */
static struct blas_step whole(const struct stele_session *s)
{
    return (struct blas_step){.rows = s->rows, .count = s->row_count, .ropes = s->ropes, .rope_count = s->plan.counts.ropes};
}

/* Waits for the ops of a step. */
static enum stele_status finish(struct stele_session *s, struct stele_error *err)
{
    struct blas_fault fault;
    enum stele_status status = s->backend->finish(s->device, &fault, err);
    if (status != STELE_OK || fault.op == SIZE_MAX)
        return status;
    struct blas_step step = whole(s); /* it was narrowed; the fault is sought in all of it */
    uint32_t op = 0;
    while (s->ops[op].code != PLAN_ROPE_KV || fault.op--)
        op++;
    s->backend->begin(s->device, &step);
    return kv_refused(s, op, fault.row, err);
}

/* Waits for the weights that op i reads of an image that arrives. */
static enum stele_status await_weights(const struct stele_session *s, uint32_t i, struct stele_error *err)
{
    const struct plan_op *op = &s->plan.ops[i];
    uint64_t bytes;
    const uint8_t *weights = image_section(s->image, SECTION_WEIGHTS, &bytes);
    enum stele_status status = STELE_OK;
    for (size_t a = 0; status == STELE_OK && plan_forms[op->code].args[a].name; a++)
        if (is_tensor(plan_forms[op->code].args[a].kind, op->args[a])) {
            struct blas_span span = span_of(s, weights, op->args[a]);
            status = image_await(s->image, span.bytes, span.length, err);
        }
    return status;
}

/* Where the weights that a step reads begin in the image, and how many bytes they are, in plan order: with `logits` the head,
 * else what lies before it; of an embedding that is not the head as well, which lies in front, a step reads a few rows. */
static uint64_t read_whole(const struct stele_session *s, bool logits, uint64_t *length)
{
    uint64_t bytes, from = 0;
    const uint8_t *weights = image_section(s->image, SECTION_WEIGHTS, &bytes);
    const struct plan_op *first = &s->plan.ops[0], *last = &s->plan.ops[s->plan.counts.ops - 1];
    const struct image_tensor *head = &s->plan.tensors[last->logits.head];
    if (first->code == PLAN_EMBED && first->embed.table != last->logits.head)
        from = s->plan.tensors[first->embed.table].offset + s->plan.tensors[first->embed.table].bytes;
    if (logits)
        from = head->offset;
    *length = logits ? head->bytes : from < head->offset ? head->offset - from : 0;
    return (uint64_t)(weights - s->image->bytes) + from;
}

/* Has what is read from here on brought into memory, unless it is there: in large pages, by a thread that the kernels follow.
 * Not where there are experts, of which a token takes a few, nor of a file that arrives. Told once the first op is done, since
 * nothing else may come before it. */
static void read_ahead(struct stele_session *s, bool logits)
{
    uint64_t length, from = read_whole(s, logits, &length);
    if (s->image->arrival || s->expert_count)
        return;
    image_read_large(s->image, from, length);
    ahead_stop(s->ahead);
    s->ahead = s->backend == &blas_cpu ? ahead_start(s->image, from, length) : NULL;
}

enum stele_status stele_step(struct stele_session *s, const struct stele_slice *slices, size_t n, struct stele_error *err)
{
    enum stele_status status = gather_rows(s, slices, n, err);
    if (status != STELE_OK || !s->row_count)
        return status;
    fill_rope(s);
    struct blas_step step = whole(s);
    s->backend->begin(s->device, &step);
    if (s->first_op == 0)
        s->first_op = now();
    for (uint32_t i = 0; i < s->plan.counts.ops; i++) {
        size_t row;
        if (i == s->tail && !narrow(s, &step))
            break;
        if (s->image->arrival && (status = await_weights(s, i, err)) != STELE_OK)
            return status;
        if (!run_op(s, &s->ops[i], &row))
            return kv_refused(s, i, row, err);
        if (!s->begun)
            read_ahead(s, false);
        s->begun = true;
    }
    return finish(s, err);
}

/* Copies what a branch does not read of its origin: the block that `positions` ends in, or a ring. */
static void copy_state(struct stele_session *s, const struct blas_kv *kv, uint32_t to, uint32_t from, uint32_t positions)
{
    size_t filled = (s->kv.reach[from] + KV_BLOCK - 1) / KV_BLOCK;
    for (size_t b = 0; kv->ring && positions && b < kv->ring && b < filled; b++)
        s->backend->copy_kv(s->device, kv, to * kv->ring + b, from * kv->ring + b);
    if (!kv->ring && positions % KV_BLOCK)
        s->backend->copy_kv(s->device, kv, kv_table(&s->kv, to)[positions / KV_BLOCK],
                            kv_table(&s->kv, from)[positions / KV_BLOCK]);
}

enum stele_status stele_branch(struct stele_session *s, uint32_t to, uint32_t from, uint32_t positions,
                               struct stele_error *err)
{
    const char *why = "are beyond what the windows keep";
    if (to >= s->kv.sequences || from >= s->kv.sequences || to == from)
        return stele_fail(err, STELE_USAGE, "sequence %" PRIu32 " as a branch of %" PRIu32 ", of %" PRIu32, to, from,
                          s->kv.sequences);
    if (!rings_have(s, from, positions) || !kv_branch(&s->kv, to, from, positions, &why))
        return stele_fail(err, STELE_USAGE, "the first %" PRIu32 " positions of sequence %" PRIu32 " %s", positions, from, why);
    for (uint32_t i = 0; i < s->plan.counts.ops; i++)
        if (s->ops[i].code == PLAN_ROPE_KV)
            copy_state(s, &s->ops[i].rope_kv.kv, to, from, positions);
    return STELE_OK;
}

/* The run of neighbouring wanted rows from index `from` on, at most `count`. */
static size_t neighbours(const struct stele_session *s, size_t from, size_t count)
{
    size_t n = 1;
    while (n < count && s->wanted[from + n] == s->wanted[from] + n)
        n++;
    return n;
}

enum stele_status stele_logits(struct stele_session *s, size_t from, size_t count, float *out, struct stele_error *err)
{
    const struct executor_op *op = &s->ops[s->plan.counts.ops - 1];
    size_t vocabulary = s->plan.counts.vocabulary;
    if (from > s->wanted_count || count > s->wanted_count - from)
        return stele_fail(err, STELE_USAGE, "logits %zu + %zu of %zu rows", from, count, s->wanted_count);
    enum stele_status status = image_await_whole(s->image, err); /* no number leaves before its image was found right */
    if (status != STELE_OK)
        return status;
    struct blas_step step = whole(s);
    s->backend->begin(s->device, &step);
    if (!s->began_logits)
        read_ahead(s, true);
    s->began_logits = true;
    for (size_t i = 0, n; i < count; i += n) {
        n = neighbours(s, from + i, count - i);
        s->backend->logits(s->device, &op->logits, s->wanted[from + i], n, out + i * vocabulary);
    }
    status = finish(s, err);
    if (status != STELE_OK)
        return status;
    for (size_t i = 0; i < count * vocabulary; i++)
        if (!isfinite(out[i]))
            return not_finite(s, s->wanted[from + i / vocabulary], "logits are", err);
    return STELE_OK;
}

struct stele_session_info stele_session_info(const struct stele_session *s)
{
    const struct blas_memory memory = s->backend->memory(s->device);
    const struct blas_setup setup = setup_of(s);
    size_t used = 0;
    for (size_t i = 0; i < s->expert_count; i++)
        used += s->experts_used[i];
    return (struct stele_session_info){
        .vocabulary = s->plan.counts.vocabulary,
        .context = s->context,
        .chunk = s->chunk,
        .threads = (uint32_t)s->backend->threads(s->device),
        .kernels = memory.device ? s->backend->name : s->kernels,
        .device = memory.device ? memory.device : "cpu",
        .map = memory.reach,
        .vram_bytes = memory.kept_bytes,
        .upload = memory.upload,
        .kv = s->kv_type == KV_F16 ? "f16" : "f32",
        .kv_bytes = memory.kv_bytes,
        .scratch_bytes = memory.scratch_bytes,
        .gpu_scratch_bytes = cuda_scratch_bytes(&setup),
        .first_op = s->first_op,
        .experts = s->expert_count,
        .experts_used = used,
    };
}
