#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""q8 and q4: what stands in the image, what the ops make of it, what it costs in perplexity and saves in bytes."""
import math

import numpy as np

import imagefile as im
from harness import *
from workshop import *

SIZES = dict(hidden_size=96, intermediate_size=300, num_attention_heads=4, num_key_value_heads=2, head_dim=22, vocab_size=131,
             tie_word_embeddings=False)  # fmt: skip
_odd = llama("odd", **SIZES)


def source_of(folder):
    return {n: floats(d, raw).reshape(s) for n, (d, s, raw) in read_safetensors(folder / "model.safetensors").items()}


def groups(folder, weights, name):
    image_file = im.ImageFile.read(image(folder, weights))
    t = im.tensors(image_file)[name]
    q, scales = im.unpanel_groups(im.tensor_bytes(image_file, t), t.kind, t.rows, t.columns)
    return t, q, scales


def dequantised(q, scales):
    return q.astype(np.float64) * np.repeat(scales.astype(np.float64), 32, axis=1)


# ---- what stands in the image ----


@test
def quantised_weights_lie_in_their_range_and_scales_are_finite_and_not_negative():
    for weights in ("q8", "q4"):
        f = im.ImageFile.read(image(_odd, weights))
        for t in im.tensors(f).values():
            if t.layout != im.PANELS:
                continue
            q, scales = im.unpanel_groups(im.tensor_bytes(f, t), t.kind, t.rows, t.columns)
            low, high = (-8, 7) if t.kind == im.Q4 else (-127, 127)
            assert low <= q.min() and q.max() <= high, (weights, t.name, q.min(), q.max())
            assert np.isfinite(scales).all() and (scales >= 0).all() and not np.signbit(scales).any(), (weights, t.name)
            rows, k = t.rows, t.columns
            assert not q[rows:].any() and not q[:, k:].any() and not scales[rows:].any(), f"{t.name}: padding is not zero"


