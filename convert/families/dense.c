/* SPDX-License-Identifier: Apache-2.0 */
#include "dense.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dense dense_config(struct config *c, struct dense_absent absent)
{
    struct dense d = {
        .hidden = config_need_count(c, "hidden_size", PLAN_WIDTH_MAX),
        .ffn = config_need_count(c, "intermediate_size", PLAN_WIDTH_MAX),
        .layers = config_need_count(c, "num_hidden_layers", 4096),
        .heads = config_need_count(c, "num_attention_heads", 4096),
        .vocabulary = config_need_count(c, "vocab_size", INT32_MAX),
        .context = (uint32_t)config_count(c, "max_position_embeddings", absent.context, PLAN_CONTEXT_MAX),
        .epsilon = (float)config_number(c, "rms_norm_eps", absent.epsilon),
        .tied = config_flag(c, "tie_word_embeddings", absent.tied),
        .gate = ACTIVATION_SILU_GATE,
        .embedding_scale = 1,
        .residual_scale = 1,
        .logits_scale = 1,
        .norm_before_attention = "input_layernorm",
        .norm_before_network = "post_attention_layernorm",
    };
    bool kv_said = !absent.kv_heads || json_object_get(c->root, "num_key_value_heads");
    d.kv_heads = config_count(c, "num_key_value_heads", kv_said ? d.heads : absent.kv_heads, 4096);
    d.head_dim = config_count(c, "head_dim", absent.head_dim ? absent.head_dim : d.hidden / d.heads, 4096);
    d.attention_scale = 1.0f / sqrtf((float)d.head_dim);
    if (d.heads % d.kv_heads)
        config_refuse(c, "num_key_value_heads", "it does not divide num_attention_heads");
    if (!d.head_dim || d.head_dim % 2)
        config_refuse(c, "head_dim", "RoPE needs an even number");
    if (!(d.epsilon >= 0))
        config_refuse(c, "rms_norm_eps", "it must not be negative");
    d.layer = calloc(d.layers, sizeof *d.layer);
    if (!d.layer && c->status == STELE_OK)
        c->status = stele_fail(c->err, STELE_SYSTEM, "no memory for the layers");
    dense_rope(&d, PLAN_NONE);
    return d;
}

void dense_close(struct dense *d)
{
    free(d->layer);
    d->layer = NULL;
}

void dense_silu(struct config *c)
{
    if (strcmp(config_text(c, "hidden_act", "silu"), "silu"))
        config_refuse(c, "hidden_act", "only silu is supported");
}

void dense_rope(struct dense *d, uint32_t rope)
{
    for (uint64_t i = 0; d->layer && i < d->layers; i++)
        d->layer[i].rope = rope;
}

void dense_two_ropes(struct config *c, struct emitter *e, struct dense *d, double theta_absent, double theta_windowed)
{
    uint32_t pairs = (uint32_t)d->head_dim / 2;
    const json_t *both = config_value(c, "rope_parameters");
    const json_t *full = json_object_get(both, "full_attention");
    const json_t *windowed = json_object_get(both, "sliding_attention");
    struct config_rope of_full, of_windowed = {.theta = theta_windowed, .type = "default"};
    if (both && (!full || !windowed || json_object_size(both) != 2 || config_value(c, "rope_scaling")))
        config_refuse(c, "rope_parameters",
                      "full_attention and sliding_attention are needed in it, and no rope_scaling beside it");
    if (c->status != STELE_OK)
        return;
    of_full = both ? config_rope_object(c, full, theta_absent) : config_rope(c, theta_absent);
    of_windowed = both ? config_rope_object(c, windowed, theta_windowed) : of_windowed;
    uint32_t ropes[] = {emit_rope_of(c, e, of_full, pairs), emit_rope_of(c, e, of_windowed, pairs)};
    for (uint64_t i = 0; d->layer && i < d->layers; i++)
        d->layer[i].rope = ropes[d->layer[i].window != 0];
}

void dense_window(struct dense *d, uint32_t window)
{
    for (uint64_t i = 0; d->layer && i < d->layers; i++)
        d->layer[i].window = window;
}

