#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""q8, q4 and mxfp4: what stands in the image, what the ops make of it, what it costs in perplexity and saves in bytes."""
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
    return q.astype(np.float64) * np.repeat(scales.astype(np.float64), q.shape[1] // scales.shape[1], axis=1)


# ---- what stands in the image ----


@test
def quantised_weights_lie_in_their_range_and_scales_are_finite_and_those_of_q8_not_negative():
    for weights in ("q8", "q4"):
        f = im.ImageFile.read(image(_odd, weights))
        for t in im.tensors(f).values():
            if t.layout != im.PANELS:
                continue
            q, scales = im.unpanel_groups(im.tensor_bytes(f, t), t.kind, t.rows, t.columns)
            low, high = (-32, 28) if t.kind == im.Q4 else (-127, 127)
            assert low <= q.min() and q.max() <= high, (weights, t.name, q.min(), q.max())
            assert np.isfinite(scales).all() and (t.kind == im.Q4 or not np.signbit(scales).any()), (weights, t.name)
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


def best_of_symmetric(g, steps_of):
    """The least error of groups [..][n] rounded to -8 … 7 times a scale: what q4 has to be better than."""
    best = np.full(g.shape[:-1], np.inf)
    for steps in steps_of:
        s = np.abs(g).max(-1, keepdims=True) / steps
        best = np.minimum(best, ((np.clip(np.rint(g / s), -8, 7) * s - g) ** 2).sum(-1))
    return best.sum()


@test
def q4_has_less_error_than_symmetric_integers_of_finer_groups():
    source = source_of(_odd)["model.layers.0.mlp.gate_proj.weight"].astype(np.float64)
    t, q, scales = groups(_odd, "q4", "layers.0.gate_up")
    rows, k = source.shape
    mine = dequantised(q, scales).reshape(-1, 2, 16, q.shape[1])[:, 0].reshape(-1, q.shape[1])[:rows, :k]
    error = ((mine - source) ** 2).sum()
    symmetric = best_of_symmetric(source.reshape(rows, k // 16, 16), (6, 6.5, 7, 7.5, 8, 8.5, 9))
    assert error < 0.9 * symmetric, (error, symmetric)


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
    t, q, scales = groups(folder, "q8", "layers.0.down")
    got = dequantised(q, scales)[:96, :300]
    assert not got[0].any()
    # A subnormal scale has steps of 2^-24; the weights are rounded to multiples of the scale.
    assert np.abs(got[1] - w[1]).max() <= scales[1, 0] / 2 + 127 * 2.0**-25 + np.abs(w[1]).max() / 127 and got[1].any()
    assert np.abs(got[2]).max() <= 2.0**-24 and np.abs(got[4]).max() <= 2.0**-24
    assert abs(got[3, 5] - 2000) <= 2000 * 2**-10 and not np.delete(got[3], 5).any()
    assert np.abs(got[5, :32] + 1).max() <= 2.0**-10
    assert abs(got[6, 299] - 0.5) <= 2.0**-10
    t, q, scales = groups(folder, "q4", "layers.0.down")
    got = dequantised(q, scales)[:96, :300]
    assert not got[0].any()
    # The least scale is 2^-24, numbers of the book are up to 6 apart.
    assert np.abs(got[1] - w[1]).max() <= 2 * 3 * 2.0**-24 and got[1].any()
    assert np.abs(got[2]).max() <= 2.0**-24 and np.abs(got[4]).max() <= 2.0**-24
    assert abs(got[3, 5] - 2000) <= 2000 / 127 and not np.delete(got[3], 5).any()
    assert np.abs(got[5, :32] + 1).max() <= 1 / 127 and abs(got[6, 299] - 0.5) <= 0.5 / 127


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
    for kind, low, high in ((im.Q8, -127, 127), (im.Q4, 0, 15), (im.MXFP4, 0, 15)):
        for k in (32, 96, 256, 288, 1024, 1056):
            v = 37
            table = rng.standard_normal((v, k)).astype("<f4")
            table[3] = 0
            table[4, 0] = 3e4
            q = rng.integers(low, high + 1, (v, k))
            scales = (rng.random((v, k // 32)) * 0.01).astype("<f2")
            scales[0, 0] = 2.0**-24
            heads = None
            if kind == im.Q4:
                scales = rng.integers(-127, 128, (v, k // 16))
                heads = (rng.random(v) * 0.001).astype("<f2")
                scales[1], heads[2], heads[5] = 127, 0, 2.0**-24
            if kind == im.MXFP4:
                scales = rng.integers(118, 126, (v, k // 32))
                scales[0], scales[1], scales[2] = 0, 1, 140
            b = im.Builder(v, 64)
            x = b.slot(k)
            b.op(im.EMBED, x, b.matrix("embedding", table), 1.0)
            b.op(im.LOGITS, x, b.quantised("head", q, scales, kind, heads), 1.0)
            path = fresh("head") / "head.stele"
            path.write_bytes(b.image().pack())
            got = logits(path, list(range(v)))
            a, a_scale = rounded_activations(table)
            if kind == im.Q4: # its scales of 16 columns, in units of the row's, are part of the integers
                q, scales = im.BOOK[q] * np.repeat(scales, 16, axis=1), np.tile(heads[:, None], (1, k // 32))
            if kind == im.MXFP4:
                q, scales = im.E2M1[q], 2.0 ** (scales - 128)
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


@test
def an_embedding_of_mxfp4_codes_written_by_hand_is_their_value_times_the_scale():
    rng = np.random.default_rng(10)
    v, k = 20, 96
    codes, scales = rng.integers(0, 16, (v, k)), rng.integers(120, 131, (v, 3))
    b = im.Builder(v, 64)
    x = b.slot(k)
    b.op(im.EMBED, x, b.quantised("embedding", codes, scales, im.MXFP4), 1.0)
    b.op(im.LOGITS, x, b.matrix("head", np.eye(v, k).astype("<f4")), 1.0)
    path = fresh("embed") / "embed.stele"
    path.write_bytes(b.image().pack())
    value = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])[codes]
    want = value * 2.0 ** (np.repeat(scales, 32, axis=1) - 127)
    assert (logits(path, list(range(v))) == want[:, :v]).all()


@test
def experts_of_mxfp4_written_by_hand_give_the_float64_oracle_of_their_definition():
    rng = np.random.default_rng(11)
    v = hidden = 96
    ffn, count, top, limit = 64, 8, 3, 2.5

    def bank(rows, k):
        return [(rng.integers(0, 16, (rows, k)), rng.integers(121, 125, (rows, k // 32))) for _ in range(count)]

    up, down = bank(2 * ffn, hidden), bank(hidden, ffn)
    up_bias, down_bias = rng.standard_normal((count, 2 * ffn)).astype("<f4"), rng.standard_normal((count, hidden)).astype("<f4")
    table, router = rng.standard_normal((v, hidden)).astype("<f4"), rng.standard_normal((count, hidden)).astype("<f4")
    router_bias = rng.standard_normal(16).astype("<f4")
    b = im.Builder(v, 128)
    x, route, gathered, gated, total = b.slot(hidden), b.slot(2 * top), b.slot(hidden), b.slot(ffn), b.slot(hidden)
    b.op(im.EMBED, x, b.matrix("embedding", table), 1.0)
    b.op(im.ROUTER, x, route, b.matrix("router", router), b.vector("router.bias", router_bias), top, 2)
    banks = b.banks(up, down, im.MXFP4)
    biases = b.vector("up.bias", up_bias.ravel()), b.vector("down.bias", down_bias.ravel())
    b.op(im.EXPERTS, x, route, x, x, gathered, gated, total, banks, banks + 1, *biases, top, 3, 1.0, limit)
    b.op(im.LOGITS, x, b.matrix("head", np.eye(v).astype("<f4")), 1.0)
    path = fresh("experts") / "experts.stele"
    path.write_bytes(b.image().pack())
    got = logits(path, list(range(v)))

    def product(x, q, scales):
        a, a_scale = rounded_activations(x.astype("<f4"))
        isum = np.einsum("agk,wgk->awg", a, im.E2M1[q].reshape(len(q), -1, 32).astype(np.float64))
        return np.einsum("awg,ag,wg->aw", isum, a_scale.astype(np.float64), 2.0 ** (scales - 128))

    scores = table.astype(np.float64) @ router.T + router_bias[:count]
    want, near = table.astype(np.float64), np.zeros(v, bool)
    for i in range(v):
        chosen = np.sort(np.argsort(-scores[i])[:top])
        weights = np.exp(scores[i, chosen] - scores[i].max())
        for e, w in zip(chosen, weights / weights.sum()):
            both = (product(table[i : i + 1], *up[e]) + up_bias[e]).reshape(-1, 2, 16)  # panels of gate and up in turn
            gate, lift = np.minimum(both[:, 0].ravel(), limit), np.clip(both[:, 1].ravel(), -limit, limit)
            mid = (gate / (1 + np.exp(-1.702 * gate)) * (lift + 1))[None]
            step = np.abs(mid.reshape(-1, 32)).max(-1, keepdims=True) / 127
            near[i] |= (np.abs(np.abs(mid.reshape(-1, 32) / step % 1) - 0.5) < 1e-4).any()  # either integer is right
            want[i] += w * (product(mid, *down[e]) + down_bias[e])[0]
    assert near.sum() < v / 2
    worst = (np.abs(got - want)[~near]).max() / np.abs(want).max()
    assert worst <= 1e-5, f"off by {worst:.1e}"


# ---- gpt-oss: weights that come as MXFP4 ----

GPT_OSS = data("models/zoo/gpt-oss")
BANKS = {"gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"}


def mxfp4_source(name):
    """Codes [expert][rows][k] and scale bytes [expert][rows][k/32] of a tensor of the checkpoint."""
    t = read_safetensors(GPT_OSS / "model.safetensors")
    _, shape, raw = t[name + "_blocks"]
    blocks = np.frombuffer(raw, "u1").reshape(shape)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*shape[:2], -1)
    return codes, np.frombuffer(t[name + "_scales"][2], "u1").reshape(t[name + "_scales"][1])


def parted(x):
    """Rows of gate and up in turn as an image has them: panel by panel (their number is a multiple of 16)."""
    return np.stack([x[0::2].reshape(-1, 16, x.shape[1]), x[1::2].reshape(-1, 16, x.shape[1])], 1).reshape(x.shape)


@test(needs=GPT_OSS)
def codes_and_scales_of_gpt_oss_stand_in_the_image_as_in_the_checkpoint():
    f = im.ImageFile.read(image(GPT_OSS, None))
    kinds = {n: t.kind for n, t in im.tensors(f).items() if t.layout == im.PANELS}
    assert {k for n, k in kinds.items() if "experts" in n} == {im.MXFP4}
    assert {k for n, k in kinds.items() if "experts" not in n} == {im.BF16}
    for layer in range(3):
        for short, name in BANKS.items():
            codes, scales = mxfp4_source(f"model.layers.{layer}.{name}")
            t = im.tensors(f)[f"layers.{layer}.experts.{short}"]
            assert t.count == 8 and t.stride % 4096 == 0
            for e in range(t.count):
                got, got_scales = im.unpanel_groups(im.tensor_bytes(f, t, e), t.kind, t.rows, t.columns)
                want, want_scales = (parted(codes[e]), parted(scales[e])) if short == "gate_up" else (codes[e], scales[e])
                assert (got == want).all() and (got_scales == want_scales).all(), (layer, short, e)


@test(needs=GPT_OSS)
def experts_of_gpt_oss_as_f32_and_bf16_are_exactly_what_the_codes_stand_for():
    for weights in ("f32", "bf16"):
        f = im.ImageFile.read(image(GPT_OSS, weights))
        for short, name in BANKS.items():
            codes, scales = mxfp4_source(f"model.layers.1.{name}")
            t = im.tensors(f)[f"layers.1.experts.{short}"]
            for e in (0, 7):
                want = im.E2M1[codes[e]] * 2.0 ** (np.repeat(scales[e].astype(int), 32, axis=1) - 128)
                got = im.unpanel_floats(im.tensor_bytes(f, t, e), t.kind, t.rows, t.columns)
                assert (got == (parted(want) if short == "gate_up" else want)).all(), (weights, short, e)


def gpt_oss_with(name, change):
    """The checkpoint with one tensor (dtype, shape, bytearray) changed."""
    folder = fresh("gpt-oss")
    t = read_safetensors(GPT_OSS / "model.safetensors")
    t[name] = change(*t[name][:2], bytearray(t[name][2]))
    write_safetensors(folder / "model.safetensors", t)
    shutil.copy(GPT_OSS / "config.json", folder)
    return folder


@test(needs=GPT_OSS)
def scales_that_are_no_number_or_too_large_are_refused_with_the_tensor_named():
    name = "model.layers.1.mlp.experts.down_proj"
    for scale, options, says in ((255, (), "NaN"), (255, ("--weights", "f32"), "NaN"), (233, (), "2^105")):

        def change(dtype, shape, raw):
            raw[-1] = scale
            return dtype, shape, bytes(raw)

        target = SCRATCH / "scale.stele"
        folder = gpt_oss_with(name + "_scales", change)
        stele("convert", folder, "-o", target, "-f", *options).exits(3, name + "_blocks", "row 511", says)
        assert not target.exists()


@test(needs=GPT_OSS)
def mxfp4_of_another_shape_or_type_is_refused_with_the_tensor_named():
    name, target = "model.layers.0.mlp.experts.gate_up_proj", SCRATCH / "shape.stele"
    changes = [lambda d, s, r: (d, [s[0], s[1], s[2] * s[3]], r), lambda d, s, r: ("I8", s, r),
               lambda d, s, r: (d, [s[0], s[1] // 2, s[2], 2 * s[3]], r), lambda d, s, r: (d, [], b"\0")]  # fmt: skip
    for change in changes:
        stele("convert", gpt_oss_with(name + "_blocks", change), "-o", target).exits(3, name)
    stele("convert", gpt_oss_with(name + "_scales", lambda d, s, r: (d, s[:2] + [1], r[::2])), "-o", target).exits(3, name)


# ---- what it costs and saves ----


@slow(needs=data("models/trained12M"))
def perplexity_of_heldout_text_is_the_references_and_half_a_per_cent_and_one_per_cent_above_it():
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
    assert abs(ppl["q4"] / ppl["f32"] - 1) <= 0.01, ppl
    assert len(set(found.values())) == 3


@test(needs=data("models/trained12M"))
def q8_and_q4_images_are_at_least_3_5_and_5_9_times_smaller_than_f32s():
    size = {w: image("trained12M", w).stat().st_size for w in ("f32", "q8", "q4")}
    print("      bytes: " + ", ".join(f"{w} {n} ({size['f32'] / n:.2f})" for w, n in size.items()))
    assert size["f32"] / size["q8"] >= 3.5 and size["f32"] / size["q4"] >= 5.9, size


@test
def weights_alone_are_3_7_and_nearly_7_times_smaller():
    # Per weight: 8 + 16/32 and 4 + 8/16 + 32/K bits against 32.
    folder = llama("square", hidden_size=512, intermediate_size=1024, num_attention_heads=8, head_dim=64, vocab_size=64)
    size = {w: len(im.ImageFile.read(image(folder, w)).section(im.WEIGHTS).raw) for w in ("f32", "q8", "q4")}
    assert size["f32"] / size["q8"] > 3.7 and size["f32"] / size["q4"] > 6.8, size


finish()
