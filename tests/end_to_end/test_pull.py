#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stele pull: from a web server straight into an image, which is the one that stele convert makes of the same files;
whatever the server does, the answer is that image or a sentence."""
import base64
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import time
from pathlib import Path

from harness import *
from imagefile import PROVENANCE, ImageFile
from servers import Web, scratch
from workshop import *

ROOT_FOLDER = scratch("root")
web = Web(ROOT_FOLDER, tls=True)


_served = itertools.count()


def served(folder, name=None):
    """Puts a checkpoint under the web server; its path there."""
    name = name or f"{folder.name}-{next(_served)}"
    shutil.copytree(folder, ROOT_FOLDER / name)
    return name


def pull(url, *options, target=None, **kwargs):
    target = target or fresh("pulled") / "model.stele"
    r = stele("pull", url, "-o", target, *options, **kwargs)
    r.target = target
    return r


def parts(path):
    """Identity, and all bytes from the first section to the provenance."""
    img = ImageFile.read(path)
    return img.identity, img.raw[8192 : img.section(PROVENANCE).offset]


def same_image(pulled, made):
    a, b = parts(pulled), parts(made)
    assert a[0] == b[0], "another identity"
    assert a[1] == b[1], "other bytes"
    stele("verify", pulled).exits(0)


def nothing_left(target):
    assert sorted(os.listdir(target.parent)) == [], os.listdir(target.parent)


def sharded(folder, count, **changes):
    """Cuts model.safetensors into shards with an index."""
    tensors = read_safetensors(folder / "model.safetensors")
    names, index = list(tensors), {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        mine = names[i::count]
        write_safetensors(folder / name, {n: tensors[n] for n in mine})
        index |= {n: name for n in mine}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


demo = served(DEMO, "demo")
MIDDLE = llama("middle", hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8, head_dim=32,
               vocab_size=4000, dtype="BF16", tie_word_embeddings=False)  # 17 MB
middle = served(MIDDLE, "middle")


# ---- the same image ----


@test
def the_image_is_the_one_that_convert_makes_for_every_type_of_weights():
    for weights in ["f32", "bf16", "q8", "q4"]:
        same_image(pull(web.plain + demo, "--weights", weights).exits(0).target, image(DEMO, weights))
    same_image(pull(web.plain + demo + "/").exits(0).target, image(DEMO, None))


@test
def shards_odd_shapes_and_biases_give_the_same_image_in_any_window():
    for folder in [
        sharded(llama("odd", hidden_size=72, head_dim=18, intermediate_size=100, vocab_size=77), 3),
        llama("tied", hidden_size=64, intermediate_size=130, vocab_size=201, dtype="F16", tie_word_embeddings=True),
    ]:
        name, made = served(folder), converted(folder)
        for options in [(), ("--chunk", "4K", "--memory", "1M", "--connections", "250"), ("--threads", "1", "--connections", "1")]:
            same_image(pull(web.plain + name, *options).exits(0).target, made)


@test
def a_single_file_of_weights_is_named_by_its_url():
    folder = copied(DEMO)
    (folder / "model.safetensors").rename(folder / "odd name.safetensors")
    name = served(folder)
    r = pull(web.plain + name + "/odd%20name.safetensors", "--weights", "q8").exits(0)
    same_image(r.target, image(DEMO, "q8"))


@test(needs=data("models/zoo/gpt-oss"))
def scales_of_mxfp4_are_fetched_once_and_in_time():
    folder = data("models/zoo/gpt-oss")
    name = served(folder)
    web.requests()
    r = pull(web.plain + name, "--chunk", "4K", "--stats").exits(0)
    same_image(r.target, image(folder, None))
    assert r.stats["fetched_bytes"] == (folder / "model.safetensors").stat().st_size
    pull(web.whole + name).exits(3, "serves no ranges", "MXFP4")


@test
def nothing_is_fetched_twice_and_requests_run_side_by_side():
    web.requests()
    r = pull(web.plain + middle, "--chunk", "1M", "--stats").exits(0)
    size = (MIDDLE / "model.safetensors").stat().st_size
    assert r.stats["fetched_bytes"] == r.stats["bytes"] == size
    log = [q for q in web.requests() if q[4].endswith("model.safetensors")]
    assert sum(q[1] for q in log) <= size + (256 << 10) + 8, log  # the header is looked at first
    assert len(log) >= size >> 20


@test
def what_limited_a_pull_is_said():
    assert pull(web.plain + middle, "--weights", "q4", "--stats").exits(0).stats["limit"] == "cpu"
    slow = Web(ROOT_FOLDER, rate="5m")
    assert pull(slow.slow + middle, "--stats").exits(0).stats["limit"] == "link"


# ---- what servers do ----


@test
def a_server_without_ranges_works_on_one_connection():
    r = pull(web.whole + middle, "--memory", "2M", "--chunk", "1M").exits(0)
    same_image(r.target, converted(MIDDLE))
    same_image(pull(web.whole + demo).exits(0).target, image(DEMO, None))


@test
def redirects_are_followed_and_leave_credentials_behind():
    web.requests()
    url = (web.away + demo).replace("http://", "http://someone:hidden@")
    r = pull(url).exits(0)
    same_image(r.target, image(DEMO, None))
    log = web.requests()
    assert any(a != "-" for _, _, _, a, p, _ in log if p.startswith("/away")), "the first host saw no credentials"
    assert all(a == "-" for _, _, _, a, p, _ in log if p.startswith("/plain")), log
    assert b"hidden" not in r.target.read_bytes() and b"hidden" not in r.err
    pull(web.round + demo).exits(6, "redirect")


@test(waits=True)
def refusals_that_pass_are_tried_again():
    r = pull(web.flaky + middle, "--chunk", "256K", "--stats").exits(0)
    assert r.stats["retries"] > 0
    same_image(r.target, converted(MIDDLE))


for path, says in {"broken": "status 503", "busy": "status 429", "private": "status 401", "plain/absent": "status 404"}.items():

    @test(waits=True)
    def refusals_that_stay_are_a_sentence_and_leave_nothing(path=path, says=says):
        r = pull(f"{web.base}{path}/{demo}").exits(6, says, "config.json")
        assert r.error.count("\n") == 1, r.error
        nothing_left(r.target)


@test(waits=True)
def what_cannot_be_reached_is_a_sentence():
    for url, says in [("http://127.0.0.1:1/x", "connect"), ("https://no-such-host.invalid/x", "resolve")]:
        r = pull(url).exits(6, says)
        nothing_left(r.target)


@test
def certificates_are_checked_and_http_2_is_spoken():
    env = {"CURL_CA_BUNDLE": str(web.authority)}
    same_image(pull(web.secure + "plain/" + demo, env=env).exits(0).target, image(DEMO, None))
    r = pull(web.secure + "plain/" + demo).exits(6, "certificate")
    nothing_left(r.target)
    pull(web.secure + "down/" + demo, env=env).exits(6, "http")  # a redirect from https to http is not followed


@test
def a_proxy_is_used_where_the_environment_names_one():
    pull("http://model.invalid/x", env={"http_proxy": "http://127.0.0.1:1"}).exits(6, "127.0.0.1")
    pull(web.plain + demo, env={"http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}).exits(0)


@test
def checksums_of_whole_objects_are_verified_and_those_of_parts_are_none():
    digest = base64.b64encode(hashlib.sha256((DEMO / "model.safetensors").read_bytes()).digest()).decode()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_CONFIG_FILE": "/dev/null"}
    for checksum, code in [(digest, 0), (digest[:10] + ("A" if digest[10] != "A" else "B") + digest[11:], 4), (digest + "-3", 0), ("", 0)]:
        server = Web(ROOT_FOLDER, checksum=checksum)
        r = pull("s3://bucket/demo", env=keys | {"AWS_ENDPOINT_URL": server.base})
        r.exits(code, *(["model.safetensors", "SHA-256"] if code else []))
        if code:
            nothing_left(r.target)
        else:
            same_image(r.target, image(DEMO, None))
            assert (b"sha256" in ImageFile.read(r.target).section(PROVENANCE).raw) == (checksum == digest)
        server.stop()


# ---- the call ----


@test
def wrong_calls_are_refused():
    target = fresh("t") / "x.stele"
    for args, says in [
        (["pull"], "no REF"),
        (["pull", "model", "-o", target], "hf:"),
        (["pull", "hf:a/b/c", "-o", target], "ORG/NAME"),
        (["pull", "hf:../b", "-o", target], "ORG/NAME"),
        (["pull", "s3://x", "-o", target], "BUCKET"),
        (["pull", "https://", "-o", target], "URL"),
        (["pull", "s3://bucket/a\nb", "-o", target], "control byte"),
        (["pull", web.plain, "-o", target, "--connections", "251"], "250"),
        (["pull", web.plain, "-o", target, "--chunk", "1"], "--chunk"),
        (["pull", web.plain, "-o", target, "--memory", "9999999G"], "--memory"),
        (["pull", web.plain, "-o", target, "--weights", "q9"], "q9"),
        (["pull", web.plain, "x", "-o", target], "one REF"),
        (["pull", web.plain, "-o", target, "--odd"], "--odd"),
    ]:
        stele(*args).exits(2, says)
    nothing_left(target)


@test
def an_existing_target_stays_unless_it_may_be_replaced():
    target = fresh("t") / "x.stele"
    target.write_text("mine")
    pull(web.plain + demo, target=target).exits(2, "exists")
    assert target.read_text() == "mine" and os.listdir(target.parent) == ["x.stele"]
    pull(web.plain + demo, "-f", target=target).exits(0)
    same_image(target, image(DEMO, None))
    assert os.listdir(target.parent) == ["x.stele"]


@test
def too_small_a_window_is_refused_with_the_size_that_does():
    folder = llama("wide", hidden_size=4096, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                   num_key_value_heads=1, head_dim=16, vocab_size=64, tensors={})
    r = pull(web.plain + served(folder), "--memory", "1M", "--chunk", "1M").exits(2, "--memory")
    nothing_left(r.target)


@test(waits=True)
def progress_is_for_terminals_and_run_knows_no_network():
    slow = Web(ROOT_FOLDER, rate="3m")
    target = fresh("t") / "x.stele"
    ours, theirs = os.openpty()
    args = [str(x) for x in [BUILD / "stele-pull", slow.slow + middle, "-o", target, "--connections", "2", "--chunk", "256K"]]
    p = subprocess.Popen(args, stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other side is closed
        pass
    assert p.wait() == 0 and p.stdout.read() == b""
    assert b"MB/s" in shown and b"connections" in shown and b"of 0.0" in shown, shown
    quiet = pull(web.plain + demo).exits(0)
    assert quiet.err == b"" and quiet.out == b""
    linked = call(["ldd", BUILD / "stele"]).text
    assert "libcurl" not in linked and "libcrypto" not in linked and "zstd" not in linked, linked


# ---- hostile sources ----


@test
def malformed_shards_are_refused_and_leave_nothing():
    good = (DEMO / "model.safetensors").read_bytes()
    for what, says in [
        (b"", "no safetensors"),
        (b"1234567", "no safetensors"),
        (struct.pack("<Q", 1 << 60) + good[8:], "no safetensors"),
        (struct.pack("<Q", len(good)) + good[8:], "no safetensors"),
        (struct.pack("<Q", 2) + b"{}" + b"x" * 64, "belong to no tensor"),
        (good[:-100], "cut short"),
        (struct.pack("<Q", 4) + b"[[[[" + good, ""),
    ]:
        folder = copied(DEMO)
        (folder / "model.safetensors").write_bytes(what)
        r = pull(web.plain + served(folder))
        assert r.code == 3 and says in r.error, (r.code, r.error, says)
        nothing_left(r.target)


@test
def a_header_longer_than_the_first_look_is_fetched_whole():
    folder = copied(DEMO)
    write_safetensors(folder / "model.safetensors", read_safetensors(DEMO / "model.safetensors"),
                      lambda entries: {"__metadata__": {"x": "y" * (1 << 20)}} | entries)
    for base in [web.plain, web.whole]:
        r = pull(base + served(folder), "--weights", "f32").exits(0)
        same_image(r.target, image(DEMO, "f32"))


@test
def a_number_that_is_none_is_named_and_leaves_nothing():
    tensors = read_safetensors(MIDDLE / "model.safetensors")
    dtype, shape, raw = tensors["model.layers.3.mlp.up_proj.weight"]
    bad = bytearray(raw)
    bad[5 * 512 : 5 * 512 + 2] = b"\xc0\x7f"
    folder = copied(MIDDLE)
    write_safetensors(folder / "model.safetensors", tensors | {"model.layers.3.mlp.up_proj.weight": (dtype, shape, bytes(bad))})
    r = pull(web.plain + served(folder)).exits(3, "layers.3.mlp.up_proj", "row 5", "NaN")
    nothing_left(r.target)


# ---- going on ----


@test(waits=True)
def killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes():
    rng, made, size = random.Random(5), converted(MIDDLE), (MIDDLE / "model.safetensors").stat().st_size
    slow = Web(ROOT_FOLDER, rate="1m")
    target, kills = fresh("t") / "x.stele", 0
    options = ["--chunk", "256K", "--memory", "1M", "--connections", "3"]
    for _ in range(20):
        kills += killed_pull(rng.uniform(0, 0.15), slow.slow + middle, target, *options, progress=rng.random() < 0.7)
        if target.exists():
            break
    assert kills >= 10
    r = stele("pull", slow.slow + middle, "-o", target, *options, "--stats").exits(0, "going on")
    same_image(target, made)
    again = r.stats["fetched_bytes"] - (size - r.stats["resumed_bytes"])
    assert r.stats["resumed_bytes"] > 0 and 0 <= again <= 16 * 1024 * 2, r.stats  # the rows of a panel that was not whole
    weights = [q for q in slow.requests() if q[4].endswith("model.safetensors")]
    assert sum(q[1] for q in weights) <= size + (kills + 1) * ((1 << 20) + (256 << 10)), "more than a window was fetched again"
    assert os.listdir(target.parent) == ["x.stele"]


@test(waits=True)
def a_server_without_ranges_is_read_again_and_what_was_packed_stays():
    slow = Web(ROOT_FOLDER, rate="3m")
    target = fresh("t") / "x.stele"
    assert killed_pull(0.2, slow.slowly + middle, target, "--memory", "2M", "--chunk", "256K")
    r = stele("pull", slow.slowly + middle, "-o", target, "--memory", "2M", "--chunk", "256K", "--stats").exits(0, "going on")
    assert r.stats["resumed_bytes"] > 0
    same_image(target, converted(MIDDLE))


@test
def a_server_that_names_no_state_of_a_file_is_pulled_from():
    same_image(pull(web.silent + middle, "--chunk", "1M").exits(0).target, converted(MIDDLE))


@test(waits=True)
def another_source_or_other_options_start_over_and_say_so():
    slow = Web(ROOT_FOLDER, rate="2m")
    folder = copied(MIDDLE)
    name, target = served(folder), fresh("t") / "x.stele"
    options = ["--chunk", "256K", "--memory", "1M", "--connections", "3"]
    assert killed_pull(0.1, slow.slow + name, target, *options)
    r = stele("pull", web.plain + name, "-o", target, "--weights", "q8", "--stats").exits(0, "starting over")
    assert r.stats["resumed_bytes"] == 0
    same_image(target, converted(MIDDLE, "--weights", "q8"))
    target.unlink()
    assert killed_pull(0.1, slow.slow + name, target, *options)
    tensors = read_safetensors(MIDDLE / "model.safetensors")
    tensors["model.norm.weight"] = ("BF16", [256], stored("BF16", np.full(256, 0.5)))
    write_safetensors(ROOT_FOLDER / name / "model.safetensors", tensors)
    os.utime(ROOT_FOLDER / name / "model.safetensors", (1e9, 1e9))
    stele("pull", web.plain + name, "-o", target).exits(0, "starting over")
    same_image(target, converted(ROOT_FOLDER / name))


@test(waits=True)
def a_source_that_changes_while_it_is_fetched_is_begun_again():
    slow = Web(ROOT_FOLDER, rate="2m")
    name, target = served(copied(MIDDLE)), fresh("t") / "x.stele"
    args = [BUILD / "stele-pull", slow.slow + name, "-o", target, "--chunk", "256K", "--connections", "2", "--memory", "1M"]
    p = subprocess.Popen(list(map(str, args)), stderr=subprocess.PIPE)
    while not pulled_bytes(target):
        time.sleep(0.01)
    file = ROOT_FOLDER / name / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-2:] = b"\x00\x3f"
    file.with_suffix(".new").write_bytes(raw)
    os.utime(file.with_suffix(".new"), (1e9, 1e9))
    file.with_suffix(".new").rename(file)
    err = p.communicate()[1].decode()
    assert p.returncode == 0 and "starting over" in err, err
    same_image(target, converted(ROOT_FOLDER / name))


@test
def a_full_disk_is_a_sentence_and_the_next_pull_ends_well():
    target = fresh("t") / "x.stele"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
    options = ["--memory", "1M", "--chunk", "256K"]
    r = stele("pull", web.plain + middle, "-o", target, *options, preexec_fn=limit)
    r.exits(1, "File too large", "is kept")
    stele("pull", web.plain + middle, "-o", target, *options).exits(0, "going on")
    same_image(target, converted(MIDDLE))


@test(waits=True)
def two_pulls_into_one_target_do_not_disturb_each_other():
    slow = Web(ROOT_FOLDER, rate="8m")
    target = fresh("t") / "x.stele"
    args = [str(x) for x in [BUILD / "stele-pull", slow.slow + middle, "-o", target, "-f", "--chunk", "1M"]]
    both = [subprocess.Popen(args, stderr=subprocess.PIPE) for _ in range(2)]
    said = [p.communicate()[1].decode() for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert any("waiting" in s for s in said), said
    same_image(target, converted(MIDDLE))
    assert os.listdir(target.parent) == ["x.stele"]


def zeros(folder, layers):
    """A checkpoint of f32 zeros of about 108 MB a layer, which takes no room on the disk."""
    c = llama_config(hidden_size=1024, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=8, head_dim=128,
                     num_key_value_heads=8, vocab_size=256)
    (folder / "config.json").write_text(json.dumps(c))
    shapes = {n: s for n, (_, s, _) in llama_tensors(c | {"num_hidden_layers": 0, "hidden_size": 1024}, dtype="F32").items()}
    for i in range(layers):
        p, h, f = f"model.layers.{i}.", 1024, 8192
        shapes |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,)}
        shapes |= {p + f"self_attn.{n}_proj.weight": (h, h) for n in "qkvo"}
        shapes |= {p + "mlp.gate_proj.weight": (f, h), p + "mlp.up_proj.weight": (f, h), p + "mlp.down_proj.weight": (h, f)}
    entries, at = {}, 0
    for n, s in shapes.items():
        length = 4 * int(np.prod(s))
        entries[n] = {"dtype": "F32", "shape": list(s), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return folder


def in_address_space(layers, limit):
    folder = fresh("zeros")
    zeros(folder, layers)
    os.rename(folder, ROOT_FOLDER / f"zeros-{layers}")
    target = fresh("t") / "x.stele"
    r = stele("pull", f"{web.plain}zeros-{layers}", "-o", target, "--weights", "q4", "--memory", "64M" if limit < 1 << 30 else "256M",
              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    r.exits(0)
    assert (ROOT_FOLDER / f"zeros-{layers}" / "model.safetensors").stat().st_size > 2 * limit
    stele("verify", target).exits(0)
    target.unlink()


@test
def a_model_larger_than_the_address_space_is_pulled():
    if not os.environ.get("STELE_SAN"):
        in_address_space(7, 320 << 20)


@slow
def two_gigabytes_are_pulled_in_one_gigabyte_of_address_space():
    if not os.environ.get("STELE_SAN"):
        in_address_space(21, 1 << 30)


@test
def what_was_pulled_lies_in_pages_as_large_as_what_was_converted():
    model = llama("in-large-pages", hidden_size=512, intermediate_size=4096, num_hidden_layers=2, vocab_size=4096)
    folder = BUILD / "test-scratch" / "pulled"  # on a disk file system
    folder.mkdir(parents=True, exist_ok=True)
    made, target = folder / "made.stele", folder / "pulled.stele"
    stele("convert", model, "-o", made, "-f").exits(0)
    pull(web.plain + served(model), "-f", target=target).exits(0)
    shown = lambda path: stele("inspect", "--residency", path).exits(0).text
    large = lambda path: int(re.search(r"large pages +(\d+) bytes", shown(path)).group(1))
    print(f"      {large(made) >> 20} and {large(target) >> 20} of {made.stat().st_size >> 20} MiB")
    assert large(target) >= large(made) * 0.75


finish()