@test
def a_q8_weight_is_within_half_a_step_of_its_source_and_the_largest_takes_127():
    source = source_of(_odd)["model.layers.1.mlp.down_proj.weight"].astype(np.float64)
    t, q, scales = groups(_odd, "q8", "layers.1.down")
    rows, k = source.shape
    step = np.repeat(scales.astype(np.float64), 32, axis=1)[:rows, :k]
    # A binary16 scale is off by at most 2^-11 of itself, so the largest weight of a group may be clipped by that much.
    slack = step * 127 * 2.0**-11
    assert (np.abs(dequantised(q, scales)[:rows, :k] - source) <= step / 2 + slack).all()
    per_group = np.abs(q[:rows, : k // 32 * 32].reshape(rows, -1, 32)).max(-1)
    assert (per_group >= 126).all()


@test
def a_q4_scale_is_at_least_as_good_as_the_ordinary_ones():
    source = source_of(_odd)["model.layers.0.mlp.gate_proj.weight"].astype(np.float64)
    t, q, scales = groups(_odd, "q4", "layers.0.gate_up")
    rows, k = source.shape
    mine = dequantised(q, scales).reshape(-1, 2, 16, q.shape[1])[:, 0].reshape(-1, q.shape[1])[:rows, :k]
    g = source.reshape(rows, k // 32, 32)
    best = np.full(g.shape[:2], np.inf)
    for steps in (7, 7.5, 8, 127 / 16):
        s = np.abs(g).max(-1, keepdims=True) / steps
        best = np.minimum(best, ((np.clip(np.rint(g / s), -8, 7) * s - g) ** 2).sum(-1))
    error = ((mine.reshape(g.shape) - g) ** 2).sum(-1)
    assert error.sum() <= best.sum() * 1.001, (error.sum(), best.sum())


@test
def groups_of_zeros_of_tiny_and_of_one_large_weight_are_kept():
    name = "model.layers.0.mlp.down_proj.weight"
    rng = np.random.default_rng(7)
    w = np.zeros((96, 300), "<f4")
    w[0, :32] = 0  # nothing
    w[1, :32] = rng.standard_normal(32) * 1e-6  # a scale in binary16's subnormal range
    w[2, :32] = rng.standard_normal(32) * 1e-9  # below it: the least scale, and nearly nothing is left
    w[3, 5] = 2000.0
    w[4, :32] = rng.standard_normal(32) * 1e-38
    w[5, :32] = -1.0
    w[6, 299] = 0.5  # in the last group, which is padded
    folder = llama("groups", tensors={name: ("F32", [96, 300], w.tobytes())}, **SIZES)
    for weights, levels in (("q8", 127), ("q4", 7)):
        t, q, scales = groups(folder, weights, "layers.0.down")
        got = dequantised(q, scales)[:96, :300]
        assert not got[0].any()
        # A subnormal scale has steps of 2^-24; the weights are rounded to multiples of the scale.
        bound = scales[1, 0] / 2 + levels * 2.0**-25 + np.abs(w[1]).max() / levels
        assert np.abs(got[1] - w[1]).max() <= bound and got[1].any()
        assert np.abs(got[2]).max() <= 2.0**-24 and np.abs(got[4]).max() <= 2.0**-24
        assert abs(got[3, 5] - 2000) <= 2000 * 2**-10 and not np.delete(got[3], 5).any()
        assert np.abs(got[5, :32] + 1).max() <= 2.0**-10
        assert abs(got[6, 299] - 0.5) <= 2.0**-10


@test
def embeddings_and_head_are_q8_when_the_rest_is_q4():
    f = im.ImageFile.read(image(_odd, "q4"))
    kinds = {n: t.kind for n, t in im.tensors(f).items() if t.layout == im.PANELS}
    assert kinds.pop("embedding") == kinds.pop("head") == im.Q8
    assert set(kinds.values()) == {im.Q4}


# ---- what the ops make of it ----


def rounded_activations(x):
    """NUMBERS.md, "Activations": integers and scales of groups of 32."""
    g = np.pad(x, [(0, 0), (0, -x.shape[1] % 32)]).astype("<f4").reshape(len(x), -1, 32)
    scale = (np.abs(g).max(-1) / np.float32(127)).astype("<f4")
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(scale[..., None] > 0, np.rint(g / scale[..., None]), 0)
    return q, scale


@test
def a_quantised_head_written_by_hand_gives_the_float64_oracle_of_its_definition():
    rng = np.random.default_rng(8)
    for kind, low, high in ((im.Q8, -127, 127), (im.Q4, -8, 7)):
        for k in (32, 96, 256, 288, 1024, 1056):
            v = 37
            table = rng.standard_normal((v, k)).astype("<f4")
            table[3] = 0
            table[4, 0] = 3e4
            q = rng.integers(low, high + 1, (v, k))
            scales = (rng.random((v, k // 32)) * 0.01).astype("<f2")
            scales[0, 0] = 2.0**-24
            b = im.Builder(v, 64)
            x = b.slot(k)
            b.op(im.EMBED, x, b.matrix("embedding", table), 1.0)
            b.op(im.LOGITS, x, b.quantised("head", q, scales, kind), 1.0)
            path = fresh("head") / "head.stele"
            path.write_bytes(b.image().pack())
            got = logits(path, list(range(v)))
            a, a_scale = rounded_activations(table)
            isum = np.einsum("agk,wgk->awg", a, q.reshape(v, -1, 32).astype(np.float64))
            want = np.einsum("awg,ag,wg->aw", isum, a_scale.astype(np.float64), scales.astype(np.float64))
            worst = np.abs(got - want).max() / np.abs(want).max()
            assert worst <= 1e-5, f"kind {kind}, k {k}: off by {worst:.1e}"
            # And row by row, so that a large row does not hide a small one.
            size = np.einsum("awg,ag,wg->aw", np.abs(isum), a_scale.astype(np.float64), scales.astype(np.float64))
            assert (np.abs(got - want) <= 1e-5 * size + 1e-30).all(), f"kind {kind}, k {k}"


@test
def an_embedding_of_integers_written_by_hand_is_integer_times_scale():
    rng = np.random.default_rng(9)
    v, k = 20, 64
    q, scales = rng.integers(-127, 128, (v, k)), (rng.random((v, 2)) * 0.02).astype("<f2")
    head = rng.standard_normal((v, k)).astype("<f4")
    b = im.Builder(v, 64)
    x = b.slot(k)
    b.op(im.EMBED, x, b.quantised("embedding", q, scales, im.Q8), 1.0)
    b.op(im.LOGITS, x, b.matrix("head", head), 1.0)
    path = fresh("embed") / "embed.stele"
    path.write_bytes(b.image().pack())
    want = dequantised(q, scales) @ head.T.astype(np.float64)
    assert np.abs(logits(path, list(range(v))) - want).max() / np.abs(want).max() <= 1e-5


# ---- what it costs and saves ----


@slow(needs=data("models/trained12M"))
def perplexity_of_heldout_text_is_the_references_and_half_a_per_cent_and_ten_per_cent_above_it():
    folder = data("models/trained12M")
    heldout = json.loads((folder / "golden.json").read_text())["heldout"]
    ids = stele("tokenize", image("trained12M"), "--bare", stdin=(folder / "heldout.txt").read_bytes()).exits(0).ids
    bos = stele("tokenize", image("trained12M"), "").exits(0).ids[:1]
    windows = [ids[i : i + 256] for i in range(0, len(ids), 256)]

    def mean_nll(weights):
        total = 0.0
        for w in windows:
            out = stele("logprobs", image("trained12M", weights), "--ids", " ".join(map(str, bos + w))).exits(0).text
            values = [json.loads(line)["logprob"] for line in out.splitlines()]
            assert values[0] is None and len(values) == len(w) + 1
            total -= math.fsum(values[1:])
        return total / len(ids)

    want = heldout[next(k for k in heldout if "nll" in k or "mean" in k)]
    found = {weights: mean_nll(weights) for weights in ("f32", "q8", "q4")}
    ppl = {w: math.exp(x) for w, x in found.items()}
    print("      perplexity: " + ", ".join(f"{w} {p:.3f} ({p / ppl['f32'] - 1:+.2%})" for w, p in ppl.items()))
    assert abs(found["f32"] - want) <= 1e-4 * want, (found["f32"], want)
    assert abs(ppl["q8"] / ppl["f32"] - 1) <= 0.005, ppl
    assert abs(ppl["q4"] / ppl["f32"] - 1) <= 0.10, ppl
    assert len(set(found.values())) == 3


@test(needs=data("models/trained12M"))
def q8_and_q4_images_are_at_least_3_5_and_6_times_smaller_than_f32s():
    size = {w: image("trained12M", w).stat().st_size for w in ("f32", "q8", "q4")}
    print("      bytes: " + ", ".join(f"{w} {n} ({size['f32'] / n:.2f})" for w, n in size.items()))
    assert size["f32"] / size["q8"] >= 3.5 and size["f32"] / size["q4"] >= 6, size


@test
def weights_alone_are_3_7_and_nearly_7_times_smaller():
    # Per weight: 8 + 16/32 and 4 + 16/32 bits against 32.
    folder = llama("square", hidden_size=512, intermediate_size=1024, num_attention_heads=8, head_dim=64, vocab_size=64)
    size = {w: len(im.ImageFile.read(image(folder, w)).section(im.WEIGHTS).raw) for w in ("f32", "q8", "q4")}
    assert size["f32"] / size["q8"] > 3.7 and size["f32"] / size["q4"] > 6.8, size


finish()
