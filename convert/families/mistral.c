/* SPDX-License-Identifier: Apache-2.0 */
/* MistralForCausalLM: Llama with a window over the positions of every layer. */
#include "dense.h"

static void emit_mistral(struct config *c, struct emitter *e)
{
    struct dense d = dense_config(c, (struct dense_absent){.context = 131072, .epsilon = 1e-6, .kv_heads = 8});
    dense_silu(c);
    dense_rope(&d, emit_config_rope(c, e, 10000, (uint32_t)d.head_dim / 2));
    uint32_t window = dense_sliding_window(c, 4096);
    if (!dense_layer_types(c, &d, window))
        dense_window(&d, window);
    emit_dense(c, e, &d);
    dense_close(&d);
}

const struct family family_mistral = {"MistralForCausalLM", emit_mistral, NULL};
