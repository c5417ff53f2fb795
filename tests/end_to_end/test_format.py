#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What image/FORMAT.md says is refused is refused, with a sentence and exit 3, at every field; what it allows is taken."""
import struct

import numpy as np

import imagefile as im
from harness import *
from workshop import *

V, H, HEADS, KV, D = 48, 32, 4, 2, 16


class Small:
    """One layer, op by op: [embed, norm, linear, rope_kv, attention, linear, norm, linear (gate), linear, norm, logits]."""

    def __init__(self):
        rng = np.random.default_rng(1)
        r = lambda *s: rng.standard_normal(s).astype("<f4") * np.float32(0.1)
        b = self.b = im.Builder(V, 64)
        x, n, qkv, att, gated = b.slot(H), b.slot(H), b.slot((HEADS + 2 * KV) * D), b.slot(HEADS * D), b.slot(48)
        self.state, rope = b.kv(KV, D), b.rope([1.0 / (i + 1) for i in range(D // 2)])
        b.op(im.EMBED, x, b.matrix("embedding", r(V, H)), 1.0)
        b.norm(x, n, b.vector("norm", 1 + r(H)), 1e-5)
        b.linear(n, qkv, b.matrix("qkv", r((HEADS + 2 * KV) * D, H)), b.vector("bias", r((HEADS + 2 * KV) * D)))
        b.op(im.ROPE_KV, qkv, 0, HEADS * D, (HEADS + KV) * D, HEADS, im.NONE, im.NONE, 0.0, rope, self.state)
        b.op(im.ATTENTION, qkv, 0, att, HEADS, 0.25, self.state, 0.0, im.NONE)
        b.linear(att, x, b.matrix("out", r(H, HEADS * D)), residual=x)
        b.norm(x, n, b.vector("norm2", 1 + r(H)), 1e-5)
        b.linear(n, gated, b.matrix("gate_up", r(96, H)), activation=1)
        b.linear(gated, x, b.matrix("down", r(H, 48)), residual=x)
        b.norm(x, n, b.vector("norm3", 1 + r(H)), 1e-5)
        b.op(im.LOGITS, n, b.matrix("head", r(V, H)), 1.0)
        self.names = "embed norm linear rope_kv attention linear norm linear linear norm logits".split()


def run(image):
    path = fresh("format") / "x.stele"
    path.write_bytes(image if isinstance(image, bytes) else image.pack())
    return stele("run", path, "--ids", "1 2 3", "-n", "2", "--print", "ids")


def word(value):
    return struct.pack("<f", value) if isinstance(value, float) else struct.pack("<I", value & 0xFFFFFFFF)


def with_op(index, position, value):
    """The run with one word of an op changed; position 0 is the code."""
    s = Small()
    op = bytearray(s.b.ops[index])
    op[4 * position : 4 * position + 4] = word(value)
    s.b.ops[index] = bytes(op)
    return run(s.b.image())


def with_record(array, index, at, raw):
    s = Small()
    records = getattr(s.b, array)
    records[index] = records[index][:at] + raw + records[index][at + len(raw) :]
    return run(s.b.image())


def with_plan(at, raw):
    image = Small().b.image()
    plan = image.section(im.PLAN)
    plan.raw = plan.raw[:at] + raw + plan.raw[at + len(raw) :]
    return run(image)


def with_tensor(name, at, raw):
    image = Small().b.image()
    s = image.section(im.TENSORS)
    index = [*im.tensors(image)].index(name)
    s.raw = s.raw[: 128 * index + at] + raw + s.raw[128 * index + at + len(raw) :]
    return run(image)


def refused(r, *says):
    r.exits(3, *says)
    assert r.out == b"" and len(r.error.strip().splitlines()) == 1, r.error


NAN, INF = float("nan"), float("inf")


@test
def the_image_that_these_tests_change_runs():
    run(Small().b.image()).exits(0)


@test
def an_operand_that_is_not_of_its_sort_is_refused_with_op_and_operand_named():
    # op, position, wrong values, name of the operand
    wrong = [
        (0, 1, [5, 99, im.NONE], "out"), (0, 2, [99, 1, im.NONE], "table"), (0, 3, [NAN, INF], "scale"),
        (1, 1, [5, im.NONE], "in"), (1, 2, [5, im.NONE], "out"), (1, 3, [1 << 20, im.NONE], "column"),
        (1, 4, [0, 99, im.NONE], "weight"), (1, 5, [NAN, INF], "epsilon"), (1, 6, [5, 77], "residual"),
        (2, 3, [1, 99, im.NONE], "weight"), (2, 4, [0, 99], "bias"), (2, 5, [5, 99], "residual"), (2, 6, [4, 9, im.NONE], "activation"),
        (2, 7, [NAN], "scale"), (3, 5, [0, 1 << 21, im.NONE], "heads"), (3, 6, [0, 99], "q_norm"), (3, 7, [0, 99], "k_norm"),
        (3, 8, [NAN], "epsilon"), (3, 9, [1, 99], "rope"), (3, 10, [1, 99, im.NONE], "kv"),
        (4, 2, [1 << 20], "q"), (4, 4, [0], "heads"), (4, 5, [NAN], "scale"), (4, 6, [1], "kv"),
        (10, 2, [1, 99], "head"), (10, 3, [INF], "scale"),
    ]  # fmt: skip
    s = Small()
    for op, position, values, name in wrong:
        for value in values:
            refused(with_op(op, position, value), f"op {op}", s.names[op], name)


@test
def words_behind_the_operands_and_unknown_codes_are_refused():
    for op, used in ((0, 3), (1, 6), (2, 7), (3, 10), (4, 8), (10, 4)):
        for position in {used + 1, 15}:
            refused(with_op(op, position, 1), f"op {op}")
    for code in (9, 77, 0xFFFFFFFF):
        refused(with_op(4, 0, code), "op 4", str(code) if code < 100 else "")


@test
def shapes_that_do_not_fit_are_refused():
    refused(with_op(0, 1, 1 << 30), "op 0")
    refused(with_op(2, 1, 2), "op 2")  # reads what is not written yet
    refused(with_op(2, 2, 1), "op 2")  # out is in
    refused(with_op(2, 2, 0), "op 2")  # too narrow
    refused(with_op(3, 2, 100), "op 3")  # queries beyond the slot
    refused(with_op(3, 3, 120), "op 3")
    refused(with_op(3, 4, 120), "op 3")
    refused(with_op(3, 5, 3), "op 3")  # no multiple of the state's heads
    refused(with_op(3, 6, 1), "op 3")  # a norm of another length
    refused(with_op(4, 3, 2), "op 4")  # out is qkv
    refused(with_op(4, 4, 16), "op 4")
    refused(with_op(7, 3, 5), "op 7")
    refused(with_op(10, 2, 2), "op 10")  # a head of other rows


@test
def the_last_op_is_logits_and_no_other():
    s = Small()
    s.b.ops.pop()
    refused(run(s.b.image()), "logits")
    s = Small()
    s.b.ops.insert(3, s.b.ops[-1])
    refused(run(s.b.image()), "op 3")
    s = Small()
    s.b.ops.clear()
    refused(run(s.b.image()), "plan")


@test
def counts_of_a_plan_that_do_not_fit_its_length_are_refused():
    for at in range(0, 20, 4):
        (value,) = struct.unpack_from("<I", Small().b.image().section(im.PLAN).raw, at)
        for other in (value + 1, value - 1 & 0xFFFFFFFF, 0, 0xFFFFFFFF, 1 << 31):
            if other != value:
                refused(with_plan(at, word(other)), "plan")
    image = Small().b.image()
    for n in (0, 1, 31, 32, 100):
        image.section(im.PLAN).raw = Small().b.image().section(im.PLAN).raw[:n]
        refused(run(image), "plan")
    image.section(im.PLAN).raw = Small().b.image().section(im.PLAN).raw + bytes(4)
    refused(run(image), "plan")


@test
def vocabulary_context_and_slot_numbers_out_of_range_are_refused():
    for value in (0, 1 << 31, 0xFFFFFFFF, V - 1, V + 1):
        refused(with_plan(20, word(value)), "plan")
    for value in (0, (1 << 24) + 1, 0xFFFFFFFF):
        refused(with_plan(24, word(value)), "context")
    for value in (0, 16):
        refused(with_plan(28, word(value)), "slot")


@test
def slots_that_lie_are_refused_with_their_number():
    for at, value in ((0, 0xFFFFFFF0), (0, 1 << 20), (4, 0), (4, 15), (4, (1 << 21) + 16), (4, 0xFFFFFFFF), (8, 0), (8, 0xFFFFFFFF)):
        refused(with_record("slots", 1, at, word(value)), "slot 1")


@test
def states_that_lie_are_refused_with_their_number():
    for at, value in ((0, 0), (0, 2), (4, 0), (4, 4097), (4, 1 << 31), (8, 0), (8, 4097), (16, 0), (16, 31), (24, 1)):
        refused(with_record("states", 0, at, word(value)), "state 0")


@test
def ropes_and_constants_that_lie_are_refused():
    for at, value in ((0, 1), (0, 0xFFFFFFFF), (4, 0), (4, 9), (4, 0xFFFFFFFF), (8, NAN), (8, INF), (16, 9), (20, NAN)):
        refused(with_record("ropes", 0, at, word(value)), "rope")
    s = Small()
    s.b.constants[3] = NAN
    refused(run(s.b.image()), "constant 3")


@test
def reserved_fields_that_are_not_zero_are_refused():
    refused(with_record("slots", 0, 12, word(1)), "slot 0")
    refused(with_record("states", 0, 20, word(1)), "state 0")
    refused(with_record("ropes", 0, 24, word(1)), "rope 0")
    refused(with_record("ropes", 0, 28, word(1)), "rope 0")
    refused(with_tensor("qkv", 124, word(1)), "tensor")


@test
def reserved_fields_of_the_defaults_are_refused():
    for at, value in ((28, 1), (20, 2), (20, 1 << 31)):
        image = Small().b.image()
        s = image.section(im.DEFAULTS)
        s.raw = s.raw[:at] + word(value) + s.raw[at + 4 :]
        refused(run(image), "defaults")


@test
def tensors_that_lie_are_refused_by_name():
    q = lambda v: struct.pack("<Q", v)
    wrong = [(72, word(5)), (72, word(0xFFFFFFFF)), (76, word(1)), (76, word(2)), (80, q(0)), (80, q(1 << 32)), (80, q(145)),
             (88, q(0)), (88, q((1 << 20) + 1)), (88, q(33)), (96, q(1)), (96, q(32)), (96, q(1 << 40)), (96, q((1 << 64) - 64)),
             (104, q(0)), (104, q(1 << 62)), (112, q(64)), (120, word(0)), (120, word(2)), (120, word(0xFFFFFFFF))]  # fmt: skip
    for at, raw in wrong:
        r = with_tensor("qkv", at, raw)
        refused(r, "qkv") if (at, raw) not in [(76, word(1))] else refused(r)
    refused(with_tensor("qkv", 0, b"x" * 72), "tensor 2")
    image = Small().b.image()
    image.section(im.TENSORS).raw += b"x"
    refused(run(image), "tensors")
    image = Small().b.image()
    image.section(im.WEIGHTS).raw = image.section(im.WEIGHTS).raw[:-64]
    image.section(im.DIGESTS).raw = im.chunk_digests(image.section(im.WEIGHTS).raw)
    refused(run(image), "tensor")


@test
def defaults_that_are_absent_or_short_count_as_none():
    for change in (lambda i: i.sections.remove(i.section(im.DEFAULTS)), lambda i: setattr(i.section(im.DEFAULTS), "raw", b""),
                   lambda i: setattr(i.section(im.DEFAULTS), "raw", bytes(31))):  # fmt: skip
        image = Small().b.image()
        change(image)
        assert run(image).exits(0).out == run(Small().b.image()).out
    image = Small().b.image()
    s = image.section(im.DEFAULTS)
    s.raw = s.raw[:24] + word(1000) + s.raw[28:]
    refused(run(image), "stop ids")


@test
def defaults_out_of_range_are_refused_and_nothing_is_drawn():
    for at, value in ((0, -1.0), (0, NAN), (0, INF), (4, 2.0), (4, NAN), (8, -1.0), (12, NAN), (12, -1.0)):
        image = Small().b.image()
        s = image.section(im.DEFAULTS)
        s.raw = s.raw[:at] + word(value) + s.raw[at + 4 :]
        r = run(image)
        assert r.code == 3 and not r.out and r.error.strip(), (at, value, r.code, r.error)


@test
def sections_in_another_order_and_without_digests_or_provenance_are_taken():
    want = run(Small().b.image()).exits(0).out
    image = Small().b.image()
    image.sections.reverse()
    assert run(image).exits(0).out == want
    image = Small().b.image()
    image.sections = [s for s in image.sections if s.kind not in (im.DIGESTS, im.PROVENANCE)]
    assert run(image).exits(0).out == want
    path = fresh("v") / "v.stele"
    path.write_bytes(image.pack())
    stele("verify", path).exits(0)


@test
def provenance_is_no_part_of_the_identity_and_all_else_is():
    one, other, third = Small().b.image(), Small().b.image(), Small().b.image()
    other.section(im.PROVENANCE).raw = b'{"converter": "another"}' * 999
    third.section(im.DEFAULTS).raw = third.section(im.DEFAULTS).raw[:16] + word(7) + third.section(im.DEFAULTS).raw[20:]
    read = lambda image: (p := fresh("i") / "i.stele", p.write_bytes(image.pack()), im.ImageFile.read(p).identity)[2]
    assert read(one) == read(other) != read(third)
    path = fresh("j") / "j.stele"
    path.write_bytes(one.pack())
    assert read(one).hex() in stele("inspect", path).exits(0).text


finish()
