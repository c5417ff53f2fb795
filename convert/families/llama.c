/* SPDX-License-Identifier: Apache-2.0 */
/* LlamaForCausalLM (transformers, models/llama): pre-norm blocks, grouped-query attention with half rotation, SiLU-gated
 * network, optional biases, head tied or not. */
#include "dense.h"

static void emit_llama(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 2048, .epsilon = 1e-6});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.mlp_bias = config_flag(c, "mlp_bias", false);
    dense_silu(c);
    if (config_flag(c, "rope_interleaved", false))
        config_refuse(c, "rope_interleaved", "only half rotation is supported");
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_llama = {"LlamaForCausalLM", emit_llama, NULL};
