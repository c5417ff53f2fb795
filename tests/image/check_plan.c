/* SPDX-License-Identifier: Apache-2.0 */
/* The check of a plan against plans of a stranger: it reads nothing behind its sections, which end at a page that cannot
 * be read, and of what it accepts every index and shape is in bounds, as a second look here says. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "panel.h"
#include "plan.h"
#include "../suite.h"

enum { VOCABULARY = 40, HIDDEN = 32, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 8, QKV = 64 + 16 + 16, GATED = 48 };

/* ---- a plan that is right ---- */

struct made {
    struct plan_header counts;
    struct plan_op ops[8];
    struct plan_slot slots[5];
    struct plan_state states[1];
    struct plan_rope ropes[1];
    float constants[4];
};

static struct image_tensor tensors[8];
static uint64_t weights_bytes;
static uint32_t tensor_count;

static uint32_t tensor(const char *name, uint32_t type, uint32_t layout, uint64_t rows, uint64_t columns)
{
    struct image_tensor t = {.type = type, .layout = layout, .rows = rows, .columns = columns, .count = 1};
    memcpy(t.name, name, strlen(name));
    t.offset = weights_bytes;
    t.bytes = tensor_bytes(type, layout, rows, columns);
    weights_bytes = round_up(weights_bytes + t.bytes, 64);
    tensors[tensor_count] = t;
    return tensor_count++;
}

static struct made make(void)
{
    weights_bytes = tensor_count = 0;
    struct made m = {.counts = {8, 5, 1, 1, 4, VOCABULARY, 64, 0}};
    static const uint32_t widths[] = {HIDDEN, HIDDEN, QKV, 32, GATED};
    for (size_t i = 0; i < 5; i++) {
        m.slots[i] = (struct plan_slot){m.counts.slot_numbers, widths[i], widths[i], 0};
        m.counts.slot_numbers += widths[i];
    }
    m.states[0] = (struct plan_state){.kind = STATE_KV,
                                      .heads = KV_HEADS,
                                      .head_dim = HEAD_DIM,
                                      .position_numbers = KV_HEADS * (HEAD_DIM + 16)};
    m.ropes[0] = (struct plan_rope){.first = 0, .pairs = 4, .magnitude = 1};
    for (size_t i = 0; i < 4; i++)
        m.constants[i] = 1.0f / (float)(i + 1);
    uint32_t embedding = tensor("embedding", TENSOR_F32, LAYOUT_PANELS, VOCABULARY, HIDDEN);
    uint32_t norm = tensor("norm", TENSOR_F32, LAYOUT_VECTOR, 1, HIDDEN);
    uint32_t qkv = tensor("qkv", TENSOR_Q8, LAYOUT_PANELS, QKV, HIDDEN);
    uint32_t bias = tensor("bias", TENSOR_F32, LAYOUT_VECTOR, 1, QKV);
    uint32_t out = tensor("out", TENSOR_BF16, LAYOUT_PANELS, HIDDEN, HEADS * HEAD_DIM);
    uint32_t gate_up = tensor("gate_up", TENSOR_Q4, LAYOUT_PANELS, 2 * GATED, HIDDEN);
    uint32_t down = tensor("down", TENSOR_F16, LAYOUT_PANELS, HIDDEN, GATED);
    m.ops[0] = (struct plan_op){PLAN_EMBED, .embed = {0, embedding, 1}};
    m.ops[1] = (struct plan_op){PLAN_NORM, .norm = {0, 1, 0, norm, 1e-5f, PLAN_NONE}};
    m.ops[2] = (struct plan_op){PLAN_LINEAR, .linear = {1, 2, qkv, bias, PLAN_NONE, ACTIVATION_NONE, 1}};
    m.ops[3] = (struct plan_op){PLAN_ROPE_KV, .rope_kv = {2, 0, 64, 80, HEADS, PLAN_NONE, PLAN_NONE, 0, 0, 0}};
    m.ops[4] = (struct plan_op){PLAN_ATTENTION, .attention = {2, 0, 3, HEADS, 0.25f, 0, 0, PLAN_NONE}};
    m.ops[5] = (struct plan_op){PLAN_LINEAR, .linear = {3, 0, out, PLAN_NONE, 0, ACTIVATION_NONE, 1}};
    m.ops[6] = (struct plan_op){PLAN_LINEAR, .linear = {0, 4, gate_up, PLAN_NONE, PLAN_NONE, ACTIVATION_SILU_GATE, 1}};
    m.ops[7] = (struct plan_op){PLAN_LOGITS, .logits = {0, embedding, 1, 0}};
    (void)down;
    return m;
}

