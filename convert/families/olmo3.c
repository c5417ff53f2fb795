/* SPDX-License-Identifier: Apache-2.0 */
/* Olmo3ForCausalLM: Olmo2 with windows; only the layers without one have the scaled RoPE. */
#include "dense.h"

static void emit_olmo3(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 2048, .epsilon = 1e-5});
    uint32_t pairs = (uint32_t)d.head_dim / 2, window = dense_sliding_window(c, 4096);
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.whole_norm = true;
    d.norm_before_attention = d.norm_before_network = NULL;
    d.norm_behind_attention = "post_attention_layernorm";
    d.norm_behind_network = "post_feedforward_layernorm";
    dense_silu(c);
    struct config_rope scaled = config_rope(c, 500000), plain = {.theta = scaled.theta, .type = "default"};
    uint32_t full = emit_rope_of(c, e, scaled, pairs), sliding = emit_rope_of(c, e, plain, pairs);
    if (!dense_layer_types(c, &d, window))
        for (uint64_t i = 0; d.layer && i < d.layers; i++) /* the class's default: every fourth layer is full */
            d.layer[i].window = (i + 1) % 4 ? window : 0;
    for (uint64_t i = 0; d.layer && i < d.layers; i++)
        d.layer[i].rope = d.layer[i].window ? sliding : full;
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_olmo3 = {"Olmo3ForCausalLM", emit_olmo3, NULL};
