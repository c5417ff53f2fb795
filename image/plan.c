/* SPDX-License-Identifier: Apache-2.0 */
/* The check of a plan. First the kinds of all operands, from plan.def; then, op by op, the shapes. */
#include "plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "panel.h"

const struct plan_form plan_forms[PLAN_CODES] = {
#define PLAN_OP(CODE, op_name) [PLAN_##CODE] = {.name = #op_name, .args = {
#define PLAN_ARG(arg_kind, arg_name) {KIND_##arg_kind, #arg_name},
#define PLAN_END(CODE, op_name) {0, NULL}}},
#include "plan.def"
#undef PLAN_OP
#undef PLAN_ARG
#undef PLAN_END
};

/* Where the check stands, for its sentences. */
struct check {
    const struct plan *plan;
    const char *name;    /* of the file */
    uint32_t index;      /* of the op */
    const struct plan_op *op;
    uint32_t *written;   /* [slots]: numbers from the front that this step has written and no other slot has touched */
    bool *stored;        /* [states]: a rope_kv has written this step's positions */
    struct stele_error *err;
};

#define REFUSE(c, ...) refuse((c), __VA_ARGS__)

__attribute__((format(printf, 2, 3))) static enum stele_status refuse(struct check *c, const char *format, ...)
{
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return stele_fail(c->err, STELE_INPUT, "%s: plan: op %" PRIu32 " (%s): %s", c->name, c->index,
                      plan_forms[c->op->code].name, what);
}

uint64_t plan_bytes(const struct plan_header *counts)
{
    return sizeof *counts + (uint64_t)counts->ops * sizeof(struct plan_op) +
           (uint64_t)counts->slots * sizeof(struct plan_slot) + (uint64_t)counts->states * sizeof(struct plan_state) +
           (uint64_t)counts->ropes * sizeof(struct plan_rope) + (uint64_t)counts->constants * sizeof(float);
}

uint64_t tensor_bytes(uint32_t type, uint32_t layout, uint64_t rows, uint64_t columns)
{
    if (!rows || !columns || rows > UINT32_MAX || columns > UINT32_MAX || type >= TENSOR_TYPES)
        return 0;
    if (layout == LAYOUT_VECTOR)
        return type == TENSOR_F32 && rows == 1 ? columns * 4 : 0;
    if (layout != LAYOUT_PANELS || columns > PLAN_WIDTH_MAX)
        return 0;
    return panel_count(rows) * panel_bytes(type, columns);
}

static bool is_number(float x)
{
    return isfinite(x);
}

/* The word `value` as an operand of `kind`: NULL, or what is wrong with it. */
static const char *kind_wrong(const struct plan *plan, enum plan_kind kind, uint32_t value)
{
    float number;
    memcpy(&number, &value, sizeof number);
    switch (kind) {
    case KIND_SLOT_OR_NONE:
        if (value == PLAN_NONE)
            return NULL;
        /* fall through */
    case KIND_SLOT:
        return value < plan->counts.slots ? NULL : "no such slot";
    case KIND_MATRIX:
        return value < plan->tensor_count && plan->tensors[value].layout == LAYOUT_PANELS && plan->tensors[value].count == 1
                   ? NULL
                   : "no such matrix";
    case KIND_BANK:
        return value < plan->tensor_count && plan->tensors[value].layout == LAYOUT_PANELS ? NULL : "no such bank";
    case KIND_VECTOR_OR_NONE:
        if (value == PLAN_NONE)
            return NULL;
        /* fall through */
    case KIND_VECTOR:
        return value < plan->tensor_count && plan->tensors[value].layout == LAYOUT_VECTOR ? NULL : "no such vector";
    case KIND_STATE:
        return value < plan->counts.states ? NULL : "no such state";
    case KIND_ROPE_OR_NONE:
        if (value == PLAN_NONE)
            return NULL;
        /* fall through */
    case KIND_ROPE:
        return value < plan->counts.ropes ? NULL : "no such rope";
    case KIND_COLUMN:
        return value < PLAN_WIDTH_MAX ? NULL : "out of range";
    case KIND_COUNT:
        return value && value <= PLAN_WIDTH_MAX ? NULL : "out of range";
    case KIND_ACTIVATION:
        return value < ACTIVATIONS ? NULL : "unknown activation";
    case KIND_ROUTING:
        return value < ROUTINGS ? NULL : "unknown routing";
    case KIND_NUMBER:
        return is_number(number) ? NULL : "not a finite number";
    }
    return "unknown kind";
}