uint32_t dense_sliding_window(struct config *c, uint32_t absent)
{
    bool said = json_object_get(c->root, "sliding_window");
    return (uint32_t)config_count(c, "sliding_window", said ? 0 : absent, PLAN_CONTEXT_MAX);
}

bool dense_layer_types(struct config *c, struct dense *d, uint32_t window)
{
    const json_t *types = config_value(c, "layer_types");
    if (!types)
        return false;
    if (!json_is_array(types) || json_array_size(types) != d->layers)
        config_refuse(c, "layer_types", "one kind for each layer is needed");
    for (uint64_t i = 0; c->status == STELE_OK && d->layer && i < d->layers; i++) {
        const char *kind = json_string_value(json_array_get(types, i));
        bool sliding = kind && !strcmp(kind, "sliding_attention");
        if (!sliding && (!kind || strcmp(kind, "full_attention")))
            config_refuse(c, "layer_types", "a kind of layer that is not supported");
        if (sliding && !window)
            config_refuse(c, "sliding_window", "layer_types names layers with a window");
        d->layer[i].window = sliding ? window : 0;
    }
    return true;
}

/* max_window_layers, with the class's default. */
static uint64_t window_layers(struct config *c)
{
    const json_t *value = config_value(c, "max_window_layers");
    uint64_t n = 28;
    if (value && !json_whole(value, UINT32_MAX, &n))
        config_refuse(c, "max_window_layers", "a number of layers is needed");
    return n;
}

void dense_qwen_windows(struct config *c, struct dense *d, bool (*has_window)(uint64_t layer, uint64_t max_layers))
{
    bool used = config_flag(c, "use_sliding_window", false);
    uint32_t window = dense_sliding_window(c, 4096);
    uint64_t n = window_layers(c);
    window = used ? window : 0;
    if (!dense_layer_types(c, d, window))
        for (uint64_t i = 0; d->layer && i < d->layers; i++)
            d->layer[i].window = has_window(i, n) ? window : 0;
}

bool dense_window_from(uint64_t layer, uint64_t max_layers)
{
    return layer >= max_layers;
}

/* ---- parts of a layer ---- */

static struct part weight_part(struct emitter *e, uint64_t rows, uint64_t columns, unsigned layer, const char *name)
{
    return part_whole(emit_source(e, rows, columns, "model.layers.%u.%s.weight", layer, name), rows);
}

static struct part bias_part(struct emitter *e, bool there, uint64_t rows, unsigned layer, const char *name)
{
    return part_whole(there ? emit_source(e, rows, 0, "model.layers.%u.%s.bias", layer, name) : NULL, rows);
}

/* Rows [first, first + rows) of a part. */
static struct part rows_of(struct part part, uint64_t first, uint64_t rows)
{
    part.first += first;
    part.rows = rows;
    return part;
}

/* The bias of a fused projection, or PLAN_NONE. */
static uint32_t bias(struct emitter *e, bool there, const struct part *parts, size_t n, bool in_turn, const char *name,
                     unsigned layer)
{
    return there ? emit_bias(e, parts, n, in_turn, "layers.%u.%s", layer, name) : PLAN_NONE;
}

static uint32_t layer_vector(struct emitter *e, const struct dense *d, uint64_t n, unsigned layer, const char *source)
{
    const struct source_tensor *tensor = emit_source(e, n, 0, "model.layers.%u.%s.weight", layer, source);
    return emit_vector(e, tensor, d->norm_added, "layers.%u.%s", layer, source);
}

/* The norm before a branch: x into n. Without one the branch reads x. Returns the slot that it reads. */
static uint32_t before(struct emitter *e, const struct dense *d, unsigned layer, const char *name)
{
    if (!name)
        return d->x;
    uint32_t weight = layer_vector(e, d, d->hidden, layer, name);
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {d->x, d->n, 0, weight, d->epsilon, PLAN_NONE}});
    return d->n;
}

