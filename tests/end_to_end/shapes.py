# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints in shapes of our own: every family, router and kind of RoPE, with what is odd about them.

    for name, case in CASES.items():
        write(folder, name, case, seed)      # config.json and model.safetensors, the same bytes everywhere

scripts/make-references gives them to transformers and keeps what it computes in tests/fixtures/shapes.json and .bin;
test_shapes.py makes them again and compares. Weights come from integers alone, so nobody's random generator matters."""
import hashlib
import json
from pathlib import Path

import numpy as np

from workshop import stored, write_safetensors

# ---- cases ----

TRAINING = {"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "bos_token_id": 1,
            "eos_token_id": None}  # fmt: skip


def config(architecture, model_type, **keys):
    common = {"architectures": [architecture], "model_type": model_type, "vocab_size": 67, "hidden_size": 40,
              "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 1,
              "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "hidden_act": "silu",
              "tie_word_embeddings": False}
    return common | TRAINING | keys


LLAMA = config("LlamaForCausalLM", "llama")
MISTRAL = config("MistralForCausalLM", "mistral", sliding_window=12)
QWEN2 = config("Qwen2ForCausalLM", "qwen2", use_sliding_window=False, sliding_window=9, max_window_layers=1)
QWEN3 = config("Qwen3ForCausalLM", "qwen3", head_dim=10, num_attention_heads=6, num_key_value_heads=2,
               use_sliding_window=False, sliding_window=9, max_window_layers=1)
PHI3 = config("Phi3ForCausalLM", "phi3", hidden_size=60, partial_rotary_factor=0.5, sliding_window=None,
              original_max_position_embeddings=256, pad_token_id=None)
SMOLLM3 = config("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=3, no_rope_layer_interval=2, pad_token_id=None)
OLMO2 = config("Olmo2ForCausalLM", "olmo2", pad_token_id=None)
OLMO3 = config("Olmo3ForCausalLM", "olmo3", num_hidden_layers=5, sliding_window=11, rope_theta=500000.0,
               pad_token_id=None)
EXAONE4 = config("Exaone4ForCausalLM", "exaone4", num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2,
                 head_dim=10, sliding_window=11, sliding_window_pattern=2)
GRANITE = config("GraniteForCausalLM", "granite", embedding_multiplier=7.5, attention_multiplier=0.21,
                 residual_multiplier=0.37, logits_scaling=3.3)
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 12, "num_hidden_layers": 3,
         "query_pre_attn_scalar": 23, "sliding_window": 10, "pad_token_id": None}