static enum stele_status check_kinds(struct check *c)
{
    const struct plan_form *form = &plan_forms[c->op->code];
    size_t n = 0;
    for (; form->args[n].name; n++) {
        const char *wrong = kind_wrong(c->plan, form->args[n].kind, c->op->args[n]);
        if (wrong)
            return REFUSE(c, "%s is %" PRIu32 ": %s", form->args[n].name, c->op->args[n], wrong);
    }
    for (; n < PLAN_ARGS_MAX; n++)
        if (c->op->args[n])
            return REFUSE(c, "word %zu behind the operands is not zero", n);
    return STELE_OK;
}

/* An op reads `width` numbers of `slot` from `column` on. */
static enum stele_status reads(struct check *c, const char *what, uint32_t slot, uint64_t column, uint64_t width)
{
    if (column + width > c->plan->slots[slot].width)
        return REFUSE(c, "%s: %" PRIu64 " numbers from %" PRIu64 ", but slot %" PRIu32 " is %" PRIu32 " wide", what,
                      width, column, slot, c->plan->slots[slot].width);
    if (column + width > c->written[slot])
        return REFUSE(c, "%s: %" PRIu64 " numbers from %" PRIu64 " of slot %" PRIu32 ", of which %" PRIu32 " are written",
                      what, width, column, slot, c->written[slot]);
    return STELE_OK;
}

static bool share_numbers(const struct plan_slot *x, const struct plan_slot *y)
{
    return (uint64_t)x->offset + x->stride > y->offset && (uint64_t)y->offset + y->stride > x->offset;
}

static enum stele_status writes(struct check *c, uint32_t slot, uint64_t width)
{
    if (width > c->plan->slots[slot].width)
        return REFUSE(c, "out: %" PRIu64 " numbers, but slot %" PRIu32 " is %" PRIu32 " wide", width, slot,
                      c->plan->slots[slot].width);
    for (uint32_t s = 0; s < c->plan->counts.slots; s++)
        if (s != slot && share_numbers(&c->plan->slots[s], &c->plan->slots[slot]))
            c->written[s] = 0; /* how its rows are hit depends on the rows of a step */
    width = round_up(width, PANEL_ROWS) < c->plan->slots[slot].width ? round_up(width, PANEL_ROWS) : c->plan->slots[slot].width;
    if (width > c->written[slot])
        c->written[slot] = (uint32_t)width;
    return STELE_OK;
}

/* Two slots of one op that must not share numbers. */
static enum stele_status apart(struct check *c, uint32_t a, uint32_t b)
{
    const struct plan_slot *x = &c->plan->slots[a], *y = &c->plan->slots[b];
    if (!share_numbers(x, y))
        return STELE_OK;
    return REFUSE(c, "slots %" PRIu32 " and %" PRIu32 " share numbers", a, b);
}

static enum stele_status vector_is(struct check *c, const char *what, uint32_t vector, uint64_t n)
{
    if (c->plan->tensors[vector].columns == n)
        return STELE_OK;
    return REFUSE(c, "%s: tensor %" PRIu32 " has %" PRIu64 " numbers instead of %" PRIu64, what, vector,
                  c->plan->tensors[vector].columns, n);
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        enum stele_status status_ = (call);                                                                            \
        if (status_ != STELE_OK)                                                                                       \
            return status_;                                                                                            \
    } while (0)

static enum stele_status check_embed(struct check *c, const struct plan_embed *op)
{
    const struct image_tensor *table = &c->plan->tensors[op->table];
    if (table->rows != c->plan->counts.vocabulary)
        return REFUSE(c, "table: %" PRIu64 " rows for a vocabulary of %" PRIu32, table->rows, c->plan->counts.vocabulary);
    return writes(c, op->out, table->columns);
}

static enum stele_status check_norm(struct check *c, const struct plan_norm *op)
{
    uint64_t n = c->plan->tensors[op->weight].columns;
    TRY(reads(c, "in", op->in, op->column, n));
    if (op->in != op->out)
        TRY(apart(c, op->in, op->out));
    if (op->residual != PLAN_NONE) {
        TRY(reads(c, "residual", op->residual, op->column, n));
        TRY(apart(c, op->in, op->residual)); /* `in` is normed in place */
        if (op->residual != op->out)
            TRY(apart(c, op->residual, op->out));
    }
    if (op->column > c->written[op->out])
        return REFUSE(c, "column: numbers before %" PRIu32 " of slot %" PRIu32 " are not written", op->column, op->out);
    return writes(c, op->out, op->column + n);
}