/* The last projection of a branch, added to x; with a norm behind it, normed before it is added. */
static void join(struct emitter *e, const struct dense *d, unsigned layer, uint32_t in, uint32_t weight, uint32_t bias_,
                 const char *norm)
{
    uint32_t out = norm ? d->branch : d->x, residual = norm ? PLAN_NONE : d->x;
    emit_op(e, (struct plan_op){PLAN_LINEAR,
                                .linear = {in, out, weight, bias_, residual, ACTIVATION_NONE, d->residual_scale}});
    if (!norm)
        return;
    uint32_t vector = layer_vector(e, d, d->hidden, layer, norm);
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {d->branch, d->x, 0, vector, d->epsilon, d->x}});
}

/* ---- layers ---- */

/* Queries, keys and values as parts of one matrix, from three tensors or from one. */
static void qkv_parts(struct emitter *e, const struct dense *d, unsigned layer, struct part *weights, struct part *biases)
{
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    uint64_t kv = d->kv_heads * d->head_dim, rows[] = {d->heads * d->head_dim, kv, kv}, first = 0;
    struct part whole = {0}, whole_bias = {0};
    if (d->fused) {
        whole = weight_part(e, rows[0] + 2 * kv, d->hidden, layer, "self_attn.qkv_proj");
        whole_bias = bias_part(e, d->qkv_bias, rows[0] + 2 * kv, layer, "self_attn.qkv_proj");
    }
    for (size_t i = 0; i < 3; i++) {
        weights[i] = d->fused ? rows_of(whole, first, rows[i]) : weight_part(e, rows[i], d->hidden, layer, names[i]);
        biases[i] = d->fused ? rows_of(whole_bias, first, rows[i]) : bias_part(e, d->qkv_bias, rows[i], layer, names[i]);
        first += rows[i];
    }
}

/* q_norm and k_norm over the whole projection, in place. */
static void norm_whole(struct emitter *e, const struct dense *d, unsigned layer, uint32_t k_column)
{
    uint32_t q = layer_vector(e, d, d->heads * d->head_dim, layer, "self_attn.q_norm");
    uint32_t k = layer_vector(e, d, d->kv_heads * d->head_dim, layer, "self_attn.k_norm");
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {d->qkv, d->qkv, 0, q, d->epsilon, PLAN_NONE}});
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {d->qkv, d->qkv, k_column, k, d->epsilon, PLAN_NONE}});
}

static void attention(struct emitter *e, const struct dense *d, unsigned layer)
{
    struct part weights[3], biases[3];
    uint64_t q = d->heads * d->head_dim;
    uint32_t in = before(e, d, layer, d->norm_before_attention), heads = (uint32_t)d->heads;
    qkv_parts(e, d, layer, weights, biases);
    uint32_t k_column = (uint32_t)parts_rows(weights, 1), v_column = (uint32_t)parts_rows(weights, 2);
    uint32_t state = emit_kv(e, (uint32_t)d->kv_heads, (uint32_t)d->head_dim, d->layer[layer].window);

    uint32_t w = emit_matrix(e, USE_LINEAR, d->hidden, weights, 3, false, "layers.%u.qkv", layer);
    uint32_t b = bias(e, d->qkv_bias, biases, 3, false, "qkv.bias", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {in, d->qkv, w, b, PLAN_NONE, ACTIVATION_NONE, 1}});
    if (d->whole_norm)
        norm_whole(e, d, layer, k_column);
    uint32_t q_norm = d->head_norm ? layer_vector(e, d, d->head_dim, layer, "self_attn.q_norm") : PLAN_NONE;
    uint32_t k_norm = d->head_norm ? layer_vector(e, d, d->head_dim, layer, "self_attn.k_norm") : PLAN_NONE;
    emit_op(e, (struct plan_op){PLAN_ROPE_KV, .rope_kv = {d->qkv, 0, k_column, v_column, heads, q_norm, k_norm,
                                                          d->epsilon, d->layer[layer].rope, state}});
    uint32_t sinks = PLAN_NONE;
    if (d->sinks)
        sinks = emit_vector(e, emit_source(e, d->heads, 0, "model.layers.%u.self_attn.sinks", layer), 0,
                            "layers.%u.sinks", layer);
    emit_op(e, (struct plan_op){PLAN_ATTENTION, .attention = {d->qkv, 0, d->attended, heads, d->attention_scale, state,
                                                              d->attention_cap, sinks}});

    struct part out = weight_part(e, d->hidden, q, layer, "self_attn.o_proj");
    struct part out_bias = bias_part(e, d->out_bias, d->hidden, layer, "self_attn.o_proj");
    w = emit_matrix(e, USE_LINEAR, q, &out, 1, false, "layers.%u.out", layer);
    b = bias(e, d->out_bias, &out_bias, 1, false, "out.bias", layer);
    join(e, d, layer, d->attended, w, b, d->norm_behind_attention);
}

