#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Images written by hand, op by op, by a writer that shares no line with stele's (imagefile.py): the executor knows ops,
not models, and gives what numpy gives in binary64. And the other way round: that reader finds in a converted image what
was in the checkpoint."""
import numpy as np

import imagefile as im
from harness import *
from workshop import *

H, V, HEADS, KV, D, FFN, EPS = 40, 50, 6, 2, 10, 36, 1e-5  # no multiples of 16 or 32
IDS = [3, 49, 0, 17, 17, 8, 21, 30, 5, 2, 44]


# ---- numpy, binary64 ----


def np_norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def np_rope(x, frequencies):
    """x [positions][heads][head_dim]: half rotation."""
    angle = np.arange(len(x))[:, None] * frequencies[None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def np_layer(x, w, frequencies, window=0):
    n = np_norm(x, w["norm1"])
    split = lambda y, heads: y.reshape(len(y), heads, D)
    q = split(n @ w["q"].T + w["bias_q"], HEADS)
    k = split(n @ w["k"].T + w["bias_k"], KV)
    v = split(n @ w["v"].T + w["bias_v"], KV)
    q, k = np_rope(q, frequencies), np_rope(k, frequencies)
    out = np.zeros((len(x), HEADS, D))
    for h in range(HEADS):
        scores = q[:, h] @ k[:, h // (HEADS // KV)].T / np.sqrt(D)
        i, j = np.indices(scores.shape)
        scores[(j > i) | ((window > 0) & (i - j >= window))] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, h] = p / p.sum(-1, keepdims=True) @ v[:, h // (HEADS // KV)]
    x = x + out.reshape(len(x), -1) @ w["o"].T
    n = np_norm(x, w["norm2"])
    gate, up = n @ w["gate"].T, n @ w["up"].T
    return x + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T


# ---- the same by hand ----


def random_model(layers, seed):
    rng = np.random.default_rng(seed)
    r = lambda *shape: rng.standard_normal(shape).astype("<f4") * np.float32(0.2)
    shapes = {"q": (HEADS * D, H), "k": (KV * D, H), "v": (KV * D, H), "o": (H, HEADS * D), "gate": (FFN, H),
              "up": (FFN, H), "down": (H, FFN), "bias_q": (HEADS * D,), "bias_k": (KV * D,), "bias_v": (KV * D,)}  # fmt: skip
    model = {"embed": r(V, H) * 3, "head": r(V, H), "norm": 1 + r(H), "layers": []}
    for _ in range(layers):
        model["layers"].append({n: r(*s) for n, s in shapes.items()} | {"norm1": 1 + r(H), "norm2": 1 + r(H)})
    return model


def rows_padded(parts):
    """Matrices or vectors joined as the rows of one, each padded to 16 rows."""
    return np.concatenate([np.pad(p, [(0, -len(p) % 16)] + [(0, 0)] * (p.ndim - 1)) for p in parts])


def in_turn(gate, up):
    """Panels of 16 rows of gate and up, in turn."""
    g, u = rows_padded([gate]), rows_padded([up])
    return np.stack([g.reshape(-1, 16, g.shape[1]), u.reshape(-1, 16, u.shape[1])], 1).reshape(-1, g.shape[1])


FREQUENCIES = (1 / 10000 ** (np.arange(0, D, 2) / D)).astype("<f4")


def build(model, order, kind=im.F32, window=0):
    b = im.Builder(V, 64)
    x, n = b.slot(H), b.slot(H)
    pad = lambda k: im.padded(k, 16)
    qkv, att, gated = b.slot(pad(HEADS * D) + 2 * pad(KV * D)), b.slot(HEADS * D), b.slot(FFN)
    rope = b.rope(FREQUENCIES)
    b.op(im.EMBED, x, b.matrix("embedding", model["embed"], kind), 1.0)
    for i in order:
        w = model["layers"][i]
        state = b.kv(KV, D, window)
        k_at, v_at = pad(HEADS * D), pad(HEADS * D) + pad(KV * D)
        b.norm(x, n, b.vector(f"{i}.norm1", w["norm1"]), EPS)
        weight = b.matrix(f"{i}.qkv", rows_padded([w["q"], w["k"], w["v"]]), kind)
        bias = b.vector(f"{i}.bias", rows_padded([w["bias_q"], w["bias_k"], w["bias_v"]]))
        b.linear(n, qkv, weight, bias, im.NONE, 0, 1.0)
        b.op(im.ROPE_KV, qkv, 0, k_at, v_at, HEADS, im.NONE, im.NONE, 0.0, rope, state)
        b.op(im.ATTENTION, qkv, 0, att, HEADS, float(1 / np.sqrt(D)), state, 0.0, im.NONE)
        b.linear(att, x, b.matrix(f"{i}.o", w["o"], kind), im.NONE, x, 0, 1.0)
        b.norm(x, n, b.vector(f"{i}.norm2", w["norm2"]), EPS)
        b.linear(n, gated, b.matrix(f"{i}.gate_up", in_turn(w["gate"], w["up"]), kind), im.NONE, im.NONE, 1, 1.0)
        b.linear(gated, x, b.matrix(f"{i}.down", w["down"], kind), im.NONE, x, 0, 1.0)
    b.norm(x, n, b.vector("norm", model["norm"]), EPS)
    b.op(im.LOGITS, n, b.matrix("head", model["head"], kind), 1.0)
    return b


def np_run(model, order, rounded=lambda w: w, window=0):
    wide = lambda w: (rounded(w) if w.ndim == 2 else w).astype(np.float64)
    x = wide(model["embed"])[IDS]
    for i in order:
        layer = {n: wide(w) for n, w in model["layers"][i].items()}
        x = np_layer(x, layer, FREQUENCIES.astype(np.float64), window)
    return np_norm(x, wide(model["norm"])) @ wide(model["head"]).T


def written(image):
    path = fresh("hand") / "hand.stele"
    path.write_bytes(image.pack())
    return path


def close(got, want, bound=1e-5):
    worst = np.abs(got - want).max() / np.abs(want).max()
    assert worst <= bound, f"off by {worst:.2e} of the largest"


@test
def embed_norm_and_logits_written_by_hand_give_what_numpy_gives():
    model = random_model(0, 1)
    path = written(build(model, []).image())
    close(logits(path, IDS), np_run(model, []))


@test
def two_layers_written_by_hand_and_swapped_give_what_numpy_gives():
    model = random_model(2, 2)
    straight, swapped = np_run(model, [0, 1]), np_run(model, [1, 0])
    assert np.abs(straight - swapped).max() > 0.01 * np.abs(straight).max()
    close(logits(written(build(model, [0, 1]).image()), IDS), straight)
    close(logits(written(build(model, [1, 0]).image()), IDS), swapped)


@test
def a_layer_used_twice_and_one_left_out_give_what_numpy_gives():
    model = random_model(2, 3)
    for order in ([0, 0, 1], [1]):
        close(logits(written(build(model, order).image()), IDS), np_run(model, order))


@test
def a_window_written_by_hand_gives_what_numpy_gives():
    model = random_model(1, 4)
    path = written(build(model, [0], window=4).image())
    close(logits(path, IDS), np_run(model, [0], window=4))


@test
def bf16_and_f16_written_by_hand_give_what_numpy_gives_over_the_rounded_weights():
    model = random_model(2, 5)
    halves = {im.BF16: lambda w: bf16_floats(bf16_bits(w)).reshape(w.shape), im.F16: lambda w: w.astype("<f2")}
    for kind, rounded in halves.items():
        path = written(build(model, [0, 1], kind).image())
        close(logits(path, IDS, "--kv", "f32"), np_run(model, [0, 1], rounded))


@test
def verify_accepts_what_is_written_by_hand():
    stele("verify", written(build(random_model(1, 6), [0]).image())).exits(0)


@test
def text_for_an_image_written_without_a_tokenizer_is_refused_and_says_so():
    r = stele("run", written(build(random_model(0, 1), []).image()), "hello")
    assert r.code in (2, 3), r.code
    r.exits(r.code, "--ids")
    assert r.out == b""


# ---- reading what stele-convert wrote ----


@test
def a_converted_image_is_byte_for_byte_what_the_second_writer_makes_of_its_sections():
    for weights in ("f32", "bf16", "f16", "q8", "q4"):
        path = converted(llama(hidden_size=72, intermediate_size=100, head_dim=18, vocab_size=131, tie_word_embeddings=False),
                         "--weights", weights)  # fmt: skip
        image = im.ImageFile.read(path)
        assert image.free().pack() == image.raw, f"{weights}: the files differ"


@slow(needs=TEXT_MODEL)
def a_converted_image_with_a_tokenizer_is_what_the_second_writer_makes_of_its_sections():
    image = im.ImageFile.read(converted(TEXT_MODEL))
    assert image.section(im.TOKENIZER)
    assert image.free().pack() == image.raw


@test
def floats_of_a_converted_image_lie_where_the_format_says():
    folder = llama("floats", hidden_size=72, intermediate_size=100, head_dim=18, vocab_size=131, tie_word_embeddings=False)
    source = {n: floats(d, raw).reshape(s) for n, (d, s, raw) in read_safetensors(folder / "model.safetensors").items()}
    rounded = {"f32": lambda w: w, "f16": lambda w: w.astype("<f2").astype("<f4"),
               "bf16": lambda w: bf16_floats(bf16_bits(w)).reshape(w.shape)}  # fmt: skip
    p = "model.layers.1."
    for weights, as_stored in rounded.items():
        image = im.ImageFile.read(converted(folder, "--weights", weights))
        table = im.tensors(image)
        want = {
            "embedding": source["model.embed_tokens.weight"],
            "layers.1.qkv": rows_padded([source[p + f"self_attn.{n}_proj.weight"] for n in "qkv"]),
            "layers.1.out": source[p + "self_attn.o_proj.weight"],
            "layers.1.gate_up": in_turn(source[p + "mlp.gate_proj.weight"], source[p + "mlp.up_proj.weight"]),
            "layers.1.down": source[p + "mlp.down_proj.weight"],
            "head": source["lm_head.weight"],
        }
        for name, w in want.items():
            t = table[name]
            assert (t.rows, t.columns, t.layout) == (*w.shape, im.PANELS) or t.rows == im.padded(len(w), 16), name
            full = im.unpanel_floats(im.tensor_bytes(image, t), im.TYPES[weights], t.rows, t.columns)
            assert np.array_equal(full[: w.shape[0], : w.shape[1]], as_stored(w)), (weights, name)
            assert not full[w.shape[0] :].any() and not full[:, w.shape[1] :].any(), f"{name}: padding is not zero"
        vectors = [np.frombuffer(im.tensor_bytes(image, t), "<f4") for t in table.values() if t.layout == im.VECTOR]
        for name, w in source.items():
            assert w.ndim == 2 or any(np.array_equal(v, w) for v in vectors), name


@test
def weights_stand_in_the_order_of_the_plan_and_the_head_is_last():
    image = im.ImageFile.read(converted(llama("order", tie_word_embeddings=False)))
    table = sorted(im.tensors(image).values(), key=lambda t: t.offset)
    assert [t.name for t in table] == [*im.tensors(image)], "the table is not in the order of the weights"
    assert table[-1].name == "head"
    for before, after in zip(table, table[1:]):
        assert im.padded(before.offset + before.length, 64) == after.offset, after.name


finish()
