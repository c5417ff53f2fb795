/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen3ForCausalLM: Llama with a norm over each head of q and k before they are rotated. */
#include "dense.h"

static void emit_qwen3(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){
        .context = 32768, .epsilon = 1e-6, .kv_heads = 32, .head_dim = 128});
    d.qkv_bias = d.out_bias = config_flag(c, "attention_bias", false);
    d.head_norm = true;
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    dense_qwen_windows(c, &d, dense_window_from);
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_qwen3 = {"Qwen3ForCausalLM", emit_qwen3, NULL};