/* ---- experts ---- */

/* The part of one expert's matrix. */
static struct part expert_part(struct emitter *e, uint64_t rows, uint64_t columns, unsigned layer, const char *format,
                               uint32_t expert)
{
    char name[128];
    const char *number = strstr(format, "%u");
    snprintf(name, sizeof name, "%.*s%" PRIu32 "%s", (int)(number - format), format, expert, number + 2);
    return weight_part(e, rows, columns, layer, name);
}

/* The parts of all experts' matrices. */
static void expert_parts(struct emitter *e, const struct dense *d, unsigned layer, struct part *gate, struct part *up,
                         struct part *down)
{
    const struct dense_experts *x = &d->experts;
    const struct source_tensor *gate_up = NULL, *all_down = NULL;
    if (x->mxfp4_gate_up) {
        gate_up = emit_source_mxfp4(e, x->count, 2 * x->ffn, d->hidden, "model.layers.%u.%s", layer, x->mxfp4_gate_up);
        all_down = emit_source_mxfp4(e, x->count, d->hidden, x->ffn, "model.layers.%u.%s", layer, x->mxfp4_down);
    }
    for (uint32_t i = 0; i < x->count && e->status == STELE_OK; i++) {
        if (gate_up) {
            gate[i] = (struct part){gate_up, 2 * x->ffn * i, x->ffn, 2};
            up[i] = (struct part){gate_up, 2 * x->ffn * i + 1, x->ffn, 2};
            down[i] = (struct part){all_down, d->hidden * i, d->hidden, 1};
            continue;
        }
        gate[i] = expert_part(e, x->ffn, d->hidden, layer, x->gate, i);
        up[i] = expert_part(e, x->ffn, d->hidden, layer, x->up, i);
        down[i] = expert_part(e, d->hidden, x->ffn, layer, x->down, i);
    }
}

/* The biases of the two banks, where there are any. */
static void expert_biases(struct emitter *e, const struct dense *d, unsigned layer, struct part *parts, uint32_t biases[2])
{
    const struct dense_experts *x = &d->experts;
    if (!x->bias)
        return;
    const struct source_tensor *gate_up =
        emit_source(e, x->count, 2 * x->ffn, "model.layers.%u.%s_bias", layer, x->mxfp4_gate_up);
    const struct source_tensor *down = emit_source(e, x->count, d->hidden, "model.layers.%u.%s_bias", layer, x->mxfp4_down);
    for (uint32_t i = 0; i < x->count; i++) {
        parts[2 * i] = (struct part){gate_up, 2 * x->ffn * i, x->ffn, 2};
        parts[2 * i + 1] = (struct part){gate_up, 2 * x->ffn * i + 1, x->ffn, 2};
    }
    biases[0] = emit_bank_bias(e, parts, 2, x->count, true, "layers.%u.experts.gate_up.bias", layer);
    for (uint32_t i = 0; i < x->count; i++)
        parts[i] = (struct part){down, d->hidden * i, d->hidden, 1};
    biases[1] = emit_bank_bias(e, parts, 1, x->count, false, "layers.%u.experts.down.bias", layer);
}

