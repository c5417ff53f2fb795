#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""--device cuda without a GPU: kernels as host code under a driver made for these tests (fake_driver.c). Whole models
give the CPU's bits; every kind of machine ends in the right way of reaching the weights or in one sentence, with
nothing left behind."""
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "end_to_end"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))
from harness import *
from workshop import *

EMULATE = BUILD / "emulate"
NOTHING = dict(contexts=0, modules=0, streams=0, events=0, graphs=0, allocations=0, host_allocations=0, pinned=0)
_reports = 0


def gpu(*args, machine="", map="", env=None):
    """Calls the command beside the emulated library; the result has `report`, the driver's at exit."""
    global _reports
    _reports += 1
    report = SCRATCH / f"report-{_reports}"
    settings = {"STELE_FAKE_CUDA": f"{machine} report={report}".strip(), "STELE_CUDA_MAP": map, **(env or {})}
    r = call([EMULATE / "stele", *args], env=settings)
    r.report = json.loads(report.read_text()) if report.exists() else None
    return r


def gpu_logits(path, ids, *options, **machine):
    dump = SCRATCH / f"gpu-{_reports}.bin"
    text = " ".join(map(str, ids))
    r = gpu("logprobs", path, "--ids", text, "--dump-logits", dump, "--device", "cuda", *options, **machine).exits(0)
    assert r.report["alive"] == NOTHING, r.report
    found = np.fromfile(dump, "<f4").reshape(len(ids), -1)
    dump.unlink()
    return found


def prompt(n, vocabulary, seed=5):
    return np.random.default_rng(seed).integers(vocabulary, size=n).tolist()


def same(path, ids, *options, **machine):
    want = logits(path, ids, *[o for o in options if o not in ("--vram", 1)])
    got = gpu_logits(path, ids, *options, **machine)
    assert want.tobytes() == got.tobytes(), f"{path.name} {options} {machine}: other bits"


_odd = llama("odd", hidden_size=100, intermediate_size=300, num_hidden_layers=2, num_attention_heads=6, head_dim=22,
             num_key_value_heads=3, vocab_size=259, max_position_embeddings=1024, scale=0.2,
             tie_word_embeddings=False)  # fmt: skip


def on_memory(path):
    return call(["stat", "-f", "-c", "%T", path]).text.strip() in ("tmpfs", "hugetlbfs")


# ---- bits ----


@test
def odd_sizes_have_the_cpus_bits_in_every_type_of_weights_and_of_keys():
    for weights in ("f32", "bf16", "f16", "q8", "q4"):
        for kv, chunk in (("f32", 512), ("f16", 3)) if not FAST else (("f16", 17),):
            same(image(_odd, weights), prompt(50 if FAST else 140, 259), "--kv", kv, "--chunk", chunk)


@slow(needs=data("models/zoo/make_zoo.py"))
def the_zoos_models_have_the_cpus_bits():
    left, families = [], 0
    for folder in sorted(f for f in data("models/zoo").iterdir() if (f / "config.json").exists()):
        target = SCRATCH / f"zoo-{folder.name}.stele"
        if stele("convert", folder, "-o", target).code:
            left.append(folder.name)  # an architecture that convert refuses
            continue
        ids = json.loads((folder / "expected.json").read_text())["inputs"][0]["ids"]
        same(target, ids[:80], "--chunk", 31)
        families += 1
        target.unlink()
    assert families > 20, left


