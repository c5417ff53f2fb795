/* SPDX-License-Identifier: Apache-2.0 */
/* LlamaForCausalLM (transformers, models/llama): pre-norm blocks, grouped-query attention with half rotation, SiLU-gated
 * network, optional biases, head tied or not. */
#include "family.h"

#include <math.h>
#include <string.h>

struct llama {
    uint64_t hidden, ffn, layers, heads, kv_heads, head_dim, vocabulary;
    float epsilon;
    bool attention_bias, mlp_bias, tied;
    uint32_t x, n, qkv, attended, gated; /* slots */
    uint32_t rope;
};

static struct llama read_config(struct config *c)
{
    static const char *const heads_key = "num_attention_heads";
    struct llama m = {
        .hidden = config_need_count(c, "hidden_size", PLAN_WIDTH_MAX),
        .ffn = config_need_count(c, "intermediate_size", PLAN_WIDTH_MAX),
        .layers = config_need_count(c, "num_hidden_layers", 4096),
        .heads = config_need_count(c, heads_key, 4096),
        .vocabulary = config_need_count(c, "vocab_size", INT32_MAX),
        .epsilon = (float)config_number(c, "rms_norm_eps", 1e-6),
        .attention_bias = config_flag(c, "attention_bias", false),
        .mlp_bias = config_flag(c, "mlp_bias", false),
        .tied = config_flag(c, "tie_word_embeddings", false),
    };
    m.kv_heads = config_count(c, "num_key_value_heads", m.heads, 4096);
    m.head_dim = config_count(c, "head_dim", m.hidden / m.heads, 4096);
    if (m.heads % m.kv_heads)
        config_refuse(c, "num_key_value_heads", "it does not divide num_attention_heads");
    if (!m.head_dim || m.head_dim % 2)
        config_refuse(c, "head_dim", "RoPE needs an even number");
    if (!(m.epsilon >= 0))
        config_refuse(c, "rms_norm_eps", "it must not be negative");
    if (strcmp(config_text(c, "hidden_act", "silu"), "silu"))
        config_refuse(c, "hidden_act", "only silu is supported");
    if (config_flag(c, "rope_interleaved", false))
        config_refuse(c, "rope_interleaved", "only half rotation is supported");
    return m;
}

/* The bias of fused projections, or PLAN_NONE. */
static uint32_t bias(struct emitter *e, bool there, const struct part *parts, size_t n, bool in_turn, const char *name,
                     unsigned layer)
{
    return there ? emit_bias(e, parts, n, in_turn, "layers.%u.%s", layer, name) : PLAN_NONE;
}

static void norm(struct emitter *e, const struct llama *m, const char *source, const char *name)
{
    uint32_t weight = emit_vector(e, emit_source(e, m->hidden, 0, "%s", source), 0, "%s", name);
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {m->x, m->n, weight, m->epsilon}});
}

static void layer_norm(struct emitter *e, const struct llama *m, unsigned layer, const char *source, const char *name)
{
    uint32_t weight = emit_vector(e, emit_source(e, m->hidden, 0, "model.layers.%u.%s.weight", layer, source), 0,
                                  "layers.%u.%s", layer, name);
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {m->x, m->n, weight, m->epsilon}});
}

static struct part weight_part(struct emitter *e, uint64_t rows, uint64_t columns, unsigned layer, const char *name)
{
    return part_whole(emit_source(e, rows, columns, "model.layers.%u.%s.weight", layer, name), rows);
}

static struct part bias_part(struct emitter *e, bool there, uint64_t rows, unsigned layer, const char *name)
{
    return part_whole(there ? emit_source(e, rows, 0, "model.layers.%u.%s.bias", layer, name) : NULL, rows);
}

