#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The laws of DESIGN.md as tests: what happens before the first op does not depend on the model's size or vocabulary, the
weights are never private, nothing is allocated per token, and architecture ends at the converter."""
import re
import resource
import signal
import time

import numpy as np

import imagefile as im
from harness import *
from workshop import *

LAWS = ROOT / "tests" / "laws"


def tool(name, *flags):
    """A C helper of tests/laws, compiled once."""
    target = SCRATCH / Path(name).stem
    if not target.exists():
        call([os.environ.get("CC", "gcc"), "-O2", "-o", target, LAWS / name, *flags]).exits(0)
    return target


def disk_folder(name):
    """A folder on a disk file system: on tmpfs the kernel calls the pages of an image dirty."""
    kind = call(["stat", "-f", "-c", "%T", SCRATCH]).text.strip()
    if kind != "tmpfs":
        return fresh(name)
    folder = BUILD / "test-scratch" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def numbers_of(*args, env=None):
    """A run under watch_start: ({system call: count}, Rss of the image in KiB, its mode)."""
    report = SCRATCH / "report"
    call([tool("watch_start.c"), report, BUILD / "stele", *args], env=env).exits(0)
    lines = dict(line.split() for line in report.read_text().splitlines())
    rss, mode = int(lines.pop("rss")), lines.pop("mode")
    return {int(k): int(v) for k, v in lines.items()}, rss, mode


ONE = ["--ids", "1", "-n", "0", "--print", "ids", "--threads", "1"]


# ---- images of any size, nearly all of it holes ----


def sparse_image(folder, vocabulary, hidden, layers=2, context=4096, matrices=0):
    """An image whose embedding, head and `matrices` spare matrices are holes of the file: as large as asked for, and on
    the disk as small as its layers."""
    b = im.Builder(vocabulary, context)
    x, n = b.slot(hidden), b.slot(hidden)
    qkv, att = b.slot(3 * 16), b.slot(16)
    rope = b.rope([1.0] * 8)
    w = lambda rows, k: np.full((rows, k), 1e-3, "<f4")
    rows = []

    def hole(name, rows, columns):
        b.table.append(im.Tensor(name, im.F32, im.PANELS, rows, columns, 0, im.padded(rows, 16) * im.padded(columns, 32) * 4))
        return len(b.table) - 1

    b.op(im.EMBED, x, hole("embedding", vocabulary, hidden), 1.0)
    for i in range(layers):
        state = b.kv(1, 16)
        b.norm(x, n, b.vector(f"{i}.norm", np.ones(hidden)), 1e-5)
        b.linear(n, qkv, b.matrix(f"{i}.qkv", w(48, hidden)), im.NONE, im.NONE, 0, 1.0)
        b.op(im.ROPE_KV, qkv, 0, 16, 32, 1, im.NONE, im.NONE, 0.0, rope, state)
        b.op(im.ATTENTION, qkv, 0, att, 1, 0.25, state, 0.0, im.NONE)
        b.linear(att, x, b.matrix(f"{i}.out", w(hidden, 16)), im.NONE, x, 0, 1.0)
    b.op(im.LOGITS, x, hole("head", vocabulary, hidden), 1.0)
    at = im.padded(len(b.weights), 64)
    for t in b.table:
        if t.name in ("embedding", "head"):
            t.offset, at = at, at + im.padded(t.length, 64)
    made = b.image()
    made.section(im.WEIGHTS).length = at
    path = folder / f"sparse-{vocabulary}-{hidden}.stele"
    made.write(path)
    return path


@test
def the_sparse_images_of_these_tests_run():
    folder = disk_folder("sparse")
    stele("run", sparse_image(folder, 512, 64), *ONE).exits(0)


@test
def system_calls_and_touched_pages_up_to_the_first_op_are_the_same_for_1_mb_and_8_gb_and_for_any_vocabulary():
    folder = disk_folder("sparse")
    small, large = sparse_image(folder, 2000, 64), sparse_image(folder, 1 << 20, 1024)
    assert small.stat().st_size < 2 << 20 and large.stat().st_size > 8 << 30
    wide = sparse_image(folder, 512, 1024)  # the same rows and layers as the large one
    for path in (small, wide, large):
        stele("run", path, *ONE).exits(0)  # warm
    calls = {}
    for path in (small, wide, large):
        found, rss, mode = numbers_of("run", path, *ONE)
        calls[path] = (found, rss)
        assert mode == "r--s", mode
    assert calls[small][0] == calls[large][0] == calls[wide][0], [c for c, _ in calls.values()]
    total = sum(calls[small][0].values())
    print(f"      {total} system calls from exec to exit; {calls[wide][1]} and {calls[large][1]} KiB of image touched")
    assert total < 150, calls[small][0]
    assert calls[large][1] <= calls[wide][1] + 64, (calls[wide][1], calls[large][1])
    faults = {p: min(stele("run", p, *ONE, "--stats").exits(0).stats["minor_faults"] for _ in range(5)) for p in calls}
    assert abs(faults[large] - faults[wide]) <= 8, faults
    first = {p: min(stele("run", p, *ONE, "--stats").exits(0).stats["first_op_ms"] for _ in range(15)) for p in calls}
    print(f"      first op after {first[small]:.2f}, {first[large]:.2f} ms; {faults[wide]}, {faults[large]} minor faults")
    assert first[large] <= first[small] + 3, first


@test
def threads_add_a_constant_number_of_system_calls():
    folder = disk_folder("sparse")
    small, large = sparse_image(folder, 2000, 64), sparse_image(folder, 1 << 20, 64)
    count = lambda path, n: numbers_of("run", path, "--ids", "1", "-n", "0", "--print", "ids", "--threads", n)[0]
    a, b = count(small, 3), count(large, 3)
    a.pop(202, None), b.pop(202, None), a.pop(98, None), b.pop(98, None)  # futex: waiting is not counted
    assert a == b, (a, b)


@test
def threads_that_wait_for_the_next_op_seldom_sleep_however_few_cores_there_are():
    path = converted(llama("wide-steps", hidden_size=512, intermediate_size=2048, num_hidden_layers=4, max_position_embeddings=1024))

    def sleeps(threads):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_nvcsw
        stele("run", path, "--ids", "1 2 3", "-n", 500, "--print", "ids", "--threads", threads).exits(0)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_nvcsw - before

    alone, many = sleeps(1), []
    while len(many) < 3 and min(many, default=1e9) > alone + 500:
        many.append(sleeps(4))
    print(f"      500 tokens: {alone} sleeps with one thread, {many} with four")
    assert min(many) <= alone + 500, (alone, many)


@test
def nothing_but_writing_calls_the_kernel_per_token():
    path = converted(llama("steps", max_position_embeddings=2048))
    run = lambda n: numbers_of("run", path, "--ids", "1 2 3", "-n", n, "--print", "ids", "--threads", "1", "--temperature", "1")[0]
    few, many = run(10), run(500)
    write = max(many, key=lambda k: many[k] - few.get(k, 0))
    assert many[write] - few[write] <= 490 + 1
    assert {k: v for k, v in few.items() if k != write} == {k: v for k, v in many.items() if k != write}, (few, many)


@test
def nothing_is_allocated_per_token():
    library, report = tool("count_mallocs.c", "-shared", "-fPIC"), SCRATCH / "mallocs"

    def mallocs(path, *more):
        stele("run", path, *more, "--threads", "1", "--temperature", "1",
              env={"LD_PRELOAD": str(library), "STELE_COUNT_MALLOCS": str(report)}).exits(0)  # fmt: skip
        return int(report.read_text())

    path = converted(llama("steps", max_position_embeddings=2048))
    if "Sanitizer" in stele("run", path, *ONE, env={"LD_PRELOAD": str(library)}).error:
        return
    few, many = (mallocs(path, "--ids", "1 2 3", "-n", n, "--print", "ids") for n in (10, 1500))
    assert few == many, f"{few} allocations for 10 tokens, {many} for 1500"
    if TEXT_MODEL.exists():
        few, many = (mallocs(image(TEXT_MODEL), "--ids", "1", "-n", n) for n in (10, 200))
        assert many - few <= 8, f"{few} allocations for 10 tokens of text, {many} for 200"  # buffers that double


def instructions(args, env=None):
    """Instructions of a run in user space, by perf where it counts them, else by callgrind (scripts/setup installs valgrind)."""
    args = [str(a) for a in args]
    try:
        r = call(["perf", "stat", "-x,", "-e", "instructions:u", *args], env=env)
        found = re.search(r"^(\d+),", r.error, re.M)
        if r.code == 0 and found:
            return int(found.group(1))
    except FileNotFoundError:
        pass
    r = call(["valgrind", "--tool=callgrind", f"--callgrind-out-file={SCRATCH}/callgrind", *args], env=env)
    assert r.code == 0, r.error
    return int(re.search(r"Collected : (\d+)", r.error).group(1))


def counts_by_perf():
    try:
        return bool(re.search(r"^\d+,", call(["perf", "stat", "-x,", "-e", "instructions:u", "true"]).error, re.M))
    except FileNotFoundError:
        return False


@slow(needs=Path("/proc/cpuinfo" if "avx2" in Path("/proc/cpuinfo").read_text() else "AVX2"))
def generic_takes_at_least_5_times_the_instructions_of_a_vector_table_on_a_q8_prefill():
    # callgrind does not know AVX-512: AVX2, which takes more of them, then stands in.
    args = [BUILD / "stele", "run", image(DEMO, "q8"), "--ids", " ".join(map(str, range(10, 160))), "-n", "0", "--threads", "1"]
    vector = "avx512" if counts_by_perf() else "avx2"
    counts = {k: instructions(args, {"STELE_KERNELS": k}) for k in ("generic", vector)}
    print(f"      instructions: {counts}")
    assert counts["generic"] >= 5 * counts[vector], counts


def vocabulary_model(n, tokenizer=None):
    """A Llama of n entries, with the tokenizer of a folder."""
    folder = llama(f"vocabulary-{n}", vocab_size=n, max_position_embeddings=512)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        if tokenizer and (tokenizer / f).exists():
            (folder / f).write_bytes((tokenizer / f).read_bytes())
    return folder


@slow(needs=[data("tokenizers/qwen3"), data("models/stories260K")])
def instructions_of_a_run_are_within_2_per_cent_for_512_and_151669_vocabulary_entries():
    few = converted(vocabulary_model(512, data("models/stories260K")))
    many = converted(vocabulary_model(151669, data("tokenizers/qwen3")))
    assert im.ImageFile.read(many).section(im.TOKENIZER)
    for path in (few, many):
        stele("run", path, "--raw", "--ids", "1", "-n", "0", "--threads", "1").exits(0)
    a, b = (instructions([BUILD / "stele", "run", p, "--raw", "--ids", "1", "-n", "0", "--threads", "1"]) for p in (few, many))
    print(f"      {a} and {b} instructions: {b / a - 1:+.2%}")
    assert abs(b / a - 1) <= 0.02


@slow(needs=[data("tokenizers/qwen3"), data("models/stories260K")])
def a_text_prompt_faults_for_its_own_pages_of_a_large_vocabulary_and_not_for_all():
    few = converted(vocabulary_model(512, data("models/stories260K")))
    many = converted(vocabulary_model(151669, data("tokenizers/qwen3")))
    text = "Hello there, my friend"

    def faults(path, *prompt):
        run = lambda: stele("run", path, "--raw", "-n", "0", "--threads", "1", "--stats", *prompt).exits(0).stats["minor_faults"]
        return min(run() for _ in range(5))

    print(f"      {faults(few, text)} and {faults(many, text)} minor faults, {faults(many, '--ids', '1')} with ids")
    assert faults(many, text) <= faults(few, text) + 40
    a, b = (instructions([BUILD / "stele", "run", p, "--raw", "-n", "0", "--threads", "1", text]) for p in (few, many))
    assert b < a * 1.5, (a, b)


# ---- memory ----


def context_model(context, **more):
    return llama(f"context-{context}", max_position_embeddings=context, num_hidden_layers=4, num_key_value_heads=4, head_dim=64,
                 hidden_size=256, intermediate_size=512, vocab_size=512, **more)  # fmt: skip


@test
def a_model_of_128_k_tokens_costs_no_more_at_start_than_one_of_2_k():
    stats = {}
    for context in (2048, 131072):
        path = converted(context_model(context))
        run = lambda: stele("run", path, "--ids", "1", "-n", 2, "--print", "ids", "--stats", "--threads", "1").exits(0).stats
        stats[context] = min((run() for _ in range(3)), key=lambda s: s["minor_faults"])
    a, b = stats[2048], stats[131072]
    assert b["kv_bytes"] > 60 * a["kv_bytes"]
    assert b["private_dirty_bytes"] <= a["private_dirty_bytes"] + (128 << 10), (a, b)
    assert b["minor_faults"] <= a["minor_faults"] + 16, (a, b)


@test
def private_memory_is_at_most_kv_scratch_and_4_mib():
    folder = context_model(2048)
    for weights in ("f32", "q8", "q4"):
        path = disk_folder("private") / "x.stele"
        stele("convert", folder, "-o", path, "--weights", weights, "-f").exits(0)
        for n, threads in ((1, 1), (300, 2), (1, 3)):
            s = stele("run", path, "--ids", " ".join(["7"] * 600), "-n", n, "--print", "ids", "--stats", "--threads", threads)
            s = s.exits(0).stats
            assert s["private_dirty_bytes"] <= s["kv_bytes"] + s["scratch_bytes"] + (4 << 20), (weights, n, s)
        s = stele("run", path, "--ids", "1", "-n", 1, "--print", "ids", "--stats", "--threads", 1).exits(0).stats
        print(f"      {weights}: {s['private_dirty_bytes'] >> 10} KiB private for one token, {path.stat().st_size >> 10} KiB of image")
        assert s["private_dirty_bytes"] <= 4 << 20


def mappings(pid):
    """[(mode, name, {field: KiB})] of a process."""
    found = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+\s*(.*)", line)
        if head:
            found.append((head.group(1), head.group(2), {}))
        elif m := re.match(r"(\w+):\s+(\d+) kB", line):
            found[-1][2][m.group(1)] = int(m.group(2))
    return found


def stopped_runs(path, n, *options):
    """n runs, each stopped in the middle of its answer."""
    args = [BUILD / "stele", "run", path, "--ids", "3 5 8", "--print", "ids", *options]
    runs = [subprocess.Popen([str(a) for a in args], stdout=subprocess.PIPE, env=dict(os.environ, STELE_KERNELS=k))
            for _, k in zip(range(n), ["generic"] * n)]  # fmt: skip
    for p in runs:
        assert os.read(p.stdout.fileno(), 1)
        p.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    assert all(p.poll() is None for p in runs), "a run ended before it could be looked at"
    return runs


@slow
def eight_runs_share_one_copy_of_the_weights():
    model = llama("shared", hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
                  num_key_value_heads=4, head_dim=64, vocab_size=1024, max_position_embeddings=4096)  # fmt: skip
    for weights in ("f32", "q8"):
        path = disk_folder("shared") / "x.stele"
        stele("convert", model, "-o", path, "--weights", weights, "-f").exits(0)
        os.sync()
        options = ["--context", 1024, "--threads", 2]
        s = stele("run", path, "--ids", "3 5", "-n", 2, "--print", "ids", "--stats", *options).exits(0).stats
        runs = stopped_runs(path, 8, *options)
        try:
            size, of_image, of_all, private = path.stat().st_size, 0, 0, []
            for p in runs:
                maps = mappings(p.pid)
                assert {m for m, name, _ in maps if name == str(path)} == {"r--s"}, "the image is not mapped read-only and shared"
                of_image += sum(f.get("Pss", 0) for _, name, f in maps if name == str(path)) << 10
                of_all += sum(f.get("Pss", 0) for _, _, f in maps) << 10
                private.append(sum(f.get("Private_Dirty", 0) for _, _, f in maps) << 10)
        finally:
            for p in runs:
                p.kill()
                p.wait()
        each = s["kv_bytes"] + s["scratch_bytes"] + (4 << 20)
        print(f"      {weights}: image {size >> 10} KiB; 8 runs: {of_image >> 10} KiB of it, {of_all >> 10} KiB in all, "
              f"at most {max(private) >> 10} KiB private")  # fmt: skip
        assert of_image <= size + 8 * 4096
        assert of_all <= size + 8 * each, (of_all, size, each)
        assert max(private) <= each


@test
def every_table_thread_count_and_option_leaves_the_image_shared_and_unwritten():
    path = disk_folder("mode") / "x.stele"
    stele("convert", llama("mode"), "-o", path, "-f").exits(0)
    for more in ([], ["--threads", "3"], ["--verify"], ["--kv", "f16"], ["--stats"]):
        _, _, mode = numbers_of("run", path, "--ids", "1 2", "-n", "3", "--print", "ids", *more)
        assert mode == "r--s", (more, mode)


# ---- the tree ----

# Words that only a model's family, its config or the pattern of somebody's tokenizer would bring.
FAMILIES = """llama mistral mixtral qwen gemma phi[-_]?[234] smollm deepseek olmo granite gpt[-_]?[2-4] gpt[-_]?oss falcon cl100k
o200k p50k tekken nemo hidden_size rope_theta rope_scaling intermediate_size num_attention_heads num_hidden_layers
rms_norm_eps q_proj k_proj v_proj o_proj gate_proj up_proj down_proj self_attn lm_head embed_tokens"""


def sources(*rooms):
    return [p for r in rooms for p in sorted((ROOT / r).rglob("*")) if p.suffix in (".c", ".h", ".inc", ".def", ".cu", ".cuh", ".md")]


# What a choice was judged on has names.
MEASURED = re.compile(r"^### Why .*?(?=^## )", re.M | re.S)


@test
def no_word_of_a_model_family_stands_in_runtime_blas_or_image():
    words = re.compile("|".join(rf"\b{w}" if len(w) < 6 else w for w in FAMILIES.split()), re.I)
    found = [f"{p.relative_to(ROOT)}:{i}: {line.strip()}" for p in sources("runtime", "blas", "image")
             for i, line in enumerate(MEASURED.sub("", p.read_text()).splitlines(), 1) if words.search(line)]  # fmt: skip
    assert not found, "\n".join(found)


@test
def rooms_include_only_what_design_md_allows():
    room_of = {}
    for room in ("image", "blas", "runtime", "convert"):
        for p in sources(room):
            room_of.setdefault(p.name, room)
    may = {"image": {"image"}, "blas": {"blas"}, "runtime": {"runtime", "blas", "image"}, "convert": {"convert", "image", "blas"}}
    besides = {"blas": {"types.h", "panel.h", "error.h"}, "convert": {"normalize.h"}}
    # A program that opens a session of what it compiled, by the public header as anybody would.
    besides["convert"] |= {"stele.h"} if [p.name for p in sources("convert") if '"stele.h"' in p.read_text()] == ["stele-sizes.c"] else set()
    wrong = []
    for room in may:
        for p in sources(room):
            for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', p.read_text(), re.M):
                name = Path(name).name
                if name not in besides.get(room, ()) and room_of.get(name) not in may[room]:
                    wrong.append(f"{p.relative_to(ROOT)} includes {name} of {room_of.get(name)}")
    assert not wrong, "\n".join(wrong)


@test
def a_file_name_occurs_once_in_the_tree():
    seen = {}
    for p in sources("image", "blas", "runtime", "convert", "tests"):
        seen.setdefault(p.name, []).append(str(p.relative_to(ROOT)))
    twice = [v for k, v in seen.items() if len(v) > 1 and k not in ("README.md",)]
    assert not twice, twice


@test
def the_command_links_neither_curl_nor_a_blas_nor_cuda_and_the_locale_is_left_alone():
    libraries = call(["ldd", BUILD / "stele"]).text
    for name in ("curl", "blas", "cuda", "jansson", "stdc++", "gomp"):
        assert name not in libraries, libraries
    found = [str(p) for p in sources("image", "blas", "runtime", "convert") if re.search(r"\bsetlocale\s*\(", p.read_text())]
    assert not found, found


@test
def numbers_are_written_and_read_alike_in_every_locale():
    path = converted(llama("locale"))
    args = [BUILD / "stele", "run", path, "--ids", "1", "-n", 3, "--temperature", "0.5", "--print", "ids"]
    run = lambda locale: call(["env", f"LC_ALL={locale}", *args]).exits(0).out
    assert run("C") == run("de_DE.UTF-8") == run("no_such_LOCALE")


finish()