static enum stele_status check_linear(struct check *c, const struct plan_linear *op)
{
    const struct image_tensor *weight = &c->plan->tensors[op->weight];
    uint64_t rows = round_up(weight->rows, PANEL_ROWS), width = rows;
    if (op->activation != ACTIVATION_NONE) {
        if (rows % (2 * PANEL_ROWS))
            return REFUSE(c, "weight: %" PRIu64 " rows are no pairs of panels", weight->rows);
        width = rows / 2;
    }
    TRY(reads(c, "in", op->in, 0, weight->columns));
    TRY(apart(c, op->in, op->out));
    if (op->bias != PLAN_NONE)
        TRY(vector_is(c, "bias", op->bias, rows));
    if (op->residual != PLAN_NONE) {
        TRY(reads(c, "residual", op->residual, 0, width));
        if (op->residual != op->out)
            TRY(apart(c, op->residual, op->out));
    }
    return writes(c, op->out, width);
}

static enum stele_status check_heads(struct check *c, uint32_t heads, const struct plan_state *kv)
{
    if (kv->kind != STATE_KV)
        return REFUSE(c, "kv: the state is of kind %" PRIu32, kv->kind);
    if (heads % kv->heads)
        return REFUSE(c, "heads: %" PRIu32 " are no multiple of the state's %" PRIu32, heads, kv->heads);
    return STELE_OK;
}

static enum stele_status check_rope_kv(struct check *c, const struct plan_rope_kv *op)
{
    const struct plan_state *kv = &c->plan->states[op->kv];
    TRY(check_heads(c, op->heads, kv));
    uint64_t kv_width = (uint64_t)kv->heads * kv->head_dim;
    TRY(reads(c, "q", op->qkv, op->q, (uint64_t)op->heads * kv->head_dim));
    TRY(reads(c, "k", op->qkv, op->k, kv_width));
    TRY(reads(c, "v", op->qkv, op->v, kv_width));
    if (op->q_norm != PLAN_NONE)
        TRY(vector_is(c, "q_norm", op->q_norm, kv->head_dim));
    if (op->k_norm != PLAN_NONE)
        TRY(vector_is(c, "k_norm", op->k_norm, kv->head_dim));
    if (op->rope != PLAN_NONE && (uint64_t)c->plan->ropes[op->rope].pairs * 2 > kv->head_dim)
        return REFUSE(c, "rope: %" PRIu32 " pairs in heads of %" PRIu32, c->plan->ropes[op->rope].pairs, kv->head_dim);
    if (c->stored[op->kv])
        return REFUSE(c, "kv: state %" PRIu32 " is stored twice", op->kv);
    c->stored[op->kv] = true;
    return STELE_OK;
}

static enum stele_status check_attention(struct check *c, const struct plan_attention *op)
{
    const struct plan_state *kv = &c->plan->states[op->kv];
    TRY(check_heads(c, op->heads, kv));
    if (!c->stored[op->kv])
        return REFUSE(c, "kv: state %" PRIu32 " is read before it is stored", op->kv);
    uint64_t width = (uint64_t)op->heads * kv->head_dim;
    TRY(reads(c, "q", op->qkv, op->q, width));
    TRY(apart(c, op->qkv, op->out));
    if (op->cap < 0)
        return REFUSE(c, "cap: below 0");
    if (op->sinks != PLAN_NONE)
        TRY(vector_is(c, "sinks", op->sinks, op->heads));
    return writes(c, op->out, width);
}

static enum stele_status check_router(struct check *c, const struct plan_router *op)
{
    const struct image_tensor *weight = &c->plan->tensors[op->weight];
    if (op->top > weight->rows || weight->rows > PLAN_EXPERTS_MAX)
        return REFUSE(c, "top: %" PRIu32 " of %" PRIu64 " experts", op->top, weight->rows);
    TRY(reads(c, "in", op->in, 0, weight->columns));
    TRY(apart(c, op->in, op->out));
    if (op->bias != PLAN_NONE)
        TRY(vector_is(c, "bias", op->bias, round_up(weight->rows, PANEL_ROWS)));
    return writes(c, op->out, 2 * (uint64_t)op->top);
}