/* Returns the first of the two banks. */
static uint32_t expert_banks(struct emitter *e, const struct dense *d, unsigned layer, uint32_t biases[2])
{
    const struct dense_experts *x = &d->experts;
    struct part *parts = calloc(3 * (size_t)x->count, sizeof *parts);
    if (!parts) {
        e->status = stele_fail(e->err, STELE_SYSTEM, "no memory for %" PRIu32 " experts", x->count);
        return 0;
    }
    struct part *gate = parts, *up = gate + x->count, *down = up + x->count;
    expert_parts(e, d, layer, gate, up, down);
    uint32_t first = e->status == STELE_OK ? emit_bank(e, d->hidden, gate, up, down, x->count, layer) : 0;
    expert_biases(e, d, layer, parts, biases);
    free(parts);
    return first;
}

/* The expert that every row uses, times a gate of its own. */
static void shared_expert(struct emitter *e, const struct dense *d, unsigned layer, uint32_t in)
{
    const struct dense_experts *x = &d->experts;
    char name[3][64];
    static const char *const ends[] = {"gate_proj", "up_proj", "down_proj"};
    for (size_t i = 0; i < 3; i++)
        snprintf(name[i], sizeof name[i], "%s.%s", x->shared, ends[i]);
    struct part weights[] = {weight_part(e, x->shared_ffn, d->hidden, layer, name[0]),
                             weight_part(e, x->shared_ffn, d->hidden, layer, name[1])};
    struct part down = weight_part(e, d->hidden, x->shared_ffn, layer, name[2]);
    struct part gate = weight_part(e, 1, d->hidden, layer, x->shared_gate);
    uint32_t w = emit_matrix(e, USE_LINEAR, d->hidden, weights, 2, true, "layers.%u.shared.gate_up", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR,
                                .linear = {in, x->shared_gated, w, PLAN_NONE, PLAN_NONE, ACTIVATION_SILU_GATE, 1}});
    w = emit_matrix(e, USE_LINEAR, x->shared_ffn, &down, 1, false, "layers.%u.shared.down", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {x->shared_gated, x->shared_out, w, PLAN_NONE, PLAN_NONE,
                                                        ACTIVATION_NONE, 1}});
    w = emit_matrix(e, USE_ROUTER, d->hidden, &gate, 1, false, "layers.%u.shared.gate", layer);
    emit_op(e, (struct plan_op){PLAN_GATE, .gate = {in, x->shared_out, d->x, d->x, w}});
}

static void experts(struct emitter *e, const struct dense *d, unsigned layer)
{
    const struct dense_experts *x = &d->experts;
    uint32_t in = before(e, d, layer, d->norm_before_network);
    struct part router = weight_part(e, x->count, d->hidden, layer, x->router);
    uint32_t w = emit_matrix(e, USE_ROUTER, d->hidden, &router, 1, false, "layers.%u.router", layer);
    struct part router_bias = bias_part(e, x->router_bias, x->count, layer, x->router);
    uint32_t b = bias(e, x->router_bias, &router_bias, 1, false, "router.bias", layer);
    emit_op(e, (struct plan_op){PLAN_ROUTER, .router = {in, x->route, w, b, x->top, x->routing}});
    uint32_t biases[2] = {PLAN_NONE, PLAN_NONE}, bank = expert_banks(e, d, layer, biases);
    emit_op(e, (struct plan_op){PLAN_EXPERTS,
                                .experts = {in, x->route, d->x, d->x, x->gathered, x->expert_gated, x->sum, bank,
                                            bank + 1, biases[0], biases[1], x->top, d->gate, d->residual_scale,
                                            x->limit}});
    if (x->shared_ffn)
        shared_expert(e, d, layer, in);
}

