/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the ops of a plan over slots, whatever the model. A session of stele.h is one of these. */
#ifndef RUNTIME_EXECUTOR_H
#define RUNTIME_EXECUTOR_H

#include "image.h"
#include "kernels.h"
#include "kv.h"
#include "ops.h"
#include "plan.h"
#include "stele.h"

/* An op whose operands were resolved when the session was opened: offsets instead of slots, pointers into the mapping
 * instead of tensors. */
struct executor_op {
    enum plan_code code;
    uint32_t out;        /* slot that it writes, PLAN_NONE: none that a look at it would help */
    union {
        struct op_embed embed;
        struct op_norm norm;
        struct op_linear linear;
        struct op_rope_kv rope_kv;
        struct op_attention attention;
        struct op_router router;
        struct op_experts experts;
        struct op_gate gate;
        struct op_logits logits;
    };
};

struct stele_session {
    const struct image *image;
    const struct blas_backend *backend;
    struct blas_device *device;
    int ordinal;             /* of the device among its back end's */
    bool may_be_cpu;         /* "auto": where the GPU cannot be opened, the CPU does */
    struct blas_span *spans; /* [span_count]: weights in plan order; NULL for the CPU */
    size_t span_count;
    const struct blas_kernels *table; /* what the back end computes with: rows of logits are looked at with it too */
    struct plan plan;
    void *plan_memory;       /* what plan views */
    struct executor_op *ops; /* [plan.counts.ops]; the last is logits */
    uint32_t tail;           /* op behind the last that stores keys and values: from it on rows stand alone */
    struct blas_rope *ropes; /* [plan.counts.ropes] */
    float *rope_rows;        /* sines and cosines of a step, all ropes */
    struct kv_tables kv;
    struct blas_row *rows;   /* [chunk] */
    uint32_t *wanted;        /* [chunk]: rows of the step whose logits are wanted */
    size_t row_count, wanted_count;
    uint32_t context, chunk, kv_type;
    const char *kernels;
    double first_op;
    bool begun, began_logits; /* a step, and logits, for the first time: what they read was asked for */
    struct ahead *ahead;      /* NULL: all of it was in memory */
    uint32_t *kept; /* malloc'ed: ids that sequence 0 holds for stele_score */
    size_t kept_count;
    uint8_t *experts_used; /* a byte for each expert of each layer */
    size_t expert_count;
};

#endif