GEMMA2 = config("Gemma2ForCausalLM", "gemma2", **GEMMA, attn_logit_softcapping=2.5, final_logit_softcapping=4.0)
GEMMA3 = config("Gemma3ForCausalLM", "gemma3_text", **GEMMA, sliding_window_pattern=2, rope_local_base_freq=100.0)
MIXTRAL = config("MixtralForCausalLM", "mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=None)
MOE = {"moe_intermediate_size": 20, "num_experts": 7, "num_experts_per_tok": 3, "num_hidden_layers": 4,
       "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}
QWEN2_MOE = config("Qwen2MoeForCausalLM", "qwen2_moe", **MOE, shared_expert_intermediate_size=28,
                   use_sliding_window=False, sliding_window=9, max_window_layers=3)
QWEN3_MOE = config("Qwen3MoeForCausalLM", "qwen3_moe", **MOE, head_dim=14, use_sliding_window=False, sliding_window=9)
GPT_YARN = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 32}
GPT_OSS = config("GptOssForCausalLM", "gpt_oss", hidden_size=32, intermediate_size=64, head_dim=12, num_local_experts=5,
                 num_experts_per_tok=2, sliding_window=10, swiglu_limit=1.5, layer_types=["sliding_attention",
                 "full_attention"], rope_scaling=GPT_YARN, attention_bias=True,
                 quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn",
                 "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]})  # fmt: skip

THETA = {"rope_theta": 1000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.2, 2.5, 6.0]}


def case(base, lengths=(1, 37), drop=(), dtype="F32", dims={}, moves=(), context=None, **changes):
    """`drop`: keys that config.json leaves out, and `dims` what the class then takes. `moves`: changes of the config
    that must move transformers' logits (the script sees to that, so that the case can show a mistake). `context`:
    options of a run, by the number of ids."""
    made = {k: v for k, v in (base | changes).items() if k not in drop}
    return {"config": made, "lengths": lengths, "dtype": dtype, "dims": dims, "moves": moves, "context": context}


def longrope(length):
    return ["--context", 24] if length <= 24 else []


WINDOWED = (5, 37, 150)

CASES = {
    # Llama and the kinds of RoPE
    "llama-odd": case(LLAMA, tie_word_embeddings=True, moves=[{"rope_theta": 1100.0}, {"rms_norm_eps": 1e-2}]),
    "llama-biases": case(LLAMA, hidden_size=36, num_attention_heads=6, num_key_value_heads=3, head_dim=14, dtype="F16",
                         attention_bias=True, mlp_bias=True),
    "llama-one-layer": case(LLAMA, hidden_size=33, num_attention_heads=3, num_key_value_heads=3, head_dim=2,
                            dtype="BF16", num_hidden_layers=1, intermediate_size=17, vocab_size=131),
    "llama-defaults": case(LLAMA, drop=("num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings",
                                        "tie_word_embeddings", "hidden_act"), dims={"kv_heads": 5}),
    "llama-linear": case(LLAMA, rope_scaling={"type": "linear", "factor": 2.5},
                         moves=[{"rope_scaling": {"type": "linear", "factor": 2.6}}]),
    "llama-dynamic": case(LLAMA, rope_scaling={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=37),
    "llama-llama3": case(LLAMA, drop=("rope_theta",), head_dim=16, rope_parameters=LLAMA3 | THETA, moves=[
        {"rope_parameters": LLAMA3 | THETA | change} for change in (
            {"factor": 9.0}, {"low_freq_factor": 1.2}, {"high_freq_factor": 3.5},
            {"original_max_position_embeddings": 72})]),
    "llama-yarn": case(LLAMA, rope_scaling=YARN, moves=[
        {"rope_scaling": YARN | {"factor": 4.2}}, {"rope_scaling": YARN | {"original_max_position_embeddings": 16}}]),
    "llama-yarn-mscale": case(LLAMA, head_dim=22, rope_scaling=YARN | {"mscale": 0.7, "mscale_all_dim": 1.9},
                              moves=[{"rope_scaling": YARN | {"mscale": 0.7}}]),
    "llama-yarn-half-mscale": case(LLAMA, rope_scaling=YARN | {"mscale": 0.7}),
    "llama-yarn-attention-factor": case(LLAMA, rope_scaling=YARN | {"attention_factor": 0.8, "mscale": 0.7,
                                        "mscale_all_dim": 1.9}, moves=[{"rope_scaling": YARN}]),
    "llama-yarn-ramp": case(LLAMA, head_dim=24, rope_scaling=YARN | {
        "truncate": False, "beta_fast": 7, "beta_slow": 2}, moves=[
        {"rope_scaling": YARN | {"beta_fast": 7, "beta_slow": 2}},
        {"rope_scaling": YARN | {"truncate": False, "beta_slow": 2}},
        {"rope_scaling": YARN | {"truncate": False, "beta_fast": 7}}]),
    "llama-yarn-original-absent": case(LLAMA, rope_scaling={"rope_type": "yarn", "factor": 4.0},
                                       max_position_embeddings=64),
    "llama-longrope": case(LLAMA, (24, 25, 60), head_dim=6, context=longrope, drop=("rope_theta",), rope_parameters=
                           LONG | THETA | {"original_max_position_embeddings": 24, "factor": 3.0}, moves=[
        {"rope_parameters": LONG | THETA | {"original_max_position_embeddings": 24}}]),
    # Mistral, Qwen
    "mistral-window": case(MISTRAL, WINDOWED, moves=[{"sliding_window": 13}]),
    "mistral-wide": case(MISTRAL, num_attention_heads=4, num_key_value_heads=2, head_dim=18, sliding_window=None),
    "mistral-defaults": case(MISTRAL, hidden_size=48, num_attention_heads=8, dims={"kv_heads": 8}, drop=(
        "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "sliding_window",
        "hidden_act")),
    "qwen2": case(QWEN2, tie_word_embeddings=True, dtype="BF16"),
    "qwen2-windows": case(QWEN2, WINDOWED, use_sliding_window=True, num_hidden_layers=3, moves=[
        {"sliding_window": 10}, {"max_window_layers": 2}]),
    "qwen2-layer-types": case(QWEN2, WINDOWED, drop=("max_window_layers",), use_sliding_window=True, layer_types=[
        "sliding_attention", "full_attention"], moves=[{"layer_types": ["full_attention", "sliding_attention"]}]),
    "qwen2-yarn": case(QWEN2, drop=("rope_theta",), rope_parameters=YARN | THETA),
    "qwen3": case(QWEN3, tie_word_embeddings=True),
    "qwen3-biases": case(QWEN3, WINDOWED, use_sliding_window=True, attention_bias=True, moves=[{"sliding_window": 10}]),
    "qwen3-defaults": case(QWEN3, drop=("head_dim", "rms_norm_eps", "rope_theta"), dims={"head_dim": 128},
                           num_attention_heads=2, num_key_value_heads=1),
    # Phi-3, SmolLM3, OLMo, Granite
    "phi3": case(PHI3, WINDOWED, sliding_window=13, moves=[{"sliding_window": 14}, {"partial_rotary_factor": 1.0}]),
    "phi3-whole": case(PHI3, drop=("partial_rotary_factor",), tie_word_embeddings=True, num_key_value_heads=5),
    "phi3-longrope": case(PHI3, (24, 25, 60), context=longrope, original_max_position_embeddings=24, rope_scaling=LONG,
                          moves=[{"max_position_embeddings": 300}]),
    "phi3-longrope-5": case(PHI3, (24, 25, 60), context=longrope, drop=("rope_theta", "partial_rotary_factor"),
                            original_max_position_embeddings=24, rope_parameters=LONG | {
                                "rope_theta": 1000.0, "partial_rotary_factor": 0.5, "attention_factor": 1.3}),
    "phi3-original-absent": case(PHI3, (24, 60), drop=("original_max_position_embeddings",), rope_scaling=LONG | {
        "original_max_position_embeddings": 24}, max_position_embeddings=5000,
        context=lambda length: ["--context", 256]),
    "smollm3": case(SMOLLM3, moves=[{"no_rope_layer_interval": 3}]),
    "smollm3-list": case(SMOLLM3, no_rope_layers=[0, 1, 1], attention_bias=True, mlp_bias=True,
                         tie_word_embeddings=True, moves=[{"no_rope_layers": [1, 1, 0]}]),
    "smollm3-windows": case(SMOLLM3, WINDOWED, use_sliding_window=True, sliding_window=9, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"], moves=[{"sliding_window": 10}]),
    "smollm3-window-rule": case(SMOLLM3, WINDOWED, use_sliding_window=True, sliding_window=9,
                                moves=[{"use_sliding_window": False}]),
    "olmo2": case(OLMO2, num_key_value_heads=5),
    "olmo2-biases": case(OLMO2, attention_bias=True, tie_word_embeddings=True),
    "olmo3": case(OLMO3, WINDOWED, rope_scaling=YARN, moves=[{"rope_scaling": None}, {"sliding_window": 12}]),
    "olmo3-5": case(OLMO3, WINDOWED, drop=("rope_theta",), rope_parameters={
        "full_attention": YARN | THETA, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}},
        layer_types=["full_attention", *2 * ["sliding_attention"], "full_attention", "sliding_attention"]),
    "olmo3-defaults": case(OLMO3, WINDOWED, drop=("rope_theta", "rms_norm_eps")),
    "exaone4": case(EXAONE4, WINDOWED, tie_word_embeddings=True, moves=[
        {"sliding_window_pattern": 3}, {"sliding_window": 12}, {"rope_theta": 1100.0}]),
    "exaone4-layer-types": case(EXAONE4, WINDOWED, sliding_window_pattern="LLLG", rope_scaling=LLAMA3, num_hidden_layers=3,
                                layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "exaone4-no-window": case(EXAONE4, sliding_window=None, sliding_window_pattern=None,
                              layer_types=5 * ["full_attention"], moves=[{"rope_theta": 1100.0}]),
    "granite": case(GRANITE, tie_word_embeddings=True, moves=[
        {"embedding_multiplier": 7.0}, {"attention_multiplier": 0.25}, {"residual_multiplier": 0.4},
        {"logits_scaling": 3.0}]),
    "granite-biases": case(GRANITE, attention_bias=True, mlp_bias=True, rope_scaling=LLAMA3),
    # Gemma
    "gemma2": case(GEMMA2, WINDOWED, moves=[{"attn_logit_softcapping": 2.6}, {"final_logit_softcapping": 4.1},
                                            {"query_pre_attn_scalar": 24}, {"sliding_window": 11}]),
    "gemma2-no-caps": case(GEMMA2, WINDOWED, attn_logit_softcapping=None, final_logit_softcapping=None,
                           attention_bias=True, layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "gemma2-defaults": case(GEMMA2, drop=(
        "attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps", "rope_theta", "head_dim",
        "query_pre_attn_scalar", "sliding_window", "tie_word_embeddings"),
                            num_attention_heads=2, dims={"head_dim": 256}, hidden_size=24,
                            moves=[{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}]),
    "gemma3": case(GEMMA3, WINDOWED, rope_scaling={"rope_type": "linear", "factor": 8.0}, moves=[
        {"rope_scaling": None}, {"rope_local_base_freq": 110.0}, {"sliding_window_pattern": 3},
        {"sliding_window": 11}]),
    "gemma3-5": case(GEMMA3, WINDOWED, drop=("rope_theta", "rope_local_base_freq", "sliding_window_pattern"),
                     num_key_value_heads=5, attention_bias=True, layer_types=["full_attention", "sliding_attention", "full_attention"],
                     rope_parameters={"full_attention": LLAMA3 | {"rope_theta": 3000.0},
                                      "sliding_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 1.5}}),
    "gemma3-defaults": case(GEMMA3, drop=(
        "rms_norm_eps", "rope_theta", "rope_local_base_freq", "sliding_window_pattern"), num_hidden_layers=7, _sliding_window_pattern=3),
    # Mixtures of experts
    "mixtral": case(MIXTRAL, tie_word_embeddings=True, moves=[{"num_experts_per_tok": 1}]),
    "mixtral-window": case(MIXTRAL, WINDOWED, num_local_experts=7, num_experts_per_tok=3, sliding_window=10,
                           head_dim=14, moves=[{"sliding_window": 11}]),
    "qwen2-moe": case(QWEN2_MOE, tie_word_embeddings=True, moves=[{"norm_topk_prob": True}]),
    "qwen2-moe-normed": case(QWEN2_MOE, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3],
                             qkv_bias=False),
    "qwen2-moe-windows": case(QWEN2_MOE, WINDOWED, use_sliding_window=True, moves=[{"max_window_layers": 2},
                                                                                  {"sliding_window": 10}]),
    "qwen3-moe": case(QWEN3_MOE, moves=[{"norm_topk_prob": True}]),
    "qwen3-moe-normed": case(QWEN3_MOE, norm_topk_prob=True, decoder_sparse_step=3, attention_bias=True,
                             tie_word_embeddings=True, num_hidden_layers=3),
    "qwen3-moe-window": case(QWEN3_MOE, WINDOWED, use_sliding_window=True, mlp_only_layers=[0, 2],
                             num_experts_per_tok=7, max_window_layers=2, moves=[{"sliding_window": 10}]),
    "gpt-oss": case(GPT_OSS, WINDOWED, moves=[
        {"swiglu_limit": 1.6}, {"sliding_window": 11}, {"rope_scaling": GPT_YARN | {"truncate": True}}]),
    "gpt-oss-one-expert": case(GPT_OSS, drop=("rope_theta", "rope_scaling"), num_experts_per_tok=1, hidden_size=64,
                               intermediate_size=32, rope_parameters=GPT_YARN | THETA,
                               attention_bias=False, swiglu_alpha=1.702),
    "gpt-oss-no-layer-types": case(GPT_OSS, WINDOWED, drop=("layer_types",), num_hidden_layers=3),
}  # fmt: skip


# ---- shapes ----


def attention_shapes(c, dims, p):
    arch, h = c["architectures"][0], c["hidden_size"]
    d = dims.get("head_dim") or c.get("head_dim") or h // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * d, (dims.get("kv_heads") or c["num_key_value_heads"]) * d
    if arch.startswith("Phi3"):
        return {p + "qkv_proj.weight": (q + 2 * kv, h), p + "o_proj.weight": (h, q)}
    t = {p + "q_proj.weight": (q, h), p + "k_proj.weight": (kv, h), p + "v_proj.weight": (kv, h)}
    t[p + "o_proj.weight"] = (h, q)
    biased = c.get("attention_bias")
    if biased or arch.startswith("Qwen2") and c.get("qkv_bias", True):
        t |= {p + "q_proj.bias": (q,), p + "k_proj.bias": (kv,), p + "v_proj.bias": (kv,)}
    if biased:
        t[p + "o_proj.bias"] = (h,)
    if arch.startswith(("Qwen3", "Gemma3", "Exaone4")):
        t |= {p + "q_norm.weight": (d,), p + "k_norm.weight": (d,)}
    if arch.startswith("Olmo"):
        t |= {p + "q_norm.weight": (q,), p + "k_norm.weight": (kv,)}
    if arch.startswith("GptOss"):
        t[p + "sinks"] = (c["num_attention_heads"],)
    return t


def network_shapes(c, p, ffn, names=("gate_proj", "up_proj", "down_proj")):
    h, (gate, up, down) = c["hidden_size"], names
    t = {f"{p}{gate}.weight": (ffn, h), f"{p}{up}.weight": (ffn, h), f"{p}{down}.weight": (h, ffn)}
    if c.get("mlp_bias"):
        t |= {f"{p}{gate}.bias": (ffn,), f"{p}{up}.bias": (ffn,), f"{p}{down}.bias": (h,)}
    return t


def experts_shapes(c, p):
    arch, h, t = c["architectures"][0], c["hidden_size"], {}
    if arch.startswith("Mixtral"):
        t[p + "block_sparse_moe.gate.weight"] = (c["num_local_experts"], h)
        for i in range(c["num_local_experts"]):
            t |= network_shapes(c, f"{p}block_sparse_moe.experts.{i}.", c["intermediate_size"], ("w1", "w3", "w2"))
        return t
    if arch.startswith("GptOss"):
        n, f, p = c["num_local_experts"], c["intermediate_size"], p + "mlp."
        return {p + "router.weight": (n, h), p + "router.bias": (n,),
                p + "experts.gate_up_proj_blocks": (n, 2 * f, h // 32, 16),
                p + "experts.gate_up_proj_scales": (n, 2 * f, h // 32), p + "experts.gate_up_proj_bias": (n, 2 * f),
                p + "experts.down_proj_blocks": (n, h, f // 32, 16), p + "experts.down_proj_scales": (n, h, f // 32),
                p + "experts.down_proj_bias": (n, h)}
    t[p + "mlp.gate.weight"] = (c["num_experts"], h)
    for i in range(c["num_experts"]):
        t |= network_shapes(c, f"{p}mlp.experts.{i}.", c["moe_intermediate_size"])
    if arch.startswith("Qwen2Moe"):
        t |= network_shapes(c, p + "mlp.shared_expert.", c["shared_expert_intermediate_size"])
        t[p + "mlp.shared_expert_gate.weight"] = (1, h)
    return t


def has_experts(c, layer):
    if not c["architectures"][0].endswith("MoeForCausalLM"):
        return c["architectures"][0].startswith(("Mixtral", "GptOss"))
    return layer not in c["mlp_only_layers"] and (layer + 1) % c["decoder_sparse_step"] == 0


def norms(arch):
    if arch.startswith(("Olmo", "Exaone4")):
        return ["post_attention_layernorm", "post_feedforward_layernorm"]
    more = ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if arch.startswith("Gemma") else []
    return ["input_layernorm", "post_attention_layernorm", *more]


def shapes(c, dims):
    """{name: shape} of a checkpoint as it is published."""
    arch, h, f = c["architectures"][0], c["hidden_size"], c["intermediate_size"]
    t = {"model.embed_tokens.weight": (c["vocab_size"], h)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t |= attention_shapes(c, dims, p + "self_attn.") | {f"{p}{norm}.weight": (h,) for norm in norms(arch)}
        if has_experts(c, i):
            t |= experts_shapes(c, p)
        elif arch.startswith("Phi3"):
            t |= {p + "mlp.gate_up_proj.weight": (2 * f, h), p + "mlp.down_proj.weight": (h, f)}
        else:
            t |= network_shapes(c, p + "mlp.", f)
    t["model.norm.weight"] = (h,)
    if not c.get("tie_word_embeddings", arch.startswith(("Gemma", "SmolLM3"))):
        t["lm_head.weight"] = (c["vocab_size"], h)
    return t


# ---- numbers ----


def bits(seed, name, n):
    """n integers of 64 bits: splitmix64 from a start of the name's own."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, n + 1, dtype="u8") * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def tensor(arch, dtype, seed, name, shape):
    n = int(np.prod(shape))
    z = bits(seed, name, n)
    if name.endswith("_blocks"):
        return "U8", shape, (z >> np.uint64(56)).astype("u1").tobytes()
    if name.endswith("_scales"):
        return "U8", shape, (122 + (z >> np.uint64(62)) // np.uint64(2)).astype("u1").tobytes()
    x = (z >> np.uint64(40)).astype("f8") / (1 << 23) - 1  # uniform from -1 to 1
    if "norm" in name:
        x = 0.3 * x + (not arch.startswith("Gemma"))
    elif name.endswith(("bias", "sinks")):
        x = 0.5 * x
    elif name.endswith("embed_tokens.weight"):
        x = 0.4 * x  # with a tied head the model else repeats its input
    else:  # of variance 1 / columns, queries and keys and routers more, so that they choose
        x = x * (2.0 if any(s in name for s in ("q_proj", "k_proj", "qkv", "gate.weight", "router")) else 1.0)
        x = x * np.sqrt(3.0 / shape[-1])
    return dtype, shape, stored(dtype, x.astype("<f4"))


def ids(seed, n, vocabulary):
    return [int(i) for i in bits(seed, f"{n} ids", n) % np.uint64(vocabulary)]


def write(folder, of, seed):
    """The files of a case's checkpoint into a folder."""
    c = of["config"]
    Path(folder, "config.json").write_text(json.dumps(c))
    arch = c["architectures"][0]
    made = {name: tensor(arch, of["dtype"], seed, name, shape) for name, shape in shapes(c, of["dims"]).items()}
    write_safetensors(Path(folder, "model.safetensors"), made)