static void network(struct emitter *e, const struct dense *d, unsigned layer)
{
    static const char *const names[] = {"mlp.gate_proj", "mlp.up_proj"};
    struct part weights[2], biases[2], whole = {0};
    uint32_t in = before(e, d, layer, d->norm_before_network);
    if (d->fused)
        whole = weight_part(e, 2 * d->ffn, d->hidden, layer, "mlp.gate_up_proj");
    for (size_t i = 0; i < 2; i++) {
        weights[i] = d->fused ? rows_of(whole, i * d->ffn, d->ffn) : weight_part(e, d->ffn, d->hidden, layer, names[i]);
        biases[i] = bias_part(e, d->mlp_bias, d->ffn, layer, names[i]);
    }
    uint32_t w = emit_matrix(e, USE_LINEAR, d->hidden, weights, 2, true, "layers.%u.gate_up", layer);
    uint32_t b = bias(e, d->mlp_bias, biases, 2, true, "gate_up.bias", layer);
    emit_op(e, (struct plan_op){PLAN_LINEAR, .linear = {in, d->gated, w, b, PLAN_NONE, d->gate, 1}});

    struct part down = weight_part(e, d->hidden, d->ffn, layer, "mlp.down_proj");
    struct part down_bias = bias_part(e, d->mlp_bias, d->hidden, layer, "mlp.down_proj");
    w = emit_matrix(e, USE_LINEAR, d->ffn, &down, 1, false, "layers.%u.down", layer);
    b = bias(e, d->mlp_bias, &down_bias, 1, false, "down.bias", layer);
    join(e, d, layer, d->gated, w, b, d->norm_behind_network);
}

static void emit_slots(struct emitter *e, struct dense *d)
{
    uint64_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;
    struct part qkv[] = {part_whole(NULL, q), part_whole(NULL, kv), part_whole(NULL, kv)};
    d->x = emit_slot(e, d->hidden);
    d->n = emit_slot(e, d->hidden);
    d->qkv = emit_slot(e, parts_rows(qkv, 3));
    d->attended = emit_slot(e, q);
    d->gated = emit_slot(e, d->ffn);
    if (d->norm_behind_attention || d->norm_behind_network)
        d->branch = emit_slot(e, d->hidden);
    struct dense_experts *x = &d->experts;
    if (!x->count)
        return;
    x->route = emit_slot(e, 2 * (uint64_t)x->top);
    x->gathered = emit_slot(e, d->hidden);
    x->expert_gated = emit_slot(e, x->ffn);
    x->sum = emit_slot(e, d->hidden);
    if (!x->shared_ffn)
        return;
    x->shared_gated = emit_slot(e, x->shared_ffn);
    x->shared_out = emit_slot(e, d->hidden);
}

/* Embedding first and head last; a tied matrix is stored once, as the head. */
void emit_dense(struct config *c, struct emitter *e, struct dense *d)
{
    e->vocabulary = (uint32_t)d->vocabulary;
    e->context = d->context;
    if (c->status != STELE_OK || e->status != STELE_OK)
        return;
    emit_slots(e, d);
    struct part table = part_whole(emit_source(e, d->vocabulary, d->hidden, "model.embed_tokens.weight"), d->vocabulary);
    uint32_t embedding = d->tied ? 0 : emit_matrix(e, USE_VOCABULARY, d->hidden, &table, 1, false, "embedding");
    uint32_t embed = emit_op(e, (struct plan_op){PLAN_EMBED, .embed = {d->x, embedding, d->embedding_scale}});
    for (unsigned layer = 0; layer < d->layers && e->status == STELE_OK; layer++) {
        attention(e, d, layer);
        (d->layer[layer].experts ? experts : network)(e, d, layer);
    }
    const struct source_tensor *norm = emit_source(e, d->hidden, 0, "model.norm.weight");
    uint32_t final = emit_vector(e, norm, d->norm_added, "norm");
    emit_op(e, (struct plan_op){PLAN_NORM, .norm = {d->x, d->n, 0, final, d->epsilon, PLAN_NONE}});
    if (!d->tied)
        table = part_whole(emit_source(e, d->vocabulary, d->hidden, "lm_head.weight"), d->vocabulary);
    uint32_t head = emit_matrix(e, USE_VOCABULARY, d->hidden, &table, 1, false, "head");
    if (d->tied && e->status == STELE_OK)
        e->ops[embed].embed.table = head;
    emit_op(e, (struct plan_op){PLAN_LOGITS, .logits = {d->n, head, d->logits_scale, d->logits_cap}});
}
