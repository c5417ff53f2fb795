/* SPDX-License-Identifier: Apache-2.0 */
/* What a family writes with: slots, tensors, states, ropes and ops of a plan, in the order in which they are used, which
 * is the order of the weights in the image. The first error is kept in `status`; calls after it do nothing that matters,
 * so a family reads straight through and its caller looks once. */
#ifndef CONVERT_EMIT_H
#define CONVERT_EMIT_H

#include "error.h"
#include "plan.h"
#include "safetensors.h"
#include "types.h"

/* A run of rows of a source tensor: rows first, first + step, first + 2 step, … */
struct part {
    const struct source_tensor *tensor; /* NULL: zeros */
    uint64_t first, rows, step;
};

/* How a tensor of the image is made of source tensors. Parts stand one behind the other, each padded to whole panels, or
 * in turn panel by panel. */
struct recipe {
    struct image_tensor record;
    struct part *parts; /* [sets][part_count] */
    size_t part_count;
    uint32_t sets; /* of a bank, and of the biases of one, a set for each expert; else 1 */
    bool in_turn;
    bool paired; /* a bank whose matrices the next recipe's follow, expert by expert */
    float added; /* vectors: added to each number in binary32 */
};

/* What a matrix is for, which decides its type where --weights names q4. */
enum matrix_use {
    USE_LINEAR,
    USE_VOCABULARY, /* embedding, head: rows are not padded, q8 where the rest is q4 */
    USE_ROUTER,     /* small, and decides much: in the source's type where the rest is quantised */
};

struct emitter {
    struct checkpoint *source; /* NULL: a tensor that is asked for is made up, a shape without numbers (sizes.c) */
    enum source_type made_up_type;
    struct source_tensor **made_up;
    int weights; /* enum tensor_type, or -1: the source's */
    uint32_t vocabulary, context;
    struct plan_op *ops;
    struct plan_slot *slots;
    struct plan_state *states;
    struct plan_rope *ropes;
    float *constants;
    struct recipe *recipes;
    uint32_t op_count, slot_count, state_count, rope_count, constant_count, recipe_count, made_up_count;
    uint32_t slot_numbers;  /* known after emit_finish */
    uint64_t weights_bytes; /* likewise */
    struct stele_error *err;
    enum stele_status status;
};

void emit_close(struct emitter *e);

/* The source tensor of that name, which must have floats and this shape (columns 0: a vector of rows). Marks it as used.
 * NULL, and the status set, where it is missing or another. */
__attribute__((format(printf, 4, 5))) const struct source_tensor *emit_source(struct emitter *e, uint64_t rows,
                                                                              uint64_t columns, const char *name, ...);

/* The source tensor NAME_blocks with its NAME_scales, MXFP4, as one of experts * rows rows; likewise. */
__attribute__((format(printf, 5, 6))) const struct source_tensor *
emit_source_mxfp4(struct emitter *e, uint64_t experts, uint64_t rows, uint64_t columns, const char *name, ...);

/* Whether the source has such a tensor. */
__attribute__((format(printf, 2, 3))) bool emit_has(const struct emitter *e, const char *name, ...);

/* A part that is a whole tensor of that many rows (NULL: zeros). */
struct part part_whole(const struct source_tensor *tensor, uint64_t rows);

/* Tensors of the image; what they return is their index. */
uint32_t emit_matrix(struct emitter *e, enum matrix_use use, uint64_t columns, const struct part *parts, size_t n,
                     bool in_turn, const char *name, ...) __attribute__((format(printf, 7, 8)));
/* A vector joined and padded as the rows of a matrix are, for a bias. */
uint32_t emit_bias(struct emitter *e, const struct part *parts, size_t n, bool in_turn, const char *name, ...)
    __attribute__((format(printf, 5, 6)));
/* The biases of a bank, [experts][n] parts, those of an expert as above. */
uint32_t emit_bank_bias(struct emitter *e, const struct part *parts, size_t n, uint32_t experts, bool in_turn,
                        const char *name, ...) __attribute__((format(printf, 6, 7)));
/* The two banks of a set of experts: gate and up in turn, then down, of `ffn` rows and `columns`. gate, up and down have
 * `experts` parts each. The index of the first; the second follows it. */
uint32_t emit_bank(struct emitter *e, uint64_t columns, const struct part *gate, const struct part *up,
                   const struct part *down, uint32_t experts, unsigned layer);
/* A vector as it stands, `added` to each number. */
uint32_t emit_vector(struct emitter *e, const struct source_tensor *tensor, float added, const char *name, ...)
    __attribute__((format(printf, 4, 5)));

uint32_t emit_slot(struct emitter *e, uint64_t width);
uint32_t emit_kv(struct emitter *e, uint32_t heads, uint32_t head_dim, uint32_t window);
uint32_t emit_rope(struct emitter *e, const float *inverse_frequencies, uint32_t pairs, float magnitude);
/* Gives a rope its second set, for contexts above `above` positions. */
void emit_long_rope(struct emitter *e, uint32_t rope, uint32_t above, const float *inverse_frequencies, float magnitude);

/* Appends an op and returns its index; emitter->ops[index] may be completed later. */
uint32_t emit_op(struct emitter *e, struct plan_op op);

/* Numbers of rows that parts make, padded to panels. */
uint64_t parts_rows(const struct part *parts, size_t n);

/* The end: places slots by their lifetimes and tensors by their order. */
enum stele_status emit_finish(struct emitter *e);

/* The sections "plan" and "tensors", malloc'ed. */
enum stele_status emit_plan(const struct emitter *e, void **plan, size_t *plan_length, void **tensors,
                            size_t *tensors_length);

#endif
