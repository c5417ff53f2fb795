/* SPDX-License-Identifier: Apache-2.0 */
#include "emit.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "panel.h"

/* Appends one element to an array of the emitter. */
static bool push(struct emitter *e, void *array_pointer, uint32_t *count, size_t size, const void *element)
{
    void **array = array_pointer;
    if (e->status != STELE_OK)
        return false;
    if ((*count & (*count - 1)) == 0) { /* full at 0, 1, 2, 4, 8 … */
        void *more = realloc(*array, (*count ? 2 * (size_t)*count : 1) * size);
        if (!more) {
            e->status = stele_fail(e->err, STELE_SYSTEM, "no memory for the plan");
            return false;
        }
        *array = more;
    }
    memcpy((char *)*array + *count * size, element, size);
    ++*count;
    return true;
}

void emit_close(struct emitter *e)
{
    free(e->ops);
    free(e->slots);
    free(e->states);
    free(e->ropes);
    free(e->constants);
    for (uint32_t i = 0; i < e->recipe_count; i++)
        free(e->recipes[i].parts);
    free(e->recipes);
    for (uint32_t i = 0; i < e->made_up_count; i++)
        free(e->made_up[i]);
    free(e->made_up);
}

static const struct source_tensor *check_source(struct emitter *e, struct source_tensor *t, const char *name,
                                                uint64_t rows, uint64_t columns)
{
    if (!t) {
        e->status = stele_fail(e->err, STELE_INPUT, "%s: tensor %s is missing", e->source->directory, name);
        return NULL;
    }
    if (t->type > SOURCE_BF16) {
        e->status = stele_fail(e->err, STELE_INPUT, "%s: tensor %s: numbers of type %s are not supported", t->file, name,
                               t->type_name);
        return NULL;
    }
    size_t rank = columns ? 2 : 1;
    if (t->rank != rank || t->shape[0] != rows || (columns && t->shape[1] != columns)) {
        char shape[128] = "";
        for (size_t i = 0; i < t->rank; i++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%" PRIu64, i ? " x " : "", t->shape[i]);
        e->status = columns ? stele_fail(e->err, STELE_INPUT,
                                         "%s: tensor %s is [%s]; config.json makes it [%" PRIu64 " x %" PRIu64 "]",
                                         t->file, name, shape, rows, columns)
                            : stele_fail(e->err, STELE_INPUT,
                                         "%s: tensor %s is [%s]; config.json makes it [%" PRIu64 "]", t->file, name,
                                         shape, rows);
        return NULL;
    }
    t->used = true;
    return t;
}

/* A tensor where there is only a config. */
static const struct source_tensor *make_up(struct emitter *e, enum source_type type, uint64_t rows, uint64_t columns)
{
    struct source_tensor *t = calloc(1, sizeof *t);
    if (!t) {
        e->status = stele_fail(e->err, STELE_SYSTEM, "no memory for the plan");
        return NULL;
    }
    *t = (struct source_tensor){.type = type, .rank = columns ? 2 : 1, .shape = {rows, columns}};
    if (push(e, &e->made_up, &e->made_up_count, sizeof t, &t))
        return t;
    free(t);
    return NULL;
}

const struct source_tensor *emit_source(struct emitter *e, uint64_t rows, uint64_t columns, const char *format, ...)
{
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (e->status != STELE_OK)
        return NULL;
    return e->source ? check_source(e, checkpoint_find(e->source, name), name, rows, columns)
                     : make_up(e, e->made_up_type, rows, columns);
}

/* Finds one of the two tensors of bytes that MXFP4 comes as. */
static struct source_tensor *find_bytes(struct emitter *e, const char *name, const char *end)
{
    char whole[300];
    snprintf(whole, sizeof whole, "%s_%s", name, end);
    struct source_tensor *t = checkpoint_find(e->source, whole);
    if (!t && e->status == STELE_OK)
        e->status = stele_fail(e->err, STELE_INPUT, "%s: tensor %s is missing", e->source->directory, whole);
    return t;
}

const struct source_tensor *emit_source_mxfp4(struct emitter *e, uint64_t experts, uint64_t rows, uint64_t columns,
                                              const char *format, ...)
{
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (e->status != STELE_OK)
        return NULL;
    if (!e->source)
        return make_up(e, SOURCE_MXFP4, experts * rows, columns);
    struct source_tensor *blocks = find_bytes(e, name, "blocks"), *scales = find_bytes(e, name, "scales");
    if (e->status != STELE_OK)
        return NULL;
    if (!source_join_mxfp4(blocks, scales, experts, rows, columns)) {
        e->status = stele_fail(e->err, STELE_INPUT,
                               "%s: tensors %s_blocks and %s_scales are not MXFP4 of [%" PRIu64 " x %" PRIu64 " x %" PRIu64
                               "], as config.json makes them",
                               blocks->file, name, name, experts, rows, columns);
        return NULL;
    }
    blocks->used = scales->used = true;
    return blocks;
}

bool emit_has(const struct emitter *e, const char *format, ...)
{
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return e->source && checkpoint_find(e->source, name) != NULL;
}

struct part part_whole(const struct source_tensor *tensor, uint64_t rows)
{
    return (struct part){.tensor = tensor, .rows = rows, .step = 1};
}

uint64_t parts_rows(const struct part *parts, size_t n)
{
    uint64_t rows = 0;
    for (size_t i = 0; i < n; i++)
        rows += round_up(parts[i].rows, PANEL_ROWS);
    return rows;
}

/* The type of a matrix: the one asked for, or that of its source. */
static enum tensor_type matrix_type(const struct emitter *e, enum matrix_use use, const struct part *parts, size_t n)
{
    static const enum tensor_type of_source[] = {
        [SOURCE_F32] = TENSOR_F32,     [SOURCE_F16] = TENSOR_F16, [SOURCE_BF16] = TENSOR_BF16,
        [SOURCE_MXFP4] = TENSOR_MXFP4, [SOURCE_U8] = TENSOR_F32,  [SOURCE_OTHER] = TENSOR_F32};
    if (e->weights == TENSOR_Q4 && use == USE_VOCABULARY)
        return TENSOR_Q8;
    if (e->weights >= 0 && !(use == USE_ROUTER && type_quantised((enum tensor_type)e->weights)))
        return (enum tensor_type)e->weights;
    enum tensor_type type = parts[0].tensor ? of_source[parts[0].tensor->type] : TENSOR_F32;
    for (size_t i = 1; i < n; i++) /* parts of unlike types meet in the one that holds both */
        if (parts[i].tensor && of_source[parts[i].tensor->type] != type)
            type = TENSOR_F32;
    return type;
}

__attribute__((format(printf, 5, 0))) static uint32_t push_recipe(struct emitter *e, struct recipe *r, const struct part *parts, size_t n, const char *format,
                            va_list args)
{
    char name[IMAGE_NAME_MAX];
    vsnprintf(name, sizeof name, format, args);
    memcpy(r->record.name, name, strlen(name));
    r->record.count = r->record.count ? r->record.count : 1;
    r->sets = r->sets ? r->sets : 1;
    size_t all = n * r->sets;
    r->parts = malloc(all * sizeof *parts);
    if (!r->parts) {
        e->status = stele_fail(e->err, STELE_SYSTEM, "%s: no memory for its plan", name);
        return 0;
    }
    memcpy(r->parts, parts, all * sizeof *parts);
    r->part_count = n;
    r->record.bytes = tensor_bytes(r->record.type, r->record.layout, r->record.rows, r->record.columns);
    if (!r->record.bytes && e->status == STELE_OK)
        e->status = stele_fail(e->err, STELE_INPUT, "%s: %" PRIu64 " x %" PRIu64 " numbers are out of range", name,
                               r->record.rows, r->record.columns);
    if (push(e, &e->recipes, &e->recipe_count, sizeof *r, r))
        return e->recipe_count - 1;
    free(r->parts);
    return 0;
}

uint32_t emit_matrix(struct emitter *e, enum matrix_use use, uint64_t columns, const struct part *parts, size_t n,
                     bool in_turn, const char *name, ...)
{
    struct recipe r = {.in_turn = in_turn};
    r.record.type = matrix_type(e, use, parts, n);
    r.record.layout = LAYOUT_PANELS;
    r.record.rows = use == USE_LINEAR ? parts_rows(parts, n) : parts[0].rows;
    r.record.columns = columns;
    va_list args;
    va_start(args, name);
    uint32_t index = push_recipe(e, &r, parts, n, name, args);
    va_end(args);
    return index;
}

/* One bank; a format function, so that push_recipe gets its va_list. */
__attribute__((format(printf, 6, 7))) static uint32_t push_bank(struct emitter *e, struct recipe *r, uint64_t columns,
                                                                const struct part *parts, size_t n, const char *name,
                                                                ...)
{
    r->record.type = matrix_type(e, USE_LINEAR, parts, n * r->record.count);
    r->record.layout = LAYOUT_PANELS;
    r->record.rows = parts_rows(parts, n);
    r->record.columns = columns;
    va_list args;
    va_start(args, name);
    uint32_t index = push_recipe(e, r, parts, n, name, args);
    va_end(args);
    return index;
}

uint32_t emit_bank(struct emitter *e, uint64_t columns, const struct part *gate, const struct part *up,
                   const struct part *down, uint32_t experts, unsigned layer)
{
    struct recipe first = {.in_turn = true, .paired = true}, second = {0};
    struct part *both = malloc(2 * (size_t)experts * sizeof *both);
    first.record.count = second.record.count = first.sets = second.sets = experts;
    if (!both) {
        e->status = stele_fail(e->err, STELE_SYSTEM, "no memory for %" PRIu32 " experts", experts);
        return 0;
    }
    for (uint32_t i = 0; i < experts; i++) {
        both[2 * i] = gate[i];
        both[2 * i + 1] = up[i];
    }
    uint32_t index = push_bank(e, &first, columns, both, 2, "layers.%u.experts.gate_up", layer);
    push_bank(e, &second, gate[0].rows, down, 1, "layers.%u.experts.down", layer);
    free(both);
    return index;
}

uint32_t emit_bias(struct emitter *e, const struct part *parts, size_t n, bool in_turn, const char *name, ...)
{
    struct recipe r = {.in_turn = in_turn};
    r.record.type = TENSOR_F32;
    r.record.layout = LAYOUT_VECTOR;
    r.record.rows = 1;
    r.record.columns = parts_rows(parts, n);
    va_list args;
    va_start(args, name);
    uint32_t index = push_recipe(e, &r, parts, n, name, args);
    va_end(args);
    return index;
}

uint32_t emit_bank_bias(struct emitter *e, const struct part *parts, size_t n, uint32_t experts, bool in_turn,
                        const char *name, ...)
{
    struct recipe r = {.in_turn = in_turn, .sets = experts};
    r.record.type = TENSOR_F32;
    r.record.layout = LAYOUT_VECTOR;
    r.record.rows = 1;
    r.record.columns = parts_rows(parts, n) * experts;
    va_list args;
    va_start(args, name);
    uint32_t index = push_recipe(e, &r, parts, n, name, args);
    va_end(args);
    return index;
}

uint32_t emit_vector(struct emitter *e, const struct source_tensor *tensor, float added, const char *name, ...)
{
    struct recipe r = {.added = added};
    uint64_t n = tensor ? tensor->shape[0] : 1;
    r.record.type = TENSOR_F32;
    r.record.layout = LAYOUT_VECTOR;
    r.record.rows = 1;
    r.record.columns = n;
    struct part part = part_whole(tensor, n);
    va_list args;
    va_start(args, name);
    uint32_t index = push_recipe(e, &r, &part, 1, name, args);
    va_end(args);
    return index;
}

uint32_t emit_slot(struct emitter *e, uint64_t width)
{
    uint64_t stride = round_up(width, PANEL_ROWS);
    if (stride % 1024 == 0)
        stride += PANEL_ROWS;
    if ((!width || width > PLAN_WIDTH_MAX) && e->status == STELE_OK)
        e->status = stele_fail(e->err, STELE_INPUT, "activations of %" PRIu64 " numbers are out of range", width);
    struct plan_slot slot = {.width = (uint32_t)round_up(width, PANEL_ROWS), .stride = (uint32_t)stride};
    return push(e, &e->slots, &e->slot_count, sizeof slot, &slot) ? e->slot_count - 1 : 0;
}

uint32_t emit_kv(struct emitter *e, uint32_t heads, uint32_t head_dim, uint32_t window)
{
    struct plan_state state = {
        .kind = STATE_KV,
        .heads = heads,
        .head_dim = head_dim,
        .window = window,
        .position_numbers = (uint32_t)(heads * kv_head_numbers(head_dim) / KV_BLOCK),
    };
    return push(e, &e->states, &e->state_count, sizeof state, &state) ? e->state_count - 1 : 0;
}

uint32_t emit_rope(struct emitter *e, const float *inverse_frequencies, uint32_t pairs, float magnitude)
{
    struct plan_rope rope = {.first = e->constant_count, .pairs = pairs, .magnitude = magnitude};
    for (uint32_t i = 0; i < pairs; i++)
        push(e, &e->constants, &e->constant_count, sizeof(float), &inverse_frequencies[i]);
    return push(e, &e->ropes, &e->rope_count, sizeof rope, &rope) ? e->rope_count - 1 : 0;
}

void emit_long_rope(struct emitter *e, uint32_t rope, uint32_t above, const float *inverse_frequencies, float magnitude)
{
    if (e->status != STELE_OK)
        return;
    struct plan_rope *r = &e->ropes[rope];
    r->long_above = above;
    r->long_first = e->constant_count;
    r->long_magnitude = magnitude;
    for (uint32_t i = 0; i < r->pairs; i++)
        push(e, &e->constants, &e->constant_count, sizeof(float), &inverse_frequencies[i]);
}

uint32_t emit_op(struct emitter *e, struct plan_op op)
{
    return push(e, &e->ops, &e->op_count, sizeof op, &op) ? e->op_count - 1 : 0;
}

/* First and last op that names a slot. */
struct lifetime {
    uint32_t first, last;
};

static void find_lifetimes(const struct emitter *e, struct lifetime *lives)
{
    for (uint32_t s = 0; s < e->slot_count; s++)
        lives[s] = (struct lifetime){UINT32_MAX, 0};
    for (uint32_t i = 0; i < e->op_count; i++) {
        const struct plan_form *form = &plan_forms[e->ops[i].code];
        for (size_t a = 0; form->args[a].name; a++) {
            uint32_t s = e->ops[i].args[a];
            bool slot = form->args[a].kind == KIND_SLOT || form->args[a].kind == KIND_SLOT_OR_NONE;
            if (!slot || s == PLAN_NONE)
                continue;
            lives[s].first = i < lives[s].first ? i : lives[s].first;
            lives[s].last = i;
        }
    }
}

/* The lowest offset at which slot s meets no slot placed before it whose lifetime meets its own. */
static uint32_t lowest_offset(const struct emitter *e, const struct lifetime *lives, uint32_t s)
{
    uint32_t offset = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t o = 0; o < s; o++) {
            const struct plan_slot *other = &e->slots[o];
            bool meet = lives[o].first <= lives[s].last && lives[s].first <= lives[o].last;
            if (meet && offset < other->offset + other->stride && other->offset < offset + e->slots[s].stride) {
                offset = other->offset + other->stride;
                moved = true;
            }
        }
    }
    return offset;
}