/* All slots of an op that writes several must be apart from each other. */
static enum stele_status all_apart(struct check *c, const uint32_t *slots, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            TRY(apart(c, slots[i], slots[j]));
    return STELE_OK;
}

static enum stele_status check_experts(struct check *c, const struct plan_experts *op)
{
    const struct image_tensor *up = &c->plan->tensors[op->up], *down = &c->plan->tensors[op->down];
    uint64_t rows = round_up(up->rows, PANEL_ROWS), width = rows, out = round_up(down->rows, PANEL_ROWS);
    if (op->activation != ACTIVATION_NONE) {
        if (rows % (2 * PANEL_ROWS))
            return REFUSE(c, "up: %" PRIu64 " rows are no pairs of panels", up->rows);
        width = rows / 2;
    }
    if (up->count != down->count || up->count > PLAN_EXPERTS_MAX || op->top > up->count || down->columns > width)
        return REFUSE(c, "banks of %" PRIu32 " and %" PRIu32 " experts, %" PRIu32 " of them chosen, down of %" PRIu64
                      " columns", up->count, down->count, op->top, down->columns);
    TRY(reads(c, "in", op->in, 0, up->columns));
    TRY(reads(c, "route", op->route, 0, 2 * (uint64_t)op->top));
    if (op->up_bias != PLAN_NONE)
        TRY(vector_is(c, "up_bias", op->up_bias, rows * up->count));
    if (op->down_bias != PLAN_NONE)
        TRY(vector_is(c, "down_bias", op->down_bias, out * up->count));
    TRY(all_apart(c, (uint32_t[]){op->in, op->route, op->gathered, op->gated, op->sum}, 5));
    TRY(all_apart(c, (uint32_t[]){op->out, op->route, op->gathered, op->gated, op->sum}, 5));
    TRY(writes(c, op->gathered, up->columns));
    TRY(writes(c, op->gated, width));
    TRY(writes(c, op->sum, out));
    c->written[op->gathered] = c->written[op->gated] = 0; /* rows of the last expert only */
    if (op->residual != PLAN_NONE) {
        TRY(reads(c, "residual", op->residual, 0, out));
        if (op->residual != op->out)
            TRY(apart(c, op->residual, op->out));
    }
    return writes(c, op->out, out);
}

static enum stele_status check_gate(struct check *c, const struct plan_gate *op)
{
    const struct image_tensor *weight = &c->plan->tensors[op->weight];
    uint64_t width = c->plan->slots[op->out].width;
    if (weight->rows != 1)
        return REFUSE(c, "weight: %" PRIu64 " rows instead of one", weight->rows);
    TRY(reads(c, "in", op->in, 0, weight->columns));
    TRY(reads(c, "branch", op->branch, 0, width));
    TRY(reads(c, "residual", op->residual, 0, width));
    TRY(all_apart(c, (uint32_t[]){op->branch, op->out}, 2));
    TRY(all_apart(c, (uint32_t[]){op->in, op->out}, 2));
    if (op->residual != op->out)
        TRY(apart(c, op->residual, op->out));
    return writes(c, op->out, width);
}

static enum stele_status check_logits(struct check *c, const struct plan_logits *op)
{
    const struct image_tensor *head = &c->plan->tensors[op->head];
    if (head->rows != c->plan->counts.vocabulary)
        return REFUSE(c, "head: %" PRIu64 " rows for a vocabulary of %" PRIu32, head->rows, c->plan->counts.vocabulary);
    if (op->cap < 0)
        return REFUSE(c, "cap: below 0");
    if (c->index + 1 != c->plan->counts.ops)
        return REFUSE(c, "is not the last op");
    return reads(c, "in", op->in, 0, head->columns);
}

static enum stele_status check_op(struct check *c)
{
    TRY(check_kinds(c));
    switch ((enum plan_code)c->op->code) {
#define PLAN_OP(CODE, name)                                                                                            \
    case PLAN_##CODE:                                                                                                  \
        return check_##name(c, &c->op->name);
#define PLAN_ARG(kind, name)
#define PLAN_END(CODE, name)
#include "plan.def"
#undef PLAN_OP
#undef PLAN_ARG
#undef PLAN_END
    case PLAN_CODES:
        break;
    }
    return REFUSE(c, "unknown op");
}

