/* SPDX-License-Identifier: Apache-2.0 */
/* Olmo2ForCausalLM: no norm before a branch but one behind it, and norms over all of q and of k. */
#include "dense.h"

static void emit_olmo2(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 2048, .epsilon = 1e-5});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.whole_norm = true;
    d.norm_before_attention = d.norm_before_network = NULL;
    d.norm_behind_attention = "post_attention_layernorm";
    d.norm_behind_network = "post_feedforward_layernorm";
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_olmo2 = {"Olmo2ForCausalLM", emit_olmo2, NULL};