/* ---- sections that end where memory ends ---- */

/* Copies n bytes so that they end at a page that cannot be read. *to frees it. */
struct guarded {
    uint8_t *bytes;
    void *map;
    size_t length;
};

static struct guarded guard(const void *from, size_t n)
{
    size_t room = round_up(n + 1, 4096);
    struct guarded g = {.length = room + 4096};
    g.map = mmap(NULL, g.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(g.map != MAP_FAILED);
    ck_assert(!mprotect((uint8_t *)g.map + room, 4096, PROT_NONE));
    g.bytes = (uint8_t *)g.map + room - n; /* n is a multiple of 8 */
    memcpy(g.bytes, from, n);
    return g;
}

/* ---- the second look ---- */

static void slot_holds(const struct plan *p, uint32_t slot, uint64_t from, uint64_t n)
{
    ck_assert_uint_lt(slot, p->counts.slots);
    const struct plan_slot *s = &p->slots[slot];
    ck_assert(from + n <= s->width && s->width <= s->stride);
    ck_assert((uint64_t)s->offset + s->stride <= p->counts.slot_numbers);
}

static const struct image_tensor *is_matrix(const struct plan *p, uint32_t tensor)
{
    ck_assert_uint_lt(tensor, p->tensor_count);
    const struct image_tensor *t = &p->tensors[tensor];
    ck_assert_uint_eq(t->layout, LAYOUT_PANELS);
    ck_assert_uint_lt(t->type, TENSOR_TYPES);
    ck_assert(t->offset % 64 == 0 && t->offset + panel_count(t->rows) * panel_bytes(t->type, t->columns) <= weights_bytes);
    return t;
}

static uint64_t vector_numbers(const struct plan *p, uint32_t tensor)
{
    ck_assert_uint_lt(tensor, p->tensor_count);
    const struct image_tensor *t = &p->tensors[tensor];
    ck_assert(t->layout == LAYOUT_VECTOR && t->type == TENSOR_F32 && t->offset + t->columns * 4 <= weights_bytes);
    return t->columns;
}

static void look_at(const struct plan *p, const struct plan_op *op)
{
    const struct image_tensor *t;
    const struct plan_state *kv;
    uint64_t rows;
    switch (op->code) {
    case PLAN_EMBED:
        t = is_matrix(p, op->embed.table);
        ck_assert_uint_eq(t->rows, p->counts.vocabulary);
        slot_holds(p, op->embed.out, 0, t->columns);
        break;
    case PLAN_NORM:
        rows = vector_numbers(p, op->norm.weight);
        slot_holds(p, op->norm.in, op->norm.column, rows);
        slot_holds(p, op->norm.out, op->norm.column, rows);
        break;
    case PLAN_LINEAR:
        t = is_matrix(p, op->linear.weight);
        slot_holds(p, op->linear.in, 0, t->columns);
        rows = round_up(t->rows, 16);
        ck_assert(op->linear.bias == PLAN_NONE || vector_numbers(p, op->linear.bias) >= rows);
        rows = op->linear.activation != ACTIVATION_NONE ? rows / 2 : rows;
        slot_holds(p, op->linear.out, 0, rows);
        if (op->linear.residual != PLAN_NONE)
            slot_holds(p, op->linear.residual, 0, rows);
        break;
    case PLAN_ROPE_KV:
        ck_assert_uint_lt(op->rope_kv.kv, p->counts.states);
        kv = &p->states[op->rope_kv.kv];
        slot_holds(p, op->rope_kv.qkv, op->rope_kv.q, (uint64_t)op->rope_kv.heads * kv->head_dim);
        slot_holds(p, op->rope_kv.qkv, op->rope_kv.k, (uint64_t)kv->heads * kv->head_dim);
        slot_holds(p, op->rope_kv.qkv, op->rope_kv.v, (uint64_t)kv->heads * kv->head_dim);
        if (op->rope_kv.rope != PLAN_NONE) {
            ck_assert_uint_lt(op->rope_kv.rope, p->counts.ropes);
            const struct plan_rope *r = &p->ropes[op->rope_kv.rope];
            ck_assert((uint64_t)r->first + r->pairs <= p->counts.constants && 2 * (uint64_t)r->pairs <= kv->head_dim);
        }
        break;
    case PLAN_ATTENTION:
        ck_assert_uint_lt(op->attention.kv, p->counts.states);
        kv = &p->states[op->attention.kv];
        ck_assert_uint_eq(op->attention.heads % kv->heads, 0);
        slot_holds(p, op->attention.qkv, op->attention.q, (uint64_t)op->attention.heads * kv->head_dim);
        slot_holds(p, op->attention.out, 0, (uint64_t)op->attention.heads * kv->head_dim);
        break;
    case PLAN_LOGITS:
        t = is_matrix(p, op->logits.head);
        ck_assert_uint_eq(t->rows, p->counts.vocabulary);
        slot_holds(p, op->logits.in, 0, t->columns);
        break;
    default:
        break; /* other ops come of mutation only by chance */
    }
}

static enum stele_status open_made(struct plan *plan, const struct guarded *section, size_t bytes,
                                   const struct guarded *records, struct stele_error *err)
{
    return plan_open(plan, section->bytes, bytes, records->bytes, tensor_count * sizeof *tensors, weights_bytes, "x.stele",
                     err);
}

START_TEST(a_right_plan_is_accepted)
{
    struct made m = make();
    struct stele_error err;
    struct plan plan;
    struct guarded section = guard(&m, sizeof m), records = guard(tensors, tensor_count * sizeof *tensors);
    ck_assert_uint_eq(plan_bytes(&m.counts), sizeof m);
    ck_assert_msg(open_made(&plan, &section, sizeof m, &records, &err) == STELE_OK, "%s", err.text);
    for (uint32_t i = 0; i < plan.counts.ops; i++)
        look_at(&plan, &plan.ops[i]);
}
END_TEST

/* A word becomes one of the numbers that break things, its neighbour's, or a little more or less. */
static void mutate(uint8_t *bytes, size_t n)
{
    static const uint32_t values[] = {0,      1,      2,          3,          15,         16,         31,         32,
                                      64,     255,    1 << 16,    1 << 20,    1 << 24,    0x7f800000, 0x7fffffff, 0x80000000,
                                      0xffffffe0, 0xfffffff0, 0xfffffffe, 0xffffffff};
    size_t at = random_below((uint32_t)(n / 4)) * 4, other = random_below((uint32_t)(n / 4)) * 4;
    uint32_t word;
    memcpy(&word, bytes + at, 4);
    switch (random_below(4)) {
    case 0:
        word = values[random_below(sizeof values / sizeof *values)];
        break;
    case 1:
        memcpy(&word, bytes + other, 4);
        break;
    case 2:
        word += random_below(5) - 2;
        break;
    default:
        word ^= 1u << random_below(32);
    }
    memcpy(bytes + at, &word, 4);
}

START_TEST(of_a_strangers_plan_nothing_is_read_beyond_its_end_and_what_is_accepted_is_in_bounds)
{
    struct made m = make();
    struct stele_error err;
    struct plan plan;
    struct guarded section = guard(&m, sizeof m), records = guard(tensors, tensor_count * sizeof *tensors);
    size_t accepted = 0, rounds = 300000;
    random_state += (uint64_t)_i * 0x9e3779b97f4a7c15u;
    for (size_t round = 0; round < rounds; round++) {
        memcpy(section.bytes, &m, sizeof m);
        memcpy(records.bytes, tensors, tensor_count * sizeof *tensors);
        for (uint32_t n = 1 + random_below(3); n; n--)
            if (random_below(4))
                mutate(section.bytes, sizeof m);
            else
                mutate(records.bytes, tensor_count * sizeof *tensors);
        enum stele_status status = open_made(&plan, &section, sizeof m, &records, &err);
        ck_assert_msg(status == STELE_OK || (status == STELE_INPUT && strstr(err.text, "x.stele: ")), "%s", err.text);
        accepted += status == STELE_OK;
        for (uint32_t i = 0; status == STELE_OK && i < plan.counts.ops; i++)
            look_at(&plan, &plan.ops[i]);
    }
    ck_assert_msg(accepted > rounds / 1000 && accepted < rounds / 2, "%zu of %zu accepted", accepted, rounds);
}
END_TEST

START_TEST(a_plan_cut_anywhere_is_refused)
{
    struct made m = make();
    struct stele_error err;
    struct plan plan;
    struct guarded records = guard(tensors, tensor_count * sizeof *tensors);
    for (size_t n = 0; n < sizeof m; n += 8) {
        struct guarded section = guard(&m, n);
        ck_assert_int_eq(open_made(&plan, &section, n, &records, &err), STELE_INPUT);
        munmap(section.map, section.length);
    }
}
END_TEST

START_TEST(bytes_of_a_tensor_are_0_where_its_shape_is_out_of_range_and_never_overflow)
{
    static const uint64_t sizes[] = {0, 1, 15, 16, 17, 1 << 20, (1 << 20) + 1, UINT32_MAX, 1ull << 32, 1ull << 63, UINT64_MAX};
    for (uint32_t type = 0; type <= TENSOR_TYPES; type++)
        for (uint32_t layout = 0; layout <= LAYOUTS; layout++)
            for (size_t r = 0; r < sizeof sizes / sizeof *sizes; r++)
                for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
                    uint64_t rows = sizes[r], columns = sizes[c], bytes = tensor_bytes(type, layout, rows, columns);
                    if (!rows || !columns || rows > UINT32_MAX || columns > UINT32_MAX || type >= TENSOR_TYPES ||
                        layout >= LAYOUTS)
                        ck_assert_uint_eq(bytes, 0);
                    if (bytes) /* at least four bits a number */
                        ck_assert((double)bytes >= (double)rows * (double)columns / 2);
                }
    ck_assert_uint_eq(tensor_bytes(TENSOR_F32, LAYOUT_PANELS, 17, 33), 2 * 64 * 16 * 4);
    ck_assert_uint_eq(tensor_bytes(TENSOR_Q8, LAYOUT_PANELS, 16, 256), 256 + 4096);
    ck_assert_uint_eq(tensor_bytes(TENSOR_Q4, LAYOUT_PANELS, 16, 257), 64 + 256 + 2048 + 64 + 256);
    ck_assert_uint_eq(tensor_bytes(TENSOR_MXFP4, LAYOUT_PANELS, 16, 257), 128 + 2048 + 64 + 256);
    ck_assert_uint_eq(tensor_bytes(TENSOR_F32, LAYOUT_VECTOR, 1, 7), 28);
    ck_assert_uint_eq(tensor_bytes(TENSOR_F32, LAYOUT_VECTOR, 2, 7), 0);
}
END_TEST

