/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen2MoeForCausalLM and Qwen3MoeForCausalLM: the attention of Qwen2 or Qwen3; a layer's network is dense or a set of
 * experts, in Qwen2 with an expert more that every row uses, through a gate of its own. */
#include "dense.h"

static const char *const neutral2[] = {"router_aux_loss_coef", NULL};
static const char *const neutral3[] = {
    "layer_types", "max_window_layers", /* a window is that of all layers */
    "router_aux_loss_coef",
    NULL,
};

/* A layer has experts if it is not in mlp_only_layers and its number, from 1, is a multiple of decoder_sparse_step. */
static void choose_layers(struct config *c, struct dense *d)
{
    const json_t *dense_only = config_value(c, "mlp_only_layers");
    uint64_t step = config_count(c, "decoder_sparse_step", 1, UINT32_MAX), layer;
    for (uint64_t i = 0; d->layer && i < d->layers; i++)
        d->layer[i].experts = (i + 1) % step == 0;
    for (size_t i = 0; i < json_array_size(dense_only); i++)
        if (!json_whole(json_array_get(dense_only, i), d->layers - 1, &layer))
            config_refuse(c, "mlp_only_layers", "numbers of layers are needed");
        else if (d->layer)
            d->layer[layer].experts = false;
}

static struct dense_experts read_experts(struct config *c)
{
    /* transformers 5 saves num_experts as num_local_experts */
    uint64_t count = config_count(c, "num_local_experts", 0, PLAN_EXPERTS_MAX);
    count = count ? config_count(c, "num_experts", count, PLAN_EXPERTS_MAX)
                  : config_need_count(c, "num_experts", PLAN_EXPERTS_MAX);
    return (struct dense_experts){
        .count = (uint32_t)count,
        .top = (uint32_t)config_need_count(c, "num_experts_per_tok", PLAN_EXPERTS_MAX),
        .ffn = config_need_count(c, "moe_intermediate_size", PLAN_WIDTH_MAX),
        .routing = config_flag(c, "norm_topk_prob", false) ? ROUTING_NORMED : ROUTING_ALL,
        .router = "mlp.gate",
        .gate = "mlp.experts.%u.gate_proj",
        .up = "mlp.experts.%u.up_proj",
        .down = "mlp.experts.%u.down_proj",
    };
}

static bool every_other_below(uint64_t layer, uint64_t max_layers)
{
    return layer % 2 == 0 && layer < max_layers;
}

static void emit_qwen2_moe(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 32768, .epsilon = 1e-6, .kv_heads = 16});
    d.qkv_bias = config_flag(c, "qkv_bias", true);
    d.experts = read_experts(c);
    d.experts.shared_ffn = config_need_count(c, "shared_expert_intermediate_size", PLAN_WIDTH_MAX);
    d.experts.shared = "mlp.shared_expert";
    d.experts.shared_gate = "mlp.shared_expert_gate";
    choose_layers(c, &d);
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    dense_qwen_windows(c, &d, every_other_below);
    emit_dense(c, e, &d);
    dense_close(&d);
}

static void emit_qwen3_moe(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 32768, .epsilon = 1e-6, .kv_heads = 4});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.head_norm = true;
    d.experts = read_experts(c);
    choose_layers(c, &d);
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    bool windows = config_flag(c, "use_sliding_window", false);
    uint32_t window = dense_sliding_window(c, 4096);
    dense_window(&d, windows ? window : 0); /* all layers, whatever lists of them say */
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_qwen2_moe = {"Qwen2MoeForCausalLM", emit_qwen2_moe, neutral2};
const struct family family_qwen3_moe = {"Qwen3MoeForCausalLM", emit_qwen3_moe, neutral3};