static void attention(struct emitter *e, const struct llama *m, unsigned layer)
{
    uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    struct part weights[] = {weight_part(e, q, m->hidden, layer, "self_attn.q_proj"),
                             weight_part(e, kv, m->hidden, layer, "self_attn.k_proj"),
                             weight_part(e, kv, m->hidden, layer, "self_attn.v_proj")};
    struct part biases[] = {bias_part(e, m->attention_bias, q, layer, "self_attn.q_proj"),
                            bias_part(e, m->attention_bias, kv, layer, "self_attn.k_proj"),
                            bias_part(e, m->attention_bias, kv, layer, "self_attn.v_proj")};
    struct part out = weight_part(e, m->hidden, q, layer, "self_attn.o_proj");
    struct part out_bias = bias_part(e, m->attention_bias, m->hidden, layer, "self_attn.o_proj");
    uint32_t k_column = (uint32_t)parts_rows(weights, 1), v_column = (uint32_t)parts_rows(weights, 2);
    uint32_t state = emit_kv(e, (uint32_t)m->kv_heads, (uint32_t)m->head_dim, 0);
    float scale = 1.0f / sqrtf((float)m->head_dim);

    uint32_t w = emit_matrix(e, USE_LINEAR, m->hidden, weights, 3, false, "layers.%u.qkv", layer);
    uint32_t b = bias(e, m->attention_bias, biases, 3, false, "qkv.bias", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {m->n, m->qkv, w, b, PLAN_NONE, ACTIVATION_NONE, 1}});
    emit_op(e, (struct plan_op){PLAN_ROPE_KV, .rope_kv = {m->qkv, 0, k_column, v_column, (uint32_t)m->heads, PLAN_NONE,
                                                          PLAN_NONE, 0, m->rope, state}});
    emit_op(e, (struct plan_op){PLAN_ATTENTION, .attention = {m->qkv, 0, m->attended, (uint32_t)m->heads, scale, state}});
    w = emit_matrix(e, USE_LINEAR, q, &out, 1, false, "layers.%u.out", layer);
    b = bias(e, m->attention_bias, &out_bias, 1, false, "out.bias", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {m->attended, m->x, w, b, m->x, ACTIVATION_NONE, 1}});
}

static void network(struct emitter *e, const struct llama *m, unsigned layer)
{
    struct part weights[] = {weight_part(e, m->ffn, m->hidden, layer, "mlp.gate_proj"),
                             weight_part(e, m->ffn, m->hidden, layer, "mlp.up_proj")};
    struct part biases[] = {bias_part(e, m->mlp_bias, m->ffn, layer, "mlp.gate_proj"),
                            bias_part(e, m->mlp_bias, m->ffn, layer, "mlp.up_proj")};
    struct part down = weight_part(e, m->hidden, m->ffn, layer, "mlp.down_proj");
    struct part down_bias = bias_part(e, m->mlp_bias, m->hidden, layer, "mlp.down_proj");

    uint32_t w = emit_matrix(e, USE_LINEAR, m->hidden, weights, 2, true, "layers.%u.gate_up", layer);
    uint32_t b = bias(e, m->mlp_bias, biases, 2, true, "gate_up.bias", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {m->n, m->gated, w, b, PLAN_NONE, ACTIVATION_SILU_GATE, 1}});
    w = emit_matrix(e, USE_LINEAR, m->ffn, &down, 1, false, "layers.%u.down", layer);
    b = bias(e, m->mlp_bias, &down_bias, 1, false, "down.bias", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {m->gated, m->x, w, b, m->x, ACTIVATION_NONE, 1}});
}

/* Embedding first and head last; a tied matrix is stored once, as the head. */
static void emit_llama(struct config *c, struct emitter *e)
{
    struct llama m = read_config(c);
    e->vocabulary = (uint32_t)m.vocabulary;
    e->context = (uint32_t)config_count(c, "max_position_embeddings", 2048, PLAN_CONTEXT_MAX);
    m.rope = emit_config_rope(c, e, 10000, (uint32_t)m.head_dim / 2);
    if (c->status != STELE_OK)
        return;
    m.x = emit_slot(e, m.hidden);
    m.n = emit_slot(e, m.hidden);
    uint64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    struct part widths[] = {part_whole(NULL, q), part_whole(NULL, kv), part_whole(NULL, kv)};
    m.qkv = emit_slot(e, parts_rows(widths, 3));
    m.attended = emit_slot(e, q);
    m.gated = emit_slot(e, m.ffn);

    struct part table = part_whole(emit_source(e, m.vocabulary, m.hidden, "model.embed_tokens.weight"), m.vocabulary);
    uint32_t embedding = m.tied ? 0 : emit_matrix(e, USE_VOCABULARY, m.hidden, &table, 1, false, "embedding");
    uint32_t embed = emit_op(e, (struct plan_op){PLAN_EMBED, .embed = {m.x, embedding, 1}});
    for (unsigned layer = 0; layer < m.layers && e->status == STELE_OK; layer++) {
        layer_norm(e, &m, layer, "input_layernorm", "attention_norm");
        attention(e, &m, layer);
        layer_norm(e, &m, layer, "post_attention_layernorm", "network_norm");
        network(e, &m, layer);
    }
    norm(e, &m, "model.norm.weight", "final_norm");
    if (!m.tied)
        table = part_whole(emit_source(e, m.vocabulary, m.hidden, "lm_head.weight"), m.vocabulary);
    uint32_t head = emit_matrix(e, USE_VOCABULARY, m.hidden, &table, 1, false, "head");
    if (m.tied && e->status == STELE_OK)
        e->ops[embed].embed.table = head;
    emit_op(e, (struct plan_op){PLAN_LOGITS, .logits = {m.n, head, 1}});
}

const struct family family_llama = {"LlamaForCausalLM", emit_llama};
