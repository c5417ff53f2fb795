#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Images on their way: pack and unpack, and finished images pulled, plain and packed."""
import os
import random
import shutil
import struct
import subprocess
import time

from harness import *
from servers import Web, scratch
from workshop import *

ROOT_FOLDER = scratch("root")
web = Web(ROOT_FOLDER)
MIDDLE = llama("middle", hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8, head_dim=32,
               vocab_size=4000, dtype="BF16", tie_word_embeddings=False, scale=0.02)  # 17 MB


def packed(source):
    target = fresh("packed") / "model.stele.zst"
    stele("pack", source, "-o", target).exits(0)
    return target


def same_bytes(a, b):
    assert Path(a).read_bytes() == Path(b).read_bytes()


@test
def what_is_unpacked_is_what_was_packed_for_every_type_and_any_number_of_threads():
    for weights in ["f32", "bf16", "f16", "q8", "q4"]:
        source = image(DEMO, weights)
        one, many = fresh("a") / "x.zst", fresh("b") / "x.zst"
        stele("pack", source, "-o", one, "--threads", "1").exits(0)
        stele("pack", source, "-o", many, "--threads", "7").exits(0)
        same_bytes(one, many)
        for threads in ["1", "3"]:
            back = fresh("c") / "x.stele"
            stele("unpack", one, "-o", back, "--threads", threads).exits(0)
            same_bytes(back, source)


@test
def a_packed_image_is_one_that_the_zstd_program_reads_through():
    assert call(["zstd", "-q", "-t", packed(image(DEMO, "bf16"))]).code == 0


@test(needs=data("models/trained12M"))
def floats_of_a_trained_model_become_smaller():
    source = image("trained12M", "bf16")
    assert os.path.getsize(packed(source)) <= 0.72 * os.path.getsize(source)


@test
def a_kill_leaves_nothing_beside_the_target():
    source = image(MIDDLE, "f32")
    small = packed(source)
    for verb, read in (("pack", source), ("unpack", small)):
        for i in range(8):
            target = fresh("killed") / "target"
            p = subprocess.Popen([BUILD / "stele", verb, read, "-o", target])
            time.sleep(0.01 + 0.02 * i)
            p.kill()
            if p.wait() and target.exists():  # killed when all was done
                same_bytes(target, source if verb == "unpack" else small)
                target.unlink()
            assert p.returncode == 0 or not list(target.parent.iterdir()), (verb, list(target.parent.iterdir()))


@test
def the_file_that_is_read_is_not_replaced():
    source = fresh("own") / "x.stele"
    shutil.copyfile(image(DEMO), source)
    stele("pack", source, "-o", source, "-f").exits(2, "is the file that is read")
    same_bytes(source, image(DEMO))
    small = packed(source)
    before = small.read_bytes()
    stele("unpack", small, "-o", small, "-f").exits(2, "is the file that is read")
    assert small.read_bytes() == before