START_TEST(every_number_of_a_panel_has_a_place_of_its_own)
{
    for (uint32_t type = 0; type < TENSOR_TYPES; type++)
        for (size_t k = 1; k <= 600; k += k < 40 ? 1 : 37) {
            size_t bytes = panel_bytes(type, k), unit = type == TENSOR_F32 ? 4 : 2;
            uint8_t *taken = calloc(bytes, 2); /* a half byte each */
            for (size_t row = 0; row < PANEL_ROWS; row++)
                for (size_t i = 0; i < round_up(k, GROUP); i++) {
                    if (!type_quantised(type)) {
                        size_t at = panel_index_float(type, row, i) * unit;
                        ck_assert_uint_le(at + unit, bytes);
                        ck_assert(!taken[2 * at]++);
                        continue;
                    }
                    size_t groups, block = i / DOT_BLOCK, inside = i % DOT_BLOCK, at = panel_block(type, k, block, &groups);
                    size_t weight = at + block_weight(type, groups, row, inside);
                    ck_assert(weight < bytes && weight >= at + block_scale_bytes(type, groups));
                    ck_assert(!taken[2 * weight + (type_nibbles(type) && inside & 4)]++);
                    ck_assert_uint_ge(at, panel_head_bytes(type));
                    ck_assert_uint_le(block_scale(type, row, inside * type_scales(type) / GROUP) + (type == TENSOR_Q8 ? 2 : 1),
                                      block_scale_bytes(type, groups));
                }
            free(taken);
        }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("plan");
    TCase *tc = tcase_create("plan");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_right_plan_is_accepted);
    tcase_add_loop_test(tc, of_a_strangers_plan_nothing_is_read_beyond_its_end_and_what_is_accepted_is_in_bounds, 0, 4);
    tcase_add_test(tc, a_plan_cut_anywhere_is_refused);
    tcase_add_test(tc, bytes_of_a_tensor_are_0_where_its_shape_is_out_of_range_and_never_overflow);
    tcase_add_test(tc, every_number_of_a_panel_has_a_place_of_its_own);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
