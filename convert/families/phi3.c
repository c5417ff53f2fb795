/* SPDX-License-Identifier: Apache-2.0 */
/* Phi3ForCausalLM (Phi-3, Phi-3.5, Phi-4-mini): fused projections, RoPE on the first part of a head, a window. */
#include "dense.h"

#include <string.h>

static const char *const neutral[] = {
    "attention_bias", /* the class makes no bias of it */
    NULL,
};

static void emit_phi3(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 4096, .epsilon = 1e-5});
    d.fused = true;
    dense_silu(c);
    double part = config_number(c, "partial_rotary_factor", 1);
    struct config_rope rope = config_rope(c, 10000);
    rope.part_read = true;
    const json_t *inner = json_object_get(rope.value, "partial_rotary_factor");
    part = json_is_real(inner) ? json_real_value(inner) : part;
    /* The top level has the say, with the class's default, whatever the object holds. */
    rope.original = (uint32_t)config_count(c, "original_max_position_embeddings", 4096, PLAN_CONTEXT_MAX);
    if (strcmp(rope.type, "default") && strcmp(rope.type, "longrope"))
        config_refuse(c, config_value(c, "rope_parameters") ? "rope_parameters" : "rope_scaling",
                      "the class takes RoPE of type longrope only");
    uint32_t rotated = (uint32_t)((double)d.head_dim * part);
    if (!(part > 0 && part <= 1) || rotated % 2 || !rotated)
        config_refuse(c, "partial_rotary_factor", "an even part of the head is needed");
    dense_rope(&d, emit_rope_of(c, e, rope, rotated / 2));
    dense_window(&d, dense_sliding_window(c, 0));
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_phi3 = {"Phi3ForCausalLM", emit_phi3, neutral};
