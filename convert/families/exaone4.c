/* SPDX-License-Identifier: Apache-2.0 */
/* Exaone4ForCausalLM (EXAONE 4.0): norms behind the branches as in Olmo2, over heads of q and k as in Qwen3; of a model that
 * has windows, layers without one do not rotate. */
#include "dense.h"

static const char *const neutral[] = {
    "sliding_window_pattern", /* "LLLG", say, beside layer_types; else it is read */
    NULL,
};

static void emit_exaone4(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 2048, .epsilon = 1e-5, .kv_heads = 32});
    uint32_t window = dense_sliding_window(c, 4096);
    d.head_norm = true;
    d.norm_before_attention = d.norm_before_network = NULL;
    d.norm_behind_attention = "post_attention_layernorm";
    d.norm_behind_network = "post_feedforward_layernorm";
    dense_silu(c);
    uint32_t rope = emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2);
    if (!dense_layer_types(c, &d, window)) {
        uint64_t pattern = config_count(c, "sliding_window_pattern", 4, UINT32_MAX);
        for (uint64_t i = 0; d.layer && i < d.layers; i++)
            d.layer[i].window = (i + 1) % pattern ? window : 0;
    }
    for (uint64_t i = 0; d.layer && i < d.layers; i++)
        d.layer[i].rope = !window || d.layer[i].window ? rope : PLAN_NONE;
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_exaone4 = {"Exaone4ForCausalLM", emit_exaone4, neutral};