@test
def damage_anywhere_is_refused_and_leaves_nothing():
    raw, rng = packed(image(DEMO, "bf16")).read_bytes(), random.Random(3)
    for i in range(60):
        at = i if i < 32 else len(raw) - 1 - (i - 32) if i < 50 else rng.randrange(len(raw))
        bad, back = fresh("bad") / "x.zst", fresh("t") / "x.stele"
        bad.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        r = stele("unpack", bad, "-o", back)
        assert r.code in (3, 4) and r.error.count("\n") == 1, (at, r.code, r.error)
        assert os.listdir(back.parent) == []
    for n in [0, 10, 31, 32, 50, len(raw) // 2, len(raw) - 1]:
        bad, back = fresh("short") / "x.zst", fresh("t") / "x.stele"
        bad.write_bytes(raw[:n])
        assert stele("unpack", bad, "-o", back).code in (3, 4)
        assert os.listdir(back.parent) == []


@test
def hostile_seek_tables_are_refused():
    raw = packed(image(DEMO, "bf16")).read_bytes()
    head, count = raw[:32], struct.unpack_from("<I", raw, len(raw) - 9)[0]
    table = len(raw) - (8 + 8 * count + 9)
    for at, value in [(table + 8, 0), (table + 8, 0xFFFFFFFF), (table + 12, 0), (table + 12, 0xFFFFFFFF), (table + 4, 8),
                      (len(raw) - 9, 0xFFFFFFFF), (len(raw) - 9, 0), (24, 1), (28, 0xFFFFFFFF), (16, 9)]:  # fmt: skip
        bad, back = fresh("bad") / "x.zst", fresh("t") / "x.stele"
        bad.write_bytes(raw[:at] + struct.pack("<I", value) + raw[at + 4 :])
        r = stele("unpack", bad, "-o", back)
        assert r.code in (3, 4), (at, value, r.code, r.error)
        assert os.listdir(back.parent) == []
    assert head[:4] == b"\x50\x2a\x4d\x18"


@test
def wrong_calls_and_sources_are_refused():
    source, there = image(DEMO, "q8"), fresh("t") / "there"
    there.write_text("mine")
    for verb, good in [("pack", source), ("unpack", packed(source))]:
        stele(verb).exits(2)
        stele(verb, good).exits(2, "-o")
        stele(verb, good, "x", "-o", there).exits(2)
        stele(verb, good, "-o", there).exits(2, "exists")
        stele(verb, good, "-o", there.parent).exits(2, "directory")
        stele(verb, good, "-o", there, "--threads", "0").exits(2)
        stele(verb, good, "-o", there, "--odd").exits(2)
        stele(verb, "/nowhere", "-o", there.parent / "x").exits(1)
        stele(verb, DEMO / "config.json", "-o", there.parent / "x").exits(3)
        assert f"usage: stele {verb}" in stele("help", verb).exits(0).text
        assert there.read_text() == "mine" and os.listdir(there.parent) == ["there"]
        stele(verb, good, "-o", there, "-f").exits(0)
        there.write_text("mine")
    raw = bytearray(source.read_bytes())
    raw[-5000] ^= 1
    (there.parent / "damaged").write_bytes(raw)
    stele("pack", there.parent / "damaged", "-o", there.parent / "x").exits(4)
    assert not (there.parent / "x").exists()


MADE = converted(MIDDLE)
shutil.copyfile(MADE, ROOT_FOLDER / "m.stele")
stele("pack", MADE, "-o", ROOT_FOLDER / "m.stele.zst").exits(0)


@test
def a_finished_image_is_pulled_plain_and_packed():
    for name in ["m.stele", "m.stele.zst"]:
        for options in [[], ["--chunk", "64K", "--memory", "6M", "--connections", "40"], ["--threads", "1", "--connections", "1"]]:
            target = fresh("t") / "x.stele"
            stele("pull", web.plain + name, "-o", target, *options).exits(0)
            same_bytes(target, MADE)
            assert os.listdir(target.parent) == ["x.stele"]
    target = fresh("t") / "x.stele"
    stele("pull", web.whole + "m.stele", "-o", target).exits(0)
    same_bytes(target, MADE)
    target.unlink()
    stele("pull", web.whole + "m.stele.zst", "-o", target).exits(3, "serves no ranges")
    stele("pull", web.plain + "m.stele", "-o", target, "--weights", "q8").exits(2, "--weights")
    stele("pull", web.plain + "absent.stele", "-o", target).exits(6, "404")
    assert os.listdir(target.parent) == []


for name in ["m.stele", "m.stele.zst"]:

    @test(waits=True)
    def a_finished_image_that_was_cut_off_goes_on(name=name):
        slow = Web(ROOT_FOLDER, rate="2m")
        target, rng, kills = fresh("t") / "x.stele", random.Random(2), 0
        options = ["--chunk", "256K", "--memory", "6M", "--connections", "3"]
        for _ in range(4):
            kills += killed_pull(rng.uniform(0, 0.3), slow.slow + name, target, *options)
        r = stele("pull", slow.slow + name, "-o", target, *options, "--stats")
        if kills == 4:
            r.exits(0, "going on")
            assert r.stats["resumed_bytes"] > 0
        same_bytes(target, MADE)
        assert os.listdir(target.parent) == ["x.stele"]


@test
def a_damaged_image_is_refused_and_leaves_nothing():
    for name in ["m.stele", "m.stele.zst"]:
        raw = bytearray((ROOT_FOLDER / name).read_bytes())
        raw[len(raw) // 2] ^= 0x10
        (ROOT_FOLDER / f"bad-{name}").write_bytes(raw)
        target = fresh("t") / "x.stele"
        stele("pull", f"{web.plain}bad-{name}", "-o", target).exits(4)
        assert os.listdir(target.parent) == []
    for name, bytes_ in {"text.stele": b"hello" * 5000, "empty.stele": b"", "tiny.stele.zst": b"STELEzst"}.items():
        (ROOT_FOLDER / name).write_bytes(bytes_)
        stele("pull", web.plain + name, "-o", target).exits(3, "neither an image")
        assert os.listdir(target.parent) == []


@test
def the_store_takes_images_too_and_reuses_them():
    env = {"STELE_HOME": str(fresh("home"))}
    r = stele("pull", web.plain + "m.stele.zst", "--stats", env=env).exits(0)
    same_bytes(r.text.strip(), MADE)
    assert stele("pull", web.plain + "m.stele.zst", "--stats", env=env).exits(0).stats["reused"]
    stele("run", web.plain + "m.stele.zst", "--ids", "1 2", "-n", "2", "--print", "ids", env=env).exits(0)


finish()