static enum stele_status check_ops(const struct plan *plan, const char *name, struct stele_error *err)
{
    uint32_t *written = calloc(plan->counts.slots + (size_t)1, sizeof *written);
    bool *stored = calloc(plan->counts.states + (size_t)1, sizeof *stored);
    if (!written || !stored) {
        free(written);
        free(stored);
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %" PRIu32 " slots", name, plan->counts.slots);
    }
    struct check c = {.plan = plan, .name = name, .written = written, .stored = stored, .err = err};
    enum stele_status status = STELE_OK;
    for (; status == STELE_OK && c.index < plan->counts.ops; c.index++) {
        c.op = &plan->ops[c.index];
        if (c.op->code >= PLAN_CODES)
            status = stele_fail(err, STELE_INPUT,
                                "%s: plan: op %" PRIu32 ": unknown code %" PRIu32 "; made by a later stele?", name,
                                c.index, c.op->code);
        else
            status = check_op(&c);
    }
    free(written);
    free(stored);
    if (status == STELE_OK && plan->ops[plan->counts.ops - 1].code != PLAN_LOGITS)
        status = stele_fail(err, STELE_INPUT, "%s: plan: the last op is not logits", name);
    return status;
}

static enum stele_status check_tensors(const struct plan *plan, uint64_t weights_bytes, const char *name,
                                       struct stele_error *err)
{
    for (uint32_t i = 0; i < plan->tensor_count; i++) {
        const struct image_tensor *t = &plan->tensors[i];
        uint64_t bytes = tensor_bytes(t->type, t->layout, t->rows, t->columns);
        if (!memchr(t->name, 0, sizeof t->name))
            return stele_fail(err, STELE_INPUT, "%s: tensor %" PRIu32 ": its name does not end", name, i);
        if (!bytes || bytes != t->bytes)
            return stele_fail(err, STELE_INPUT,
                              "%s: tensor %s: %" PRIu64 " bytes for %" PRIu64 " x %" PRIu64 " of type %" PRIu32
                              ", layout %" PRIu32,
                              name, t->name, t->bytes, t->rows, t->columns, t->type, t->layout);
        uint64_t banked = 0; /* bytes before the last matrix of a bank */
        if (t->reserved || !t->count || (t->count == 1 ? t->stride != 0 : t->stride % 64 || t->stride < bytes) ||
            !size_mul(t->stride, t->count - 1, &banked))
            return stele_fail(err, STELE_INPUT, "%s: tensor %s: a bank of %" PRIu32 " with stride %" PRIu64, name, t->name,
                              t->count, t->stride);
        if (t->offset % 64 || t->offset > weights_bytes || banked > weights_bytes - t->offset ||
            bytes > weights_bytes - t->offset - banked)
            return stele_fail(err, STELE_INPUT,
                              "%s: tensor %s: bytes %" PRIu64 " + %" PRIu64 " of %" PRIu64 " bytes of weights", name,
                              t->name, t->offset, bytes, weights_bytes);
    }
    return STELE_OK;
}

static enum stele_status check_tables(const struct plan *plan, const char *name, struct stele_error *err)
{
    const struct plan_header *n = &plan->counts;
    if (!n->ops || n->slots > PLAN_SLOTS_MAX || !n->vocabulary || !n->context || n->context > PLAN_CONTEXT_MAX || n->vocabulary > INT32_MAX)
        return stele_fail(err, STELE_INPUT,
                          "%s: plan: %" PRIu32 " ops, vocabulary %" PRIu32 ", context %" PRIu32 ": out of range", name,
                          n->ops, n->vocabulary, n->context);
    for (uint32_t i = 0; i < n->slots; i++) {
        const struct plan_slot *s = &plan->slots[i];
        if (!s->width || s->width > PLAN_WIDTH_MAX || s->width > s->stride || s->stride > 2 * PLAN_WIDTH_MAX || s->stride > n->slot_numbers ||
            s->offset > n->slot_numbers - s->stride || s->reserved)
            return stele_fail(err, STELE_INPUT,
                              "%s: plan: slot %" PRIu32 ": width %" PRIu32 ", stride %" PRIu32 ", offset %" PRIu32
                              " of %" PRIu32 " numbers",
                              name, i, s->width, s->stride, s->offset, n->slot_numbers);
    }
    for (uint32_t i = 0; i < n->states; i++) {
        const struct plan_state *s = &plan->states[i];
        if (s->kind != STATE_KV)
            return stele_fail(err, STELE_INPUT, "%s: plan: state %" PRIu32 ": unknown kind %" PRIu32, name, i, s->kind);
        if (s->reserved || !s->heads || s->heads > PLAN_HEADS_MAX || !s->head_dim || s->head_dim > PLAN_HEAD_MAX || s->sequence_bytes ||
            s->position_numbers != s->heads * kv_head_numbers(s->head_dim) / KV_BLOCK)
            return stele_fail(err, STELE_INPUT,
                              "%s: plan: state %" PRIu32 ": %" PRIu32 " heads of %" PRIu32 ", %" PRIu32
                              " numbers a position: out of range",
                              name, i, s->heads, s->head_dim, s->position_numbers);
    }
    for (uint32_t i = 0; i < n->ropes; i++) {
        const struct plan_rope *r = &plan->ropes[i];
        if (!r->pairs || r->pairs > PLAN_HEAD_MAX / 2 || r->pairs > n->constants || r->first > n->constants - r->pairs ||
            r->long_first > n->constants - r->pairs || !is_number(r->magnitude) || !is_number(r->long_magnitude) ||
            r->reserved[0] || r->reserved[1])
            return stele_fail(err, STELE_INPUT,
                              "%s: plan: rope %" PRIu32 ": %" PRIu32 " pairs from %" PRIu32 " of %" PRIu32 " constants",
                              name, i, r->pairs, r->first, n->constants);
    }
    for (uint32_t i = 0; i < n->constants; i++)
        if (!is_number(plan->constants[i]))
            return stele_fail(err, STELE_INPUT, "%s: plan: constant %" PRIu32 " is not finite", name, i);
    return STELE_OK;
}

