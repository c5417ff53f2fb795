#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The store: images by identity, references by name; what is reused and what is not; run, ls, rm, gc."""
import json
import os
import re
import shutil
import subprocess
import time

from harness import *
from imagefile import ImageFile
from servers import HUB_TOOL, Hub, Web, scratch
from workshop import *

ROOT_FOLDER = scratch("root")
shutil.copytree(DEMO, ROOT_FOLDER / "demo")
web = Web(ROOT_FOLDER)
URL = web.plain + "demo"


def fetched(url=None):
    """Requests for weights since the last call."""
    return [q for q in web.requests() if q[4].endswith(".safetensors") and q[1] > 1 << 20]


PROMPT = ["--ids", "1 5 9", "-n", "8", "--print", "ids"]


@test
def a_reference_is_run_from_the_store():
    home = Home()
    home.call("inspect", URL).exits(6, "the store does not have it", "stele pull")
    r = home.call("pull", URL, "--weights", "q8").exits(0)
    path = r.text.strip()
    assert path == str(home.path / "images" / f"{ImageFile.read(path).identity.hex()}.stele")
    want = stele("run", image(DEMO, "q8"), *PROMPT).exits(0).text
    for name in [URL, URL + "/", URL + "#q8", URL.replace("http://", "http://me:secret@") + "?key=1"]:
        assert home.call("run", name, *PROMPT).exits(0).text == want, name
    home.call("inspect", URL + "#q4").exits(6, "#q4")
    for verb in [["inspect"], ["verify"], ["tokenize"], ["logprobs"]]:
        home.call(*verb, URL, *(["a text"] if verb[0] in ["tokenize", "logprobs"] else [])).exits(0)
    assert home.files("partial") == []


@test
def several_types_of_weights_are_several_entries_and_one_must_be_named():
    home = Home()
    for w in ["q8", "f32"]:
        home.call("pull", f"{URL}#{w}").exits(0)
    home.call("run", URL, *PROMPT).exits(2, "#f32, #q8")
    home.call("run", URL + "#f32", *PROMPT).exits(0)
    home.call("pull", URL + "#q9").exits(2, "q9")
    home.call("pull", URL + "#q8", "--weights", "f32").exits(2, "another type")
    assert {e["weights"] for e in home.ls()} == {"q8", "f32"}


@test
def what_the_store_has_is_reused_only_where_source_converter_and_options_are_the_same():
    home = Home()
    shutil.copytree(DEMO, ROOT_FOLDER / "changing")
    url = web.plain + "changing"
    home.call("pull", url, "--weights", "q8", "--stats").exits(0)
    web.requests()
    r = home.call("pull", url, "--weights", "q8", "--stats").exits(0)
    assert r.stats["reused"] and not fetched()
    r = home.call("pull", url, "--weights", "q8", "--stats", "-f").exits(0)
    assert not r.stats["reused"] and fetched()
    assert not home.call("pull", url, "--weights", "q8", "--no-template", "--stats").exits(0).stats["reused"]
    before = home.ls()[0]["identity"]
    tensors = read_safetensors(DEMO / "model.safetensors")
    name = next(n for n, t in tensors.items() if len(t[1]) == 1)
    dtype, shape, raw = tensors[name]
    tensors[name] = (dtype, shape, stored(dtype, np.full(shape[0], 0.25)))
    write_safetensors(ROOT_FOLDER / "changing" / "model.safetensors", tensors)
    os.utime(ROOT_FOLDER / "changing" / "model.safetensors", (1e9, 1e9))
    r = home.call("pull", url, "--weights", "q8", "--stats").exits(0)
    assert not r.stats["reused"] and [e["identity"] for e in home.ls()] != [before]
    entry = home.path / "refs" / home.files("refs")[0]
    entry.write_text(re.sub("converter .*", "converter stele 0.0.1", entry.read_text()))
    assert not home.call("pull", url, "--weights", "q8", "--stats").exits(0).stats["reused"]


@test
def an_image_that_is_not_what_its_name_says_is_refused_and_fetched_anew():
    home = Home()
    path = home.call("pull", URL, "--weights", "q8").exits(0).text.strip()
    shutil.copyfile(image(DEMO, "f32"), path)
    home.call("run", URL, *PROMPT).exits(4, "not the image that its name says")
    assert not home.call("pull", URL, "--weights", "q8", "--stats").exits(0).stats["reused"]
    home.call("run", URL, *PROMPT).exits(0)
    os.truncate(path, 5000)
    assert not home.call("pull", URL, "--weights", "q8", "--stats").exits(0).stats["reused"]
    os.unlink(path)
    home.call("run", URL, *PROMPT).exits(1)
    assert home.ls()[0]["there"] is False and "missing" in home.call("ls").exits(0).text
    home.call("pull", URL, "--weights", "q8").exits(0)


