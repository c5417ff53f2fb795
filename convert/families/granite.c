/* SPDX-License-Identifier: Apache-2.0 */
/* GraniteForCausalLM (Granite 3): Llama with four numbers: on embeddings, on scores instead of 1 / sqrt(head_dim), on what
 * a branch adds, and under the logits. */
#include "dense.h"

static void emit_granite(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 2048, .epsilon = 1e-6});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.mlp_bias = config_flag(c, "mlp_bias", false);
    d.embedding_scale = (float)config_number(c, "embedding_multiplier", 1);
    d.attention_scale = (float)config_number(c, "attention_multiplier", 1);
    d.residual_scale = (float)config_number(c, "residual_multiplier", 1);
    double logits_scaling = config_number(c, "logits_scaling", 1);
    if (!(logits_scaling > 0))
        config_refuse(c, "logits_scaling", "a number above 0 is needed");
    d.logits_scale = (float)(1 / logits_scaling);
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_granite = {"GraniteForCausalLM", emit_granite, NULL};