enum stele_status plan_open(struct plan *out, const void *section, uint64_t bytes, const void *tensors,
                            uint64_t tensors_bytes, uint64_t weights_bytes, const char *name, struct stele_error *err)
{
    struct plan plan = {.tensors = tensors, .tensor_count = (uint32_t)(tensors_bytes / sizeof(struct image_tensor))};
    if (bytes < sizeof plan.counts)
        return stele_fail(err, STELE_INPUT, "%s: plan: %" PRIu64 " bytes are too short", name, bytes);
    memcpy(&plan.counts, section, sizeof plan.counts);
    if (bytes != plan_bytes(&plan.counts))
        return stele_fail(err, STELE_INPUT, "%s: plan: %" PRIu64 " bytes instead of the %" PRIu64 " that its counts give",
                          name, bytes, plan_bytes(&plan.counts));
    if (tensors_bytes % sizeof(struct image_tensor) || tensors_bytes / sizeof(struct image_tensor) > UINT32_MAX - 1)
        return stele_fail(err, STELE_INPUT, "%s: tensors: %" PRIu64 " bytes are no whole records", name, tensors_bytes);
    plan.ops = (const struct plan_op *)((const uint8_t *)section + sizeof plan.counts);
    plan.slots = (const struct plan_slot *)(plan.ops + plan.counts.ops);
    plan.states = (const struct plan_state *)(plan.slots + plan.counts.slots);
    plan.ropes = (const struct plan_rope *)(plan.states + plan.counts.states);
    plan.constants = (const float *)(plan.ropes + plan.counts.ropes);
    TRY(check_tables(&plan, name, err));
    TRY(check_tensors(&plan, weights_bytes, name, err));
    TRY(check_ops(&plan, name, err));
    *out = plan;
    return STELE_OK;
}

enum stele_status plan_load(struct plan *out, void **owned, const uint8_t **weights, const struct image *image,
                            struct stele_error *err)
{
    const uint8_t *plan, *tensors;
    uint64_t plan_length, tensors_length, weights_length;
    *owned = NULL;
    TRY(image_require(image, SECTION_PLAN, &plan, &plan_length, err));
    TRY(image_require(image, SECTION_TENSORS, &tensors, &tensors_length, err));
    TRY(image_require(image, SECTION_WEIGHTS, weights, &weights_length, err));
    uint64_t tensors_at = round_up(plan_length, 8);
    uint8_t *copy = plan_length < SIZE_MAX / 2 && tensors_length < SIZE_MAX / 2 ? malloc(tensors_at + tensors_length + 1)
                                                                               : NULL;
    if (!copy)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for its plan", image->name);
    memcpy(copy, plan, plan_length);
    memcpy(copy + tensors_at, tensors, tensors_length);
    enum stele_status status =
        plan_open(out, copy, plan_length, copy + tensors_at, tensors_length, weights_length, image->name, err);
    if (status == STELE_OK)
        *owned = copy;
    else
        free(copy);
    return status;
}