@test
def a_source_that_does_not_answer_is_told_with_what_the_store_has():
    home = Home()
    gone = Web(ROOT_FOLDER)
    url = gone.plain + "demo"
    home.call("pull", url, "--weights", "q8").exits(0)
    gone.stop()
    time.sleep(0.3)
    home.call("pull", url, "--weights", "q8").exits(6, "the store has it", "as q8")
    home.call("run", url, *PROMPT).exits(0)


@test
def two_pulls_of_one_reference_fetch_it_once():
    home = Home()
    slow = Web(ROOT_FOLDER, rate="1m")
    args = [str(BUILD / "stele"), "pull", slow.slow + "demo", "--weights", "q8", "--stats"]
    both = [subprocess.Popen(args, env=os.environ | home.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sorted(json.loads(e.strip().splitlines()[-1])["reused"] for _, e in said) == [False, True], said
    assert home.files("partial") == []


@test
def ls_rm_and_gc_keep_the_store_tidy():
    home = Home()
    home.call("ls").exits(0)
    home.call("gc").exits(0)
    home.call("rm", URL).exits(2, "does not have it")
    q8 = home.call("pull", URL + "#q8").exits(0).text.strip()
    f32 = home.call("pull", URL + "#f32").exits(0).text.strip()
    home.call("run", URL + "#q8", *PROMPT).exits(0)
    entry = next(e for e in home.ls() if e["weights"] == "q8")
    assert entry["bytes"] == os.path.getsize(q8) and 0 < entry["bytes_in_memory"] <= entry["bytes"]
    assert entry["reference"] == URL and URL in home.call("ls").exits(0).text
    other = (home.path / "refs" / home.files("refs")[0]).read_text()  # f32, the first in order
    (home.path / "refs" / "other#f32").write_text(other.replace(f"name {URL}", "name https://other/x"))
    home.call("rm", URL + "#q8").exits(0)
    assert not os.path.exists(q8) and os.path.exists(f32)
    home.call("rm", URL).exits(0)
    assert os.path.exists(f32), "another reference names it"
    home.call("rm", os.path.basename(f32)[:8]).exits(0)
    assert not os.path.exists(f32) and home.files("refs") == []
    shutil.copyfile(image(DEMO, "q8"), home.path / "images" / f"{'0' * 32}.stele")
    left = home.path / "partial" / "left#q8.part"
    left.mkdir()
    (left / "image").write_bytes(b"x" * 10000)
    assert "left#q8" in home.call("gc", "-n").exits(0).text and left.exists()
    home.call("gc").exits(0)
    assert home.files("images") == home.files("partial") == []
    for args in [["ls", "x"], ["ls", "--odd"], ["gc", "x"], ["rm"], ["rm", "abc"], ["rm", "--odd"]]:
        home.call(*args).exits(2)
    for verb in ["ls", "rm", "gc"]:
        assert f"usage: stele {verb}" in stele("help", verb).exits(0).text


@test
def gc_leaves_a_pull_under_way_alone():
    home = Home()
    slow = Web(ROOT_FOLDER, rate="1m")
    p = subprocess.Popen([str(BUILD / "stele"), "pull", slow.slow + "demo", "--chunk", "64K", "--connections", "1"],
                         env=os.environ | home.env, stdout=subprocess.PIPE)  # fmt: skip
    deadline = time.time() + 20
    while not home.files("partial") and time.time() < deadline:
        time.sleep(0.01)
    assert "part" not in home.call("gc").exits(0).text
    assert p.wait() == 0
    assert os.path.exists(p.stdout.read().decode().strip())


@test
def without_a_home_there_is_a_sentence():
    env = {k: "" for k in ["STELE_HOME", "XDG_DATA_HOME", "HOME"]}
    stele("pull", URL, env=env).exits(2, "STELE_HOME")
    home = fresh("home")
    (home / "file").write_text("")
    stele("pull", URL, env={"STELE_HOME": str(home / "file")}).exits(1, "cannot make")


@test(needs=HUB_TOOL)
def a_model_of_the_hub_is_found_by_its_commit_without_being_fetched():
    home, folder = Home(), scratch("hub")
    shutil.copytree(DEMO, folder / "org" / "demo")
    hub = Hub(folder)
    home.call("pull", "hf:org/demo", "--weights", "q8", env=hub.env).exits(0)
    hub.requests()
    assert home.call("pull", "hf:org/demo", "--weights", "q8", "--stats", env=hub.env).exits(0).stats["reused"]
    assert [q["role"] for q in hub.requests()] == ["api"]
    entry = home.ls()[0]
    assert entry["reference"] == "hf:org/demo" and len(entry["revision"]) == 40
    hub.stop()
    home.call("pull", "hf:org/demo", "--weights", "q8", env=hub.env).exits(6, "of revision", entry["revision"])
    home.call("run", "hf:org/demo", *PROMPT).exits(0)


finish()
