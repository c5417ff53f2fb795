/* SPDX-License-Identifier: Apache-2.0 */
/* Gemma2ForCausalLM and Gemma3ForCausalLM (text): norms, with weights stored less 1, before and behind each branch; embeddings
 * times sqrt(hidden); GELU; a query scale of its own. Gemma 2 caps scores and logits, every other layer has a window.
 * Gemma 3 norms heads of q and k, and its windowed layers have a RoPE of their own. */
#include "dense.h"

#include <math.h>
#include <string.h>

static const char *const neutral[] = {
    "_sliding_window_pattern", /* written by the class, never read */
    "cache_implementation",
    "hidden_act", /* hidden_activation has the say */
    NULL,
};

/* null: none; absent: the class's. */
static float cap(struct config *c, const char *key, double absent)
{
    double value = config_number(c, key, json_object_get(c->root, key) ? 0 : absent);
    if (value < 0)
        config_refuse(c, key, "a number above 0 is needed");
    return (float)value;
}

/* sqrt(hidden) as the model's type holds it: transformers rounds the root to bf16 where the weights are, f32 is exact. */
static struct dense gemma_config(struct config *c, uint32_t context_absent, double attention_cap_absent,
                                 double logits_cap_absent)
{
    struct dense d = dense_config(c, (struct dense_absent){
        .context = context_absent, .epsilon = 1e-6, .tied = true, .kv_heads = 4, .head_dim = 256});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.norm_added = 1;
    d.norm_behind_attention = "post_attention_layernorm";
    d.norm_before_network = "pre_feedforward_layernorm";
    d.norm_behind_network = "post_feedforward_layernorm";
    d.gate = ACTIVATION_GELU_GATE;
    d.embedding_scale = sqrtf((float)d.hidden);
    d.attention_scale = (float)pow(config_number(c, "query_pre_attn_scalar", 256), -0.5);
    d.attention_cap = cap(c, "attn_logit_softcapping", attention_cap_absent);
    d.logits_cap = cap(c, "final_logit_softcapping", logits_cap_absent);
    if (strcmp(config_text(c, "hidden_activation", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"))
        config_refuse(c, "hidden_activation", "only gelu_pytorch_tanh is supported");
    if (!(d.attention_scale > 0 && isfinite(d.attention_scale)))
        config_refuse(c, "query_pre_attn_scalar", "a number above 0 is needed");
    return d;
}

static void emit_gemma2(struct config *c, struct emitter *e)
{
    struct dense d = gemma_config(c, 8192, 50, 30);
    uint32_t window = dense_sliding_window(c, 4096);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    if (!dense_layer_types(c, &d, window))
        for (uint64_t i = 0; d.layer && i < d.layers; i++)
            d.layer[i].window = i % 2 ? 0 : window;
    emit_dense(c, e, &d);
    dense_close(&d);
}

static void emit_gemma3(struct config *c, struct emitter *e)
{
    struct dense d = gemma_config(c, 131072, 0, 0);
    uint32_t window = dense_sliding_window(c, 4096);
    uint64_t pattern = config_count(c, "sliding_window_pattern", 6, UINT32_MAX);
    d.head_norm = true;
    if (!dense_layer_types(c, &d, window))
        for (uint64_t i = 0; d.layer && i < d.layers; i++)
            d.layer[i].window = (i + 1) % pattern ? window : 0;
    dense_two_ropes(c, e, &d, 1000000, config_number(c, "rope_local_base_freq", 10000));
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_gemma2 = {"Gemma2ForCausalLM", emit_gemma2, neutral};
const struct family family_gemma3 = {"Gemma3ForCausalLM", emit_gemma3, neutral};
