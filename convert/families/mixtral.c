/* SPDX-License-Identifier: Apache-2.0 */
/* MixtralForCausalLM: Mistral whose network is the best 2 of 8 experts. */
#include "dense.h"

static const char *const neutral[] = {"router_aux_loss_coef", "router_jitter_noise", NULL}; /* of training */

static void emit_mixtral(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 131072, .epsilon = 1e-5, .kv_heads = 8});
    dense_silu(c);
    d.experts = (struct dense_experts){
        .count = (uint32_t)config_count(c, "num_local_experts", 8, PLAN_EXPERTS_MAX),
        .top = (uint32_t)config_count(c, "num_experts_per_tok", 2, PLAN_EXPERTS_MAX),
        .ffn = d.ffn,
        .routing = ROUTING_NORMED,
        .router = "block_sparse_moe.gate",
        .gate = "block_sparse_moe.experts.%u.w1",
        .up = "block_sparse_moe.experts.%u.w3",
        .down = "block_sparse_moe.experts.%u.w2",
    };
    for (uint64_t i = 0; d.layer && i < d.layers; i++)
        d.layer[i].experts = true;
    dense_rope(&d, emit_config_rope(c, e, 1000000, (uint32_t)d.head_dim / 2));
    dense_window(&d, dense_sliding_window(c, 0));
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_mixtral = {"MixtralForCausalLM", emit_mixtral, neutral};
