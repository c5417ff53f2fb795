/* SPDX-License-Identifier: Apache-2.0 */
/* A plan: a flat list of ops over slots, tensors and states. The converter writes it, the executor runs it; both check it
 * by plan_check(), so that nothing behind it needs to look at a bound again. */
#ifndef IMAGE_PLAN_H
#define IMAGE_PLAN_H

#include "error.h"
#include "format.h"
#include "types.h"

#define PLAN_NONE UINT32_MAX

enum {
    PLAN_ARGS_MAX = 15,
    PLAN_WIDTH_MAX = 1 << 20,  /* numbers of a slot's row, K of a matrix */
    PLAN_CONTEXT_MAX = 1 << 24, /* positions: exact in binary32 */
    PLAN_EXPERTS_MAX = 1024,
    PLAN_SLOTS_MAX = 1024,
    PLAN_HEADS_MAX = 4096,
    PLAN_HEAD_MAX = 4096,       /* head_dim; a rope has half as many pairs at most */
};

enum plan_code {
#define PLAN_OP(CODE, name) PLAN_##CODE,
#define PLAN_ARG(kind, name)
#define PLAN_END(CODE, name)
#include "plan.def"
#undef PLAN_OP
#undef PLAN_ARG
#undef PLAN_END
    PLAN_CODES
};

enum plan_activation {
    ACTIVATION_NONE = 0,
    ACTIVATION_SILU_GATE = 1,    /* silu(gate) * up */
    ACTIVATION_GELU_GATE = 2,    /* gelu(gate) * up, gelu by tanh */
    ACTIVATION_CLAMPED_GATE = 3, /* gate * sigmoid(1.702 gate) * (up + 1), both within the limit */
    ACTIVATIONS
};

/* What weights the chosen experts get. */
enum plan_routing {
    ROUTING_ALL = 0,    /* their part of a softmax over all experts */
    ROUTING_NORMED = 1, /* the same, divided by the sum over the chosen */
    ROUTING_CHOSEN = 2, /* a softmax over the chosen */
    ROUTINGS
};

enum plan_kind {
    KIND_SLOT,
    KIND_SLOT_OR_NONE,
    KIND_MATRIX,
    KIND_BANK,
    KIND_VECTOR,
    KIND_VECTOR_OR_NONE,
    KIND_STATE,
    KIND_ROPE,
    KIND_ROPE_OR_NONE,
    KIND_COLUMN,
    KIND_COUNT,
    KIND_ACTIVATION,
    KIND_ROUTING,
    KIND_NUMBER,
};

/* struct plan_embed { uint32_t out, table; float scale; } and so on. */
#define PLAN_TYPE_SLOT uint32_t
#define PLAN_TYPE_SLOT_OR_NONE uint32_t
#define PLAN_TYPE_MATRIX uint32_t
#define PLAN_TYPE_BANK uint32_t
#define PLAN_TYPE_VECTOR uint32_t
#define PLAN_TYPE_VECTOR_OR_NONE uint32_t
#define PLAN_TYPE_STATE uint32_t
#define PLAN_TYPE_ROPE uint32_t
#define PLAN_TYPE_ROPE_OR_NONE uint32_t
#define PLAN_TYPE_COLUMN uint32_t
#define PLAN_TYPE_COUNT uint32_t
#define PLAN_TYPE_ACTIVATION uint32_t
#define PLAN_TYPE_ROUTING uint32_t
#define PLAN_TYPE_NUMBER float
#define PLAN_OP(CODE, name) struct plan_##name {
#define PLAN_ARG(kind, name) PLAN_TYPE_##kind name;
#define PLAN_END(CODE, name)                                                                                           \
    }                                                                                                                  \
    ;
#include "plan.def"
#undef PLAN_OP
#undef PLAN_ARG
#undef PLAN_END

/* One op of a plan: 64 bytes. Words behind the op's own operands are zero. */
struct plan_op {
    uint32_t code; /* enum plan_code */
    union {
        uint32_t args[PLAN_ARGS_MAX];
#define PLAN_OP(CODE, name) struct plan_##name name;
#define PLAN_ARG(kind, name)
#define PLAN_END(CODE, name)
#include "plan.def"
#undef PLAN_OP
#undef PLAN_ARG
#undef PLAN_END
    };
};
static_assert(sizeof(struct plan_op) == 64, "FORMAT.md: 64 bytes");

/* Names and kinds of an op's operands, for printing and checking. */
struct plan_form {
    const char *name;
    struct {
        enum plan_kind kind;
        const char *name; /* NULL behind the last */
    } args[PLAN_ARGS_MAX + 1];
};
extern const struct plan_form plan_forms[PLAN_CODES];

/* A plan as it lies in memory, and the tensors that it names. Views: nothing is owned. */
struct plan {
    struct plan_header counts;
    const struct plan_op *ops;
    const struct plan_slot *slots;
    const struct plan_state *states;
    const struct plan_rope *ropes;
    const float *constants;
    const struct image_tensor *tensors;
    uint32_t tensor_count;
};

/* Bytes of the section "plan" that has these counts. The counts are 32-bit, so the sum cannot overflow. */
uint64_t plan_bytes(const struct plan_header *counts);

/* Views the sections "plan" (8-byte aligned) and "tensors" and checks everything that is read later: every index, every
 * shape, that slots lie within slot_numbers and are written before they are read, that tensors lie within weights_bytes.
 * Work per op and tensor, none per byte of weights. STELE_INPUT names op and operand. `name` is the file's, for the
 * sentence. */
enum stele_status plan_open(struct plan *out, const void *section, uint64_t bytes, const void *tensors,
                            uint64_t tensors_bytes, uint64_t weights_bytes, const char *name, struct stele_error *err);

struct image;

/* The plan of an image, checked as above, over a private copy of the two sections, so that a file that changes behind the
 * check cannot lead a reader astray. *owned is to be freed when the plan is no longer used; *weights is in the mapping. */
enum stele_status plan_load(struct plan *out, void **owned, const uint8_t **weights, const struct image *image,
                            struct stele_error *err);

/* Bytes of a tensor of this shape; 0 where the shape is out of range. */
uint64_t tensor_bytes(uint32_t type, uint32_t layout, uint64_t rows, uint64_t columns);

#endif