/* An expert is a matrix of the first bank and one of the second behind it, and begins at a page. */
static void place_bank(struct image_tensor *first, struct image_tensor *second, uint64_t *at)
{
    uint64_t expert = round_up(first->bytes + second->bytes, IMAGE_PAGE);
    first->offset = round_up(*at, IMAGE_PAGE);
    second->offset = first->offset + first->bytes;
    first->stride = second->stride = first->count > 1 ? expert : 0;
    *at = first->offset + expert * first->count;
}

enum stele_status emit_finish(struct emitter *e)
{
    struct lifetime *lives = calloc(e->slot_count + (size_t)1, sizeof *lives);
    if (!lives)
        return e->status = stele_fail(e->err, STELE_SYSTEM, "no memory for the plan");
    if (e->status == STELE_OK)
        find_lifetimes(e, lives);
    for (uint32_t s = 0; e->status == STELE_OK && s < e->slot_count; s++) {
        e->slots[s].offset = lowest_offset(e, lives, s);
        uint32_t end = e->slots[s].offset + e->slots[s].stride;
        e->slot_numbers = end > e->slot_numbers ? end : e->slot_numbers;
    }
    free(lives);
    uint64_t at = 0;
    for (uint32_t i = 0; e->status == STELE_OK && i < e->recipe_count; i++)
        if (e->recipes[i].paired) {
            place_bank(&e->recipes[i].record, &e->recipes[i + 1].record, &at);
            i++;
        } else {
            e->recipes[i].record.offset = at;
            at = round_up(at + e->recipes[i].record.bytes, 64);
        }
    e->weights_bytes = at;
    return e->status;
}

