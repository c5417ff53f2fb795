/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen2ForCausalLM (Qwen2 and 2.5): Llama whose q, k and v have biases, though no key says so. */
#include "dense.h"

static void emit_qwen2(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 32768, .epsilon = 1e-6, .kv_heads = 32});
    d.qkv_bias = true;
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    dense_qwen_windows(c, &d, dense_window_from);
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_qwen2 = {"Qwen2ForCausalLM", emit_qwen2, NULL};