@test
def the_demo_model_has_the_bits_of_bits_txt():
    import make_bits

    for line in (ROOT / "tests" / "fixtures" / "bits.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        weights, kv, chunk, want = line.split()
        if FAST and (weights, kv, chunk) != ("q8", "f16", "512"):
            continue
        got = make_bits.bits(image(DEMO, weights), kv, int(chunk), gpu_logits)
        assert got == want, f"{weights} --kv {kv} --chunk {chunk}: {got} instead of {want}"


@test
def a_run_draws_the_cpus_ids_and_its_later_steps_are_graphs():
    run = ["run", image(_odd, "q8"), "--ids", "1 2 3 4 5", "-n", 40, "--temperature", 1, "--seed", 3, "--print", "ids"]
    r = gpu(*run, "--device", "cuda:0", "--stats")
    assert r.exits(0).out == stele(*run).exits(0).out
    # a step and its logits for each id, but for the first of each shape
    assert r.report["graph_launches"] > 60, r.report
    assert r.stats["device"] == "emulated GPU 0" and r.stats["kernels"] == "cuda" and r.stats["map"] == "ring"
    assert r.report["alive"] == NOTHING, r.report


@test
def sizes_knows_what_a_run_takes_of_the_gpus_memory():
    for context in (64, 1024):
        path, of = image(_odd, "q8"), ["--context", context, "--chunk", 48]
        known = json.loads(stele("sizes", path, "--json", *of).exits(0).text)
        took = gpu("run", path, "--ids", "1 2", "-n", 1, "--print", "ids", "--device", "cuda", "--stats", *of).exits(0).stats
        assert took["scratch_bytes"] == known["gpu_scratch_bytes"], (took, known)
        assert took["kv_bytes"] == known["kv_bytes"], (took, known)
        all = took["vram_bytes"] + took["kv_bytes"] + took["scratch_bytes"]
        assert abs(known["gpu_bytes"] - all) < 0.02 * all, (known["gpu_bytes"], all)


# ---- ways of reaching the weights ----


@test
def each_machine_gets_its_way_and_the_cpus_bits():
    path = image(_odd, "q8")
    want = stele("run", path, "--ids", "9 8 7", "-n", 9, "--print", "ids").exits(0).out
    on_disk, in_memory = path, Path("/dev/shm") / f"stele-test-{os.getpid()}.stele"
    try:
        shutil.copyfile(path, in_memory)
        for machine, where, way in (
            ("host=1 register=1", on_disk, "host"),
            ("host=0 register=1", on_disk, "register"),
            ("host=0 register=0", on_disk, "ring"),
            ("host=0 register=0", in_memory, "remap"),
            ("host=0 register=1", in_memory, "register"),
        ):
            if where == on_disk and way == "ring" and on_memory(path):
                way = "remap"  # /tmp is in memory on this machine
            for vram in ([], ["--vram", 1], ["--vram", 60000]):
                r = gpu("run", where, "--ids", "9 8 7", "-n", 9, "--print", "ids", "--device", "cuda", "--stats", *vram,
                        machine=machine)  # fmt: skip
                assert r.exits(0).out == want, (machine, vram)
                assert r.stats["map"] == way, (machine, r.stats["map"])
                assert r.report["alive"] == NOTHING, r.report
                kept = r.stats["vram_bytes"]
                assert kept < 65536 if vram else kept > 100000, (vram, kept)
    finally:
        in_memory.unlink(missing_ok=True)


@test
def pinning_that_fails_at_any_slice_ends_in_the_ring_with_nothing_left_behind():
    path = image(_odd, "f32")  # nine slices of 64 KiB
    want = stele("run", path, "--ids", "9 8 7", "-n", 5, "--print", "ids").exits(0).out
    for sticky in (0, 1):
        for n in (1, 2, 5):
            r = gpu("run", path, "--ids", "9 8 7", "-n", 5, "--print", "ids", "--device", "cuda", "--stats",
                    machine=f"register=1 pin_fails={n} sticky={sticky}")  # fmt: skip
            assert r.exits(0).out == want
            assert r.stats["map"] in ("ring", "remap") and r.report["pins"] >= n, (n, r.stats["map"], r.report)
            assert r.report["alive"] == NOTHING, r.report
            gpu("run", path, "--ids", "9", "-n", 1, "--device", "cuda", map="register",
                machine=f"register=1 pin_fails={n} sticky={sticky}").exits(
                1, "pinning the image", "CUDA_ERROR_LAUNCH_FAILED")  # fmt: skip


@test
def a_forced_way_is_taken_or_refused_with_its_reason():
    path = image(_odd, "q8")
    run = ["run", path, "--ids", "1", "-n", 1, "--print", "ids", "--device", "cuda", "--stats"]
    assert gpu(*run, machine="host=1 register=1", map="ring").exits(0).stats["map"] == "ring"
    assert gpu(*run, machine="host=1 register=1", map="register").exits(0).stats["map"] == "register"
    gpu(*run, map="host").exits(2, "STELE_CUDA_MAP=host", "attribute 100 is 0")
    gpu(*run, map="register").exits(2, "STELE_CUDA_MAP=register", "attribute 113 is 0")
    gpu(*run, map="sideways").exits(2, "it is host, register, remap or ring")
    if not on_memory(path):
        gpu(*run, map="remap").exits(2, "STELE_CUDA_MAP=remap", "tmpfs")


@test(needs=Path("/dev/shm"))
def a_second_mapping_shares_its_pages_with_the_first():
    in_memory = Path("/dev/shm") / f"stele-test-{os.getpid()}.stele"
    try:
        shutil.copyfile(image(_odd, "f32"), in_memory)
        run = ["run", in_memory, "--ids", "1 2", "-n", 3, "--print", "ids", "--device", "cuda", "--stats"]
        r, other = gpu(*run, "--vram", 1, map="remap"), gpu(*run, map="ring")
        assert r.exits(0).out == other.exits(0).out
        # pages of the weights would be private after a copy on write: the image has 600 KB
        assert r.stats["private_dirty_bytes"] < other.stats["private_dirty_bytes"] + 200000
        call(["cmp", in_memory, image(_odd, "f32")]).exits(0)
    finally:
        in_memory.unlink(missing_ok=True)


_larger = llama("larger", hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4, head_dim=64,
                num_key_value_heads=2, vocab_size=1000, max_position_embeddings=256, tie_word_embeddings=False)  # fmt: skip


def logged(path, *options, machine="", **more):
    """[("copy", to, bytes) | ("kernel", name)] as they were done, which a GPU of the tests does no earlier than it must,
    and ("put", name) when a kernel was given to it."""
    log = SCRATCH / "log"
    r = gpu("run", path, "--ids", "9 8 7", "-n", 4, "--print", "ids", "--device", "cuda", "--stats", *options,
            machine=f"{machine} log={log}", **more).exits(0)  # fmt: skip
    lines = [line.split() for line in log.read_text().splitlines()]
    return r, [("copy", int(l[2]), int(l[3])) if l[0] == "copy" else (l[0], l[1]) for l in lines if l[:2] != ["copy", "out"]]


@test
def weights_come_in_plan_order_and_compute_goes_on_behind_them():
    path = image(_larger, "f32")
    want = stele("run", path, "--ids", "9 8 7", "-n", 4, "--print", "ids").exits(0).out
    for way, machine in (("host", "host=1"), ("register", "register=1"), ("ring", "")):
        r, log = logged(path, machine=machine, map=way)
        assert r.out == want and r.stats["map"] == way
        large = [(i, x[1]) for i, x in enumerate(log) if x[0] == "copy" and x[2] >= 16384]
        assert len(large) > 50 and [to for _, to in large] == sorted(to for _, to in large), way
        # a ring is fed by the thread that starts kernels: those that wait for what it has brought are given before
        kernels = [i for i, x in enumerate(log) if x[0] == ("put" if way == "ring" else "kernel")]
        before = sum(i < large[-1][0] for i in kernels)
        assert before > 6 * 8, f"{way}: {before} kernels ran before the last weights came"
        assert kernels[0] < large[len(large) // 6][0], way


@slow
def weights_that_do_not_fit_come_in_each_step_and_the_others_once():
    path = image(_larger, "f32")
    want = stele("run", path, "--ids", "9 8 7", "-n", 4, "--print", "ids").exits(0).out
    whole = logged(path, map="ring")[0].stats["vram_bytes"]
    for vram in (whole // 2, whole // 7, 1):
        for way, machine in (("ring", ""), ("ring", "eager=1"), ("register", "register=1"), ("host", "host=1")):
            r, log = logged(path, "--vram", vram, machine=machine, map=way)
            kept = r.stats["vram_bytes"]
            assert r.out == want and r.report["alive"] == NOTHING and kept <= max(vram, 40000), (way, vram, kept)
            copied = sum(x[2] for x in log if x[0] == "copy")
            streamed = 4 * (whole - kept) if way == "ring" else 0  # a prefill and three more steps
            assert streamed <= copied - kept + 4096 and copied <= kept + streamed + 40000, (way, vram, copied, kept)


@slow(needs=Path(shutil.which("fincore") or "fincore"))
def a_cold_image_is_read_past_the_page_cache_but_for_what_comes_in_each_step():
    large = llama("large", hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=4, head_dim=128,
                  num_key_value_heads=2, vocab_size=300, max_position_embeddings=256, tie_word_embeddings=False)  # fmt: skip
    path = fresh("cold") / "cold.stele"
    shutil.copyfile(image(large, "f32"), path)
    if on_memory(path):
        return
    run = ["run", path, "--ids", "9 8 7", "-n", 1, "--print", "ids", "--device", "cuda"]
    want = stele(*run[:-2]).exits(0).out
    size, resident = path.stat().st_size, lambda: int(call(["fincore", "-b", "-n", "-o", "RES", path]).text)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        # One fault reads 8 MiB ahead on some machines.
        for options, least, most in (([], 0, 0.5), (["--vram", 1], 0.9, 1.01)):  # whole pages
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert size > 60_000_000 and resident() < size / 50, (size, resident())
            assert gpu(*run, *options, map="ring").exits(0).out == want
            assert least * size <= resident() <= most * size, (options, resident(), size)


# ---- sentences ----


@test
def without_a_library_a_driver_or_a_gpu_one_sentence_says_so_and_auto_takes_the_cpu():
    path = image(_odd, "q8")
    run = ["run", path, "--ids", "1", "-n", 1, "--print", "ids", "--device"]
    want = stele(*run[:-1]).exits(0).out
    if not (BUILD / "libstele-cuda.so").exists():
        stele(*run, "cuda").exits(1, "no GPU: libstele-cuda.so is not beside the program", "make cuda")
    assert stele(*run, "auto").exits(0).out == want
    alone = fresh("alone")  # the library without the driver beside it
    for name in ("stele", "libstele-cuda.so"):
        shutil.copy(EMULATE / name, alone / name)
    env = {"LD_LIBRARY_PATH": ""}
    if call(["sh", "-c", "ldconfig -p | grep -q libcuda.so.1"]).code:
        call([alone / "stele", *run, "cuda"], env=env).exits(1, "no GPU: the NVIDIA driver is not installed")
    (alone / "libcuda.so.1").write_bytes(b"")
    call([alone / "stele", *run, "cuda"], env=env).exits(1, "no GPU: the NVIDIA driver is not installed")
    call(["gcc", "-shared", "-o", alone / "libcuda.so.1", "-x", "c", "/dev/null"]).exits(0)
    call([alone / "stele", *run, "cuda"], env=env).exits(1, "no GPU: the NVIDIA driver is too old, it lacks cuInit")
    for machine, says in (
        ("version=11040", "the NVIDIA driver is too old, it is CUDA 11.4's; 12.0 or later is needed"),
        ("devices=0", "the NVIDIA driver finds none"),
        ("init=100", "the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE"),
    ):
        r = gpu(*run, "cuda", machine=machine).exits(1, says)
        assert r.error.count("\n") == 1 and r.report["alive"] == NOTHING
        assert gpu(*run, "auto", machine=machine).exits(0).out == want
        gpu("devices", machine=machine).exits(0)


@test
def devices_that_are_not_there_and_names_that_are_none_are_refused():
    path = image(_odd, "q8")
    run = ["run", path, "--ids", "1", "-n", 1, "--print", "ids", "--device"]
    gpu(*run, "cuda:1").exits(2, "no GPU cuda:1: there are 1")
    gpu(*run, "cuda:1", machine="devices=2").exits(0)
    for name in ("cuda:", "cuda:x", "cuda:-1", "cuda:1x", "gpu", "cuda1", "cuda:99999"):
        gpu(*run, name).exits(2, f'no device "{name}"')


@test
def a_plan_with_an_op_that_the_gpu_lacks_is_refused_by_name_before_anything_is_opened():
    place = fresh("lacking")
    shutil.copy(EMULATE / "stele", place)
    call(["gcc", "-shared", "-fPIC", f"-I{ROOT}/blas", f"-I{ROOT}/image", f'-DREAL="{EMULATE}/libstele-cuda.so"', "-o",
          place / "libstele-cuda.so", ROOT / "tests" / "cuda" / "lacking_library.c"]).exits(0)  # fmt: skip
    run = [place / "stele", "run", image(_odd, "q8"), "--ids", "1", "-n", 1, "--print", "ids", "--device"]
    for op in ("embed", "norm", "linear", "rope_kv", "attention", "logits"):
        env = {"LACKS": op, "STELE_FAKE_CUDA": ""}
        call([*run, "cuda"], env=env).exits(3, f" of the plan, {op}, is none that --device cuda computes")
        call([*run, "auto"], env=env).exits(0)
    assert call([*run, "cuda"], env={"LACKS": "experts", "STELE_FAKE_CUDA": ""}).code == -6  # it is opened


@test
def what_does_not_fit_is_said_with_the_bytes_needed_and_free():
    path = image(_odd, "f32")
    run = ["run", path, "--ids", "1", "-n", 1, "--print", "ids", "--device"]
    gpu(*run, "cuda", machine="memory=100000").exits(1, "out of memory on the GPU", "need", "of 100000 are free")
    for memory in range(1000000, 20000000, 1000000):
        r = gpu(*run, "cuda", machine=f"memory={memory}")
        assert r.code in (0, 1) and r.report["alive"] == NOTHING, (memory, r.report)
        if r.code:
            r.exits(1, "out of memory on the GPU", "free")
    assert r.code == 0
    gpu(*run, "auto", machine="memory=100000").exits(0)
    codes = []
    for n in range(1, 20):  # another process takes memory in between: of weights fewer are kept then
        r = gpu(*run, "cuda", machine=f"alloc_fails={n}")
        codes.append(r.code)
        assert r.report["alive"] == NOTHING
        if r.code:
            r.exits(1, "out of memory on the GPU: ", " need ", " are free")
    assert codes[0] == 1 and codes[codes.index(0) :] == [0] * codes.count(0) and 0 in codes, codes


@test
def a_copy_or_a_kernel_that_fails_is_a_sentence_and_nothing_is_left_behind():
    path = image(_odd, "q8")
    run = ["run", path, "--ids", "1 2 3", "-n", 4, "--print", "ids", "--device", "cuda"]
    whole = gpu(*run).exits(0).report
    for kind in ("copy", "kernel"):
        calls = whole["copies" if kind == "copy" else "kernels"]
        for n in sorted({1, 2, 3, 7, calls // 3, calls // 2, calls}):
            for sticky in (0, 1):
                r = gpu(*run, machine=f"{kind}_fails={n} sticky={sticky}")
                r.exits(1, "the GPU failed at", "CUDA_ERROR_LAUNCH_FAILED")
                assert r.report["alive"] == NOTHING, (kind, n, sticky, r.report)


@test
def keys_beyond_binary16_are_said_as_the_cpu_says_it():
    huge = llama("huge", scale=40.0, max_position_embeddings=256)
    for kv in ("f16", "f32"):
        for ids in ("1 2 3", "5 6 7 8 9 10 11 12"):
            run = ["run", image(huge, "q8"), "--ids", ids, "-n", 8, "--print", "ids", "--kv", kv]
            want, got = stele(*run), gpu(*run, "--device", "cuda")
            assert (got.code, got.error) == (want.code, want.error), (want.error, got.error)
            assert got.report["alive"] == NOTHING


@test
def an_image_cut_short_while_it_is_brought_is_damage():
    env, whole = dict(os.environ, STELE_FAKE_CUDA="", STELE_CUDA_MAP="ring"), image(TEXT_MODEL, "q8")
    short = fresh("short") / "short.stele"
    shutil.copyfile(whole, short)
    pipe = subprocess.PIPE
    p = subprocess.Popen([EMULATE / "stele", "run", short, "--raw", "-n", "2", "--device", "cuda", "-"], stdin=pipe,
                         stdout=pipe, stderr=pipe, env=env)  # fmt: skip
    mapped = Path(f"/proc/{p.pid}/maps")
    while "short.stele" not in mapped.read_text():
        time.sleep(0.02)
    time.sleep(1)  # the session is open, and waits for its prompt
    os.truncate(short, whole.stat().st_size // 2)
    out, err = p.communicate(b"Once upon a time", timeout=120)
    assert p.returncode == 4 and b"cut short" in err, (p.returncode, err)


@slow
def the_script_for_machines_with_a_gpu_runs_and_finds_the_bits():
    place = fresh("gpu-check")
    for name in ("stele", "stele-convert", "libstele-cuda.so", "libcuda.so.1", "bench_gpu"):
        shutil.copy(EMULATE / name, place / name)
    shutil.copy(ROOT / "scripts" / "gpu-check", place)
    r = call([place / "gpu-check", "--small", "--work", place / "work"], env={"STELE_FAKE_CUDA": "register=1"}).exits(0)
    assert r.text.splitlines()[-1].endswith(" passed, 0 failed") and r.text.count("the CPU's bits") >= 20, r.text
    rows = [json.loads(line) for line in (place / "work" / "results.json").read_text().splitlines()]
    assert [x["weights"] for x in rows] == ["q8", "q4", "bf16"] and all(x["map"] == "register" for x in rows)
    assert all(set(x["decode"]) == {"1", "8", "32"} and x["prefill_s"] > 0 and x["upload_s"] > 0 for x in rows), rows
    assert all(x["warm_ms"] > 0 and x["cold_ms"] > 0 for x in rows), rows
    table = [line for line in r.text.splitlines() if line.startswith("|")]
    assert len(table) == 5 and all(line.count("|") == 10 for line in table), table
    none = call([place / "gpu-check", "--small", "--work", place / "none"], env={"STELE_FAKE_CUDA": "devices=0"})
    none.exits(1, "no cuda:0 on this machine; nothing was checked")


finish()
