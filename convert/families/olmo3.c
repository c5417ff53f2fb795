/* SPDX-License-Identifier: Apache-2.0 */
/* Olmo3ForCausalLM: Olmo2 with windows; only the layers without one have the scaled RoPE. */
#include "dense.h"

static void emit_olmo3(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 2048, .epsilon = 1e-5});
    uint32_t window = dense_sliding_window(c, 4096);
    double theta = config_number(c, "rope_theta", 500000);
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.whole_norm = true;
    d.norm_before_attention = d.norm_before_network = NULL;
    d.norm_behind_attention = "post_attention_layernorm";
    d.norm_behind_network = "post_feedforward_layernorm";
    dense_silu(c);
    if (!dense_layer_types(c, &d, window))
        for (uint64_t i = 0; d.layer && i < d.layers; i++) /* the class's default: every fourth layer is full */
            d.layer[i].window = (i + 1) % 4 ? window : 0;
    if (theta != 500000 && !config_value(c, "rope_parameters"))
        config_refuse(c, "rope_theta",
                      "transformers 4 gives it to all layers, 5 to those without a window; write rope_parameters");
    dense_two_ropes(c, e, &d, theta, 500000);
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_olmo3 = {"Olmo3ForCausalLM", emit_olmo3, NULL};