enum stele_status emit_plan(const struct emitter *e, void **plan, size_t *plan_length, void **tensors,
                            size_t *tensors_length)
{
    struct plan_header header = {
        .ops = e->op_count,
        .slots = e->slot_count,
        .states = e->state_count,
        .ropes = e->rope_count,
        .constants = e->constant_count,
        .vocabulary = e->vocabulary,
        .context = e->context,
        .slot_numbers = e->slot_numbers,
    };
    *plan_length = plan_bytes(&header);
    *tensors_length = e->recipe_count * sizeof(struct image_tensor);
    char *at = *plan = malloc(*plan_length);
    struct image_tensor *records = *tensors = malloc(*tensors_length + 1);
    if (!at || !records)
        return stele_fail(e->err, STELE_SYSTEM, "no memory for the plan");
    const struct {
        const void *from;
        size_t bytes;
    } arrays[] = {
        {&header, sizeof header},
        {e->ops, e->op_count * sizeof *e->ops},
        {e->slots, e->slot_count * sizeof *e->slots},
        {e->states, e->state_count * sizeof *e->states},
        {e->ropes, e->rope_count * sizeof *e->ropes},
        {e->constants, e->constant_count * sizeof *e->constants},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        if (arrays[i].bytes)
            memcpy(at, arrays[i].from, arrays[i].bytes);
        at += arrays[i].bytes;
    }
    for (uint32_t i = 0; i < e->recipe_count; i++)
        records[i] = e->recipes[i].record;
    return STELE_OK;
}
