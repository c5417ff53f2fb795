/* SPDX-License-Identifier: Apache-2.0 */
/* SmolLM3ForCausalLM: Llama some of whose layers do not rotate q and k. */
#include "dense.h"

static const char *const neutral[] = {"max_window_layers", NULL}; /* of another family's rule, published all the same */

/* no_rope_layers: 1 means that the layer has RoPE. Absent: all but every no_rope_layer_interval-th. */
static bool layer_rotates(struct config *c, const struct dense *d, uint64_t layer)
{
    const json_t *list = config_value(c, "no_rope_layers");
    uint64_t rotates = 1, interval = config_count(c, "no_rope_layer_interval", 4, UINT32_MAX);
    if (!list)
        return (layer + 1) % interval != 0;
    if (!json_is_array(list) || json_array_size(list) != d->layers || !json_whole(json_array_get(list, layer), 1, &rotates))
        config_refuse(c, "no_rope_layers", "a 0 or 1 for each layer is needed");
    return rotates;
}

static void emit_smollm3(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){
        .context = 32768, .epsilon = 1e-6, .tied = true, .kv_heads = 4});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.mlp_bias = config_flag(c, "mlp_bias", false);
    dense_silu(c);
    uint32_t rope = emit_config_rope(c, e, 2000000, (uint32_t)d.head_dim / 2);
    for (uint64_t i = 0; d.layer && i < d.layers; i++)
        d.layer[i].rope = layer_rotates(c, &d, i) ? rope : PLAN_NONE;
    uint32_t window = dense_sliding_window(c, 0);
    bool windows = config_flag(c, "use_sliding_window", false);
    if (!dense_layer_types(c, &d, window)) /* the class's rule: those that do not rotate */
        for (uint64_t i = 0; d.layer && i < d.layers; i++)
            d.layer[i].window = windows && d.layer[i].rope == PLAN_NONE ? window : 0;
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_smollm3 = {"SmolLM3ForCausalLM", emit_smollm3, neutral};
