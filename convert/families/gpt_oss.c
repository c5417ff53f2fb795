/* SPDX-License-Identifier: Apache-2.0 */
/* GptOssForCausalLM: every network a set of experts with biases and a clamped gate, their weights
 * MXFP4, which an image keeps as they are; attention with sinks and biases, every other layer with
 * a window; YaRN. */
#include "dense.h"

static const char *const neutral[] = {
    "experts_per_token",      /* another name of num_experts_per_tok */
    "hidden_act",             /* the gate is the clamped one, whatever it says */
    "initial_context_length", /* the RoPE object has it */
    "quantization_config",    /* of kind mxfp4, and which tensors are is fixed */
    "router_aux_loss_coef",
    NULL,
};

static struct dense_experts read_experts(struct config *c, const struct dense *d)
{
    struct dense_experts x = {
        .count = (uint32_t)config_need_count(c, "num_local_experts", PLAN_EXPERTS_MAX),
        .top = (uint32_t)config_need_count(c, "num_experts_per_tok", PLAN_EXPERTS_MAX),
        .ffn = d->ffn,
        .routing = ROUTING_CHOSEN,
        .router = "mlp.router",
        .router_bias = true,
        .mxfp4_gate_up = "mlp.experts.gate_up_proj",
        .mxfp4_down = "mlp.experts.down_proj",
        .bias = true,
        .limit = (float)config_number(c, "swiglu_limit", 7),
    };
    if (config_number(c, "swiglu_alpha", 1.702) != 1.702)
        config_refuse(c, "swiglu_alpha", "only 1.702 is supported");
    if (!(x.limit > 0))
        config_refuse(c, "swiglu_limit", "a number above 0 is needed");
    return x;
}

static void emit_gpt_oss(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 131072, .epsilon = 1e-5, .kv_heads = 8});
    config_need_count(c, "head_dim", 4096);
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", true);
    d.sinks = true;
    d.gate = ACTIVATION_CLAMPED_GATE;
    d.experts = read_experts(c, &d);
    for (uint64_t i = 0; d.layer && i < d.layers; i++)
        d.layer[i].experts = true;
    if (emit_has(e, "model.layers.0.%s", d.experts.mxfp4_gate_up) && c->status == STELE_OK)
        c->status = stele_fail(c->err, STELE_INPUT,
                               "%s: model.layers.0.%s is not MXFP4: experts of another type are not supported; "
                               "take the checkpoint as it was published",
                               e->source->directory, d.experts.mxfp4_gate_up);
    if (!config_value(c, "rope_scaling") && !config_value(c, "rope_parameters"))
        config_refuse(c, "rope_scaling",
                      "transformers takes a YaRN of its own where none is given; write it down");
    dense_rope(&d, emit_config_rope(c, e, 150000, (uint32_t)d.head_dim / 2));
    uint32_t window = dense_sliding_window(c, 128);
    if (!dense_layer_types(c, &d, window)) /* the class's rule: every other layer */
        for (uint64_t i = 0; d.layer && i < d.layers; i++)
            d.layer[i].window = i % 2 ? 0 : window;
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_gpt_oss = {"GptOssForCausalLM", emit_gpt_oss, neutral};
