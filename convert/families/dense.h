/* SPDX-License-Identifier: Apache-2.0 */
/* The decoder that most families are: embedding, layers of attention and network around a residual, norm, head. A family
 * reads its config into a `struct dense` and calls emit_dense(); what a family does not say is plain Llama. */
#ifndef CONVERT_DENSE_H
#define CONVERT_DENSE_H

#include "family.h"

/* How a layer differs from its neighbours. */
struct dense_layer {
    uint32_t rope;   /* index of the rope; PLAN_NONE: keys and queries are not rotated */
    uint32_t window; /* positions that a row sees; 0: all */
    bool experts;    /* its network is a set of experts */
};

struct dense;

/* Experts instead of the network of a layer. Names are behind "model.layers.N.". */
struct dense_experts {
    uint32_t count, top;
    uint64_t ffn; /* width of an expert */
    uint32_t routing; /* enum plan_routing */
    const char *router; /* "mlp.gate" */
    bool router_bias;
    const char *gate, *up, *down; /* with one %u for the expert: "mlp.experts.%u.gate_proj" */
    const char *mxfp4_gate_up, *mxfp4_down; /* instead: one tensor of all experts' MXFP4, gate and up in turn, row by row */
    bool bias;               /* of gate and up, and of down: of all experts in one tensor, in the order of its rows */
    float limit;             /* of ACTIVATION_CLAMPED_GATE */
    uint64_t shared_ffn;     /* width of the shared expert, 0: none */
    const char *shared;      /* "mlp.shared_expert" */
    const char *shared_gate; /* "mlp.shared_expert_gate" */
    uint32_t route, gathered, expert_gated, sum, shared_gated, shared_out; /* slots */
};

struct dense {
    uint64_t hidden, ffn, layers, heads, kv_heads, head_dim, vocabulary;
    uint32_t context;
    float epsilon;
    bool tied;
    bool qkv_bias, out_bias, mlp_bias;
    bool head_norm;  /* q_norm and k_norm over each head */
    bool whole_norm; /* q_norm and k_norm over all heads at once */
    bool sinks;      /* one score more for each head */
    float norm_added;                                             /* to each norm weight: 1 where a family stores w - 1 */
    float embedding_scale, attention_scale, residual_scale, logits_scale;
    float attention_cap, logits_cap; /* 0: none */
    uint32_t gate;                   /* enum plan_activation */
    struct dense_layer *layer; /* [layers] */

    /* Names behind "model.layers.N.", without ".weight"; NULL: there is no such norm. */
    const char *norm_before_attention, *norm_behind_attention, *norm_before_network, *norm_behind_network;
    bool fused; /* qkv_proj and gate_up_proj are one tensor each */
    struct dense_experts experts;

    uint32_t x, n, qkv, attended, gated, branch; /* slots */
};

/* What a family's class takes where config.json has no such key. */
struct dense_absent {
    uint32_t context;
    double epsilon;
    bool tied;
    uint64_t kv_heads; /* 0: as many as heads, which null means in every family */
    uint64_t head_dim; /* 0: hidden / heads */
};

/* Reads the keys that all these families share: sizes, epsilon, ties, context. Gives memory for the layers, all with no
 * rope and no window; dense_close() frees it. */
struct dense dense_config(struct config *c, struct dense_absent absent);
void dense_close(struct dense *d);

/* Refuses any activation but silu (key hidden_act). */
void dense_silu(struct config *c);

/* The same rope, or the same window, for all layers. */
void dense_rope(struct dense *d, uint32_t rope);
void dense_window(struct dense *d, uint32_t window);

/* The window to the layers that layer_types calls "sliding_attention", none to "full_attention"; other kinds are refused.
 * False where the config has no layer_types. */
bool dense_layer_types(struct config *c, struct dense *d, uint32_t window);

/* The windows of Qwen's families: none unless use_sliding_window; then by layer_types, else of the layers that the
 * class's rule chooses, given max_window_layers. */
void dense_qwen_windows(struct config *c, struct dense *d, bool (*has_window)(uint64_t layer, uint64_t max_layers));
bool dense_window_from(uint64_t layer, uint64_t max_layers); /* Qwen2, Qwen3: from that layer on */

/* sliding_window, 0 where it is null; `absent`: the class's. */
uint32_t dense_sliding_window(struct config *c, uint32_t absent);

/* The RoPEs of families whose windowed layers have one of their own; their windows are set. In rope_parameters, as
 * transformers 5 writes them, there is one for full_attention and one for sliding_attention. Else rope_theta and
 * rope_scaling are those of the layers without a window, and the others' is plain. */
void dense_two_ropes(struct config *c, struct emitter *e, struct dense *d, double theta_absent, double theta_windowed);

/* Emits slots, tensors and ops of the whole model. */
void emit_dense(struct config *c, struct emitter *e, struct dense *d);

#endif
