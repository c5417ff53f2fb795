#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stele run of a reference that the store lacks: computed while it arrives, the answer of the finished image bit for bit,
nothing on standard output before all of it is there and right, and the image in the store behind it."""
import ctypes
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time

from harness import *
from servers import HUB_TOOL, Gate, Hub, Web, scratch
from workshop import *

ROOT_FOLDER = scratch("root")
shutil.copytree(DEMO, ROOT_FOLDER / "demo")
MIDDLE = llama("middle", hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8, head_dim=32,
               vocab_size=4000, dtype="BF16", tie_word_embeddings=False, max_position_embeddings=4096)  # fmt: skip
shutil.copytree(MIDDLE, ROOT_FOLDER / "middle")  # 17 MB
SIZE = (MIDDLE / "model.safetensors").stat().st_size
MADE = converted(MIDDLE)
shutil.copyfile(MADE, ROOT_FOLDER / "m.stele")
stele("pack", MADE, "-o", ROOT_FOLDER / "m.stele.zst").exits(0)
web = Web(ROOT_FOLDER)

PROMPT = ["--ids", "1 5 9", "-n", "8", "--print", "ids"]


class Filling(Home):
    """One that tells how far it is."""

    def start(self, *args, **kwargs):
        return subprocess.Popen([str(a) for a in [BUILD / "stele", *args]], env=os.environ | self.env, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **kwargs)  # fmt: skip

    def begun(self):
        """The image that is being written."""
        return next(self.path.glob("partial/*.part/image"), None)

    def packed(self):
        """How far it is, by its journal."""
        image = self.begun()
        return pulled_bytes(image.parent.with_suffix("")) if image else 0

    def has(self, count=1):
        assert len(self.files("images")) == len(self.files("refs")) == count, (self.files("images"), self.files("refs"))
        assert self.files("partial") == []


def wait_until(what, seconds=30):
    deadline = time.time() + seconds
    while not what():
        assert time.time() < deadline, "it took too long"
        time.sleep(0.005)


def child(process):
    """The pull that a run has started."""
    found = []
    wait_until(lambda: found.extend(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) or found)
    return int(found[0])


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def fetched():
    """Requests for weights since the last call."""
    return [q for q in web.requests() if q[4].endswith((".safetensors", ".stele", ".zst")) and q[1] > 1 << 10]


# ---- the same answer ----


@test
def a_reference_that_the_store_lacks_is_fetched_and_answered_and_the_next_run_finds_it():
    for name, made in [("demo", image(DEMO, None)), ("demo#q8", image(DEMO, "q8")), ("middle", MADE), ("m.stele", MADE),
                       ("m.stele.zst", MADE)]:  # fmt: skip
        home, want = Filling(), stele("run", made, *PROMPT).exits(0).out
        web.requests()
        for again in (False, True):
            r = home.call("run", web.plain + name, *PROMPT).exits(0)
            assert r.out == want and r.err == b"", (name, r.out, r.err)
            assert bool(fetched()) != again, name
            home.has()
        home.call("verify", web.plain + name).exits(0)


@test
def text_from_standard_input_json_and_stats_are_what_they_are_for_a_file():
    made, home = image(DEMO, "q8"), Filling()
    for args, text in [(["-n", "20"], b"One day, Ben"), (["-n", "20", "--print", "json", "One day,"], b""), (["-n", "0", "A"], b"")]:
        want = stele("run", made, *args, stdin=text).exits(0).out
        assert Filling().call("run", web.plain + "demo#q8", *args, stdin=text).exits(0).out == want, args
    r = home.call("run", web.plain + "demo#q8", "-n", "2", "--stats", "One day,").exits(0)
    assert r.stats["decode_tokens"] == 1 and r.error.count("\n") == 1


@test(needs=[data("models/zoo/gpt-oss")])
def weights_out_of_order_in_shards_tied_or_of_experts_give_the_same_ids():
    folders = [data("models/zoo/gpt-oss"), llama("odd", hidden_size=72, head_dim=18, intermediate_size=100, vocab_size=77),
               llama("tied", hidden_size=64, intermediate_size=130, vocab_size=201, dtype="F16", tie_word_embeddings=True)]
    backwards = copied(MIDDLE)
    tensors = read_safetensors(backwards / "model.safetensors")
    write_safetensors(backwards / "model.safetensors", dict(reversed(tensors.items())))
    shards = copied(MIDDLE)
    names, index = list(tensors), {}
    random.Random(3).shuffle(names)
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        write_safetensors(shards / file, {n: tensors[n] for n in names[i::3]})
        index |= {n: file for n in names[i::3]}
    (shards / "model.safetensors").unlink()
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for i, folder in enumerate([*folders, backwards, shards]):
        shutil.copytree(folder, ROOT_FOLDER / f"various-{i}")
        ids = " ".join(str(7 * k % 60) for k in range(50))
        args = ["--ids", ids, "-n", "12", "--print", "ids", "--raw"]
        want = stele("run", image(folder, None), *args).exits(0).out
        for more in [[], ["--chunk", "7", "--threads", "1"]]:
            home = Filling()
            assert home.call("run", f"{web.plain}various-{i}", *args, *more).exits(0).out == want, (folder, more)
            home.has()


@test
def other_verbs_that_compute_fetch_too_and_verify_comes_first():
    made = image(DEMO, "q8")
    for args in [["logprobs", None, "--top", "2", "One day, Ben"], ["choose", None, "--choices", " he, she", "One day,"],
                 ["run", None, "-n", "5", "--verify", "One day,"]]:  # fmt: skip
        home, named = Filling(), lambda what: [a or what for a in args]
        assert home.call(*named(web.plain + "demo#q8")).exits(0).out == stele(*named(made)).exits(0).out, args
        home.has()
    for verb in ["inspect", "verify", "tokenize", "warm"]:
        Filling().call(verb, web.plain + "demo").exits(6, "the store does not have it", "stele pull")


# ---- while it arrives ----


@test
def what_has_come_is_computed_while_the_rest_is_held_back_and_nothing_is_printed():
    ids = " ".join(str(7 * k % 4000) for k in range(1500))
    args = ["--ids", ids, "-n", "4", "--print", "ids", "--threads", "1"]
    ticks = lambda pid: sum(int(n) for n in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    for name in ["middle", "m.stele"]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        want = stele("run", MADE, *args).exits(0).out
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        at = SIZE if name == "middle" else (ROOT_FOLDER / name).stat().st_size
        gate, home = Gate(ROOT_FOLDER, at * 9 // 10), Filling()
        p = home.start("run", gate.url + name, *args)
        assert gate.held.wait(30)
        wait_until(lambda: ticks(p.pid) / os.sysconf("SC_CLK_TCK") > 0.5 * used)
        assert home.packed() < at
        os.set_blocking(p.stdout.fileno(), False)
        assert p.stdout.read() is None, "something was printed before all was there"
        os.set_blocking(p.stdout.fileno(), True)
        gate.open()
        out, err = p.communicate()
        assert (p.returncode, out, err) == (0, want, b""), (p.returncode, out, err)
        home.has()


@test
def a_begun_image_is_nobody_elses():
    gate, home = Gate(ROOT_FOLDER, SIZE // 2), Filling()
    p = home.start("run", gate.url + "middle", *PROMPT)
    assert gate.held.wait(30)
    wait_until(lambda: home.packed() > 1 << 20)
    for verb in ["run", "inspect", "verify"]:
        stele(verb, home.begun(), *(PROMPT if verb == "run" else [])).exits(3, "not a stele image")
    gate.open()
    assert p.communicate()[0] == stele("run", MADE, *PROMPT).exits(0).out


@test
def two_runs_at_once_fetch_it_once():
    gate, home = Gate(ROOT_FOLDER, SIZE // 2), Filling()
    both = [home.start("run", gate.url + "middle", *PROMPT)]
    assert gate.held.wait(30)
    both.append(home.start("run", gate.url + "middle", *PROMPT))
    waiting = both[1].stderr.readline()
    assert b"waiting" in waiting, waiting
    gate.open()
    want = stele("run", MADE, *PROMPT).exits(0).out
    assert [p.communicate()[0] for p in both] == [want, want] and [p.returncode for p in both] == [0, 0]
    home.has()


@test
def where_the_first_of_two_is_killed_the_other_goes_on():
    gate, home = Gate(ROOT_FOLDER, SIZE // 2), Filling()
    first = home.start("run", gate.url + "middle", *PROMPT)
    assert gate.held.wait(30)
    wait_until(lambda: home.packed() > 1 << 20)
    other = home.start("run", gate.url + "middle", *PROMPT)
    assert b"waiting" in other.stderr.readline()
    first.kill()
    first.communicate()
    gate.open()
    out, err = other.communicate()
    assert (other.returncode, out) == (0, stele("run", MADE, *PROMPT).exits(0).out) and b"going on" in err, err
    home.has()


# ---- failures ----


def fails(home, process, code, *says):
    out, err = process.communicate()
    assert process.returncode == code and out == b"", (process.returncode, out, err)
    assert err.startswith(b"stele run: ") and err.count(b"\n") == 1, err
    for part in says:
        assert part.encode() in err, err
    assert home.files("images") == home.files("refs") == []


@test
def a_source_that_goes_away_ends_the_run_and_what_came_is_kept():
    gate, home = Gate(ROOT_FOLDER, SIZE // 2), Filling()
    p = home.start("run", gate.url + "middle", *PROMPT)
    assert gate.held.wait(30)
    wait_until(lambda: home.packed() > 1 << 20)
    gate.shut()
    fails(home, p, 6, "model.safetensors", "what came is kept")
    assert home.packed() > 1 << 20


@test
def a_pull_that_is_killed_ends_the_run_and_the_next_goes_on():
    for kill in (signal.SIGKILL, signal.SIGTERM):
        gate, home = Gate(ROOT_FOLDER, SIZE // 2), Filling()
        p = home.start("run", gate.url + "middle", *PROMPT)
        assert gate.held.wait(30)
        wait_until(lambda: home.packed() > 1 << 20)
        os.kill(child(p), kill)
        fails(home, p, 1, "was ended", "what came is kept")
        assert home.packed() > 1 << 20
        gate.open()
        r = home.call("run", gate.url + "middle", *PROMPT).exits(0, "going on")
        assert r.out == stele("run", MADE, *PROMPT).exits(0).out
        home.has()


@test
def a_run_that_ends_takes_its_pull_with_it():
    for end in (signal.SIGKILL, signal.SIGINT, None):
        gate, home = Gate(ROOT_FOLDER, SIZE // 2), Filling()
        args = PROMPT if end else ["--ids", "4000000", "--print", "ids"]
        p = home.start("run", gate.url + "middle", *args)
        pid = child(p)
        if end:
            assert gate.held.wait(30)
            p.send_signal(end)
        out, err = p.communicate()
        assert out == b"" and (end or p.returncode == 2), (p.returncode, err)
        wait_until(lambda: not alive(pid))
        gate.open()
        home.call("run", gate.url + "middle", *PROMPT).exits(0)
        home.has()


@test
def bytes_that_do_not_have_their_digest_end_the_run_and_nothing_is_kept():
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_CONFIG_FILE": "/dev/null"}
    wrong = Web(ROOT_FOLDER, checksum="A" * 43 + "=")
    home = Filling()
    home.env |= keys | {"AWS_ENDPOINT_URL": wrong.base}
    fails(home, home.start("run", "s3://bucket/middle", *PROMPT), 4, "model.safetensors", "SHA-256")
    assert home.files("partial") == []
    for name in ["m.stele", "m.stele.zst"]:
        raw = bytearray((ROOT_FOLDER / name).read_bytes())
        for at in [len(raw) - 300000, len(raw) // 2, len(raw) // 5]:
            raw[at] ^= 0x10
            (ROOT_FOLDER / f"bad-{at}-{name}").write_bytes(raw)
            raw[at] ^= 0x10
            home = Filling()
            fails(home, home.start("run", f"{web.plain}bad-{at}-{name}", *PROMPT), 4)
            assert home.files("partial") == []


@test
def a_full_disk_ends_the_run_and_the_next_goes_on():
    home = Filling()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
    fails(home, home.start("run", web.plain + "middle", *PROMPT, preexec_fn=limit), 1, "File too large")
    assert home.call("run", web.plain + "middle", *PROMPT).exits(0).out == stele("run", MADE, *PROMPT).exits(0).out
    home.has()


@test
def a_number_that_is_none_or_a_source_that_changes_ends_the_run():
    tensors = read_safetensors(MIDDLE / "model.safetensors")
    dtype, shape, raw = tensors["model.layers.3.mlp.up_proj.weight"]
    bad = copied(MIDDLE)
    write_safetensors(bad / "model.safetensors", tensors | {"model.layers.3.mlp.up_proj.weight": (dtype, shape, raw[:512] + b"\xc0\x7f" + raw[514:])})
    shutil.copytree(bad, ROOT_FOLDER / "nan")
    home = Filling()
    fails(home, home.start("run", web.plain + "nan", *PROMPT), 3, "layers.3.mlp.up_proj", "NaN")
    assert home.files("partial") == []
    shutil.copytree(MIDDLE, ROOT_FOLDER / "changing")
    gate = Gate(ROOT_FOLDER, SIZE // 2)
    p = home.start("run", gate.url + "changing", *PROMPT)
    assert gate.held.wait(30)
    wait_until(lambda: home.packed() > 1 << 20)
    with open(ROOT_FOLDER / "changing" / "model.safetensors", "ab") as file:
        file.write(bytes(64))
    gate.drop()  # the rest is asked for anew
    fails(home, p, 4, "changed while it was fetched")


@test
def what_is_wrong_with_the_call_is_said_as_ever():
    home = Filling()
    home.call("run", web.plain + "absent", *PROMPT).exits(6, "404")
    home.call("run", web.plain + "demo#q9", *PROMPT).exits(2, "q9")
    home.call("run", "http://127.0.0.1:1/x", *PROMPT).exits(6, "connect")
    home.call("run", web.plain + "m.stele#q8", *PROMPT).exits(2, "weights")
    home.call("run", web.plain + "demo", "--temperature", "-1").exits(2)
    home.call("run", web.plain + "demo", "-n", "1", "--context", "99999999", "A").exits(2, "context")
    home.call("run", web.plain + "demo", "-n", "1", "One day,").exits(0)


@test(needs=HUB_TOOL)
def a_model_of_the_hub_is_run_by_its_name_and_offline_means_offline():
    folder = scratch("hub")
    shutil.copytree(MIDDLE, folder / "org" / "middle")
    hub, home = Hub(folder), Filling()
    home.call("run", "hf:org/middle", *PROMPT, env=hub.env | {"HF_HUB_OFFLINE": "1"}).exits(6, "HF_HUB_OFFLINE")
    assert home.call("run", "hf:org/middle", *PROMPT, env=hub.env).exits(0).out == stele("run", MADE, *PROMPT).exits(0).out
    hub.stop()
    home.call("run", "hf:org/middle", *PROMPT, env=hub.env | {"HF_HUB_OFFLINE": "1"}).exits(0)


# ---- the library ----


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 1024)]


def arrive(channel, reference=b"http://x/y"):
    lib, img, err = ctypes.CDLL(str(BUILD / "libstele.so.1")), ctypes.c_void_p(), Error()
    status = lib.stele_image_arrive(ctypes.byref(img), reference, channel, ctypes.byref(err))
    return lib, status, img, err


@test
def another_program_computes_from_what_arrives_and_a_writer_that_talks_nonsense_is_refused():
    if os.environ.get("STELE_SAN"):
        return
    for words in [[], [b""], [b"x"], [b"\x01" * 100], [b"\x01" + bytes(3700)]]:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for w in words:
            theirs.send(w)
        theirs.close()
        _, status, img, err = arrive(mine.detach())
        assert status == 1 and not img and b"http://x/y" in err.text, (words, status, err.text)
    home = Filling()
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    url = web.plain + "middle"
    p = subprocess.Popen([str(BUILD / "stele-pull"), "--arrival", str(theirs.fileno()), url], pass_fds=[theirs.fileno()],
                         env=os.environ | home.env, stdout=subprocess.PIPE)  # fmt: skip
    theirs.close()
    lib, status, img, err = arrive(mine.detach(), url.encode())
    assert status == 0 and img, err.text
    session = ctypes.c_void_p()
    assert lib.stele_session_open(ctypes.byref(session), img, None, ctypes.byref(err)) == 0, err.text
    assert lib.stele_image_verify(img, ctypes.byref(err)) == 2 and b"arriving" in err.text
    assert lib.stele_image_unchanged(img, ctypes.byref(err)) == 0, err.text
    lib.stele_session_close(session)
    lib.stele_image_close(img)
    assert p.wait() == 0 and p.stdout.read() == b""
    home.has()


finish()
