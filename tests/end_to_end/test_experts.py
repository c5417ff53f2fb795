#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts in memory: a run touches the pages of the experts that it uses and of no other, page by page; so a
model larger than memory runs.

What a run touched is what lies in the page cache behind it: the image's pages are dropped before, and a preloaded helper
turns the kernel's reading ahead off, which else brings neighbours in."""
import ctypes
import mmap

import numpy as np

import imagefile as im
import shapes
from harness import *
from workshop import *

PAGE = 4096
LAYERS, EXPERTS, TOP = 4, 64, 4

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mincore.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def preload():
    target = SCRATCH / "no_readahead.so"
    if not target.exists():
        source = ROOT / "tests" / "laws" / "no_readahead.c"
        call([os.environ.get("CC", "gcc"), "-O2", "-shared", "-fPIC", "-o", target, source]).exits(0)
    return {"LD_PRELOAD": str(target)}


def resident(path):
    """Which pages of a file are in the page cache."""
    size = path.stat().st_size
    vector = np.zeros(-(-size // PAGE), "u1")
    with open(path, "rb") as f:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, f.fileno(), 0)
    assert at and at != ctypes.c_void_p(-1).value
    failed = libc.mincore(at, size, vector.ctypes.data)
    libc.munmap(at, size)
    assert not failed, os.strerror(ctypes.get_errno())
    return vector & 1 == 1


def drop(path):
    """Takes a file out of the page cache. Returns how many pages would not go."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    return int(resident(path).sum())


def touched(path, *args):
    """The pages that a run touches, and what it says."""
    left = drop(path)
    assert not left, f"{left} pages could not be dropped"
    r = stele("run", path, *args, "--print", "ids", "--stats", env=preload()).exits(0)
    return resident(path), r


def droppable():
    """Whether a file in SCRATCH can be dropped at all: on tmpfs it cannot."""
    path = fresh("drop") / "file"
    path.write_bytes(bytes(16 * PAGE))
    return not drop(path)


NEEDS = [] if droppable() and not os.environ.get("STELE_SAN") else [Path("/page cache that drops, or a sanitizer")]


def mixture():
    """A Qwen3-MoE of 4 times 64 experts."""
    folder = fresh("mixture")
    case = shapes.case(shapes.QWEN3_MOE, hidden_size=128, moe_intermediate_size=192, num_experts=EXPERTS, vocab_size=512,
                       num_experts_per_tok=TOP, num_hidden_layers=LAYERS)  # fmt: skip
    shapes.write(folder, case, 1)
    return folder


def table(path):
    """{name: tensor} of `inspect`, offsets from the beginning of the file."""
    all_of_it = json.loads(stele("inspect", "--json", path).exits(0).out)
    start = next(s["offset"] for s in all_of_it["sections"] if s["name"] == "weights")
    return {t["name"]: t | {"offset": start + t["offset"]} for t in all_of_it["tensors"]}


def pages(begin, end):
    return slice(begin // PAGE, -(-end // PAGE))


def expert_pages(tensors, layer):
    """The pages of each expert of a layer: the matrix of one bank, and behind it that of the other."""
    up, down = tensors[f"layers.{layer}.experts.gate_up"], tensors[f"layers.{layer}.experts.down"]
    assert up["count"] == down["count"] == EXPERTS and up["stride"] == down["stride"]
    assert up["offset"] % PAGE == 0 and up["stride"] % PAGE == 0, "an expert begins at a page"
    assert down["offset"] == up["offset"] + up["bytes"], "its matrices are one run of bytes"
    assert up["bytes"] + down["bytes"] <= up["stride"], "and no page is another's too"
    begins = [up["offset"] + i * up["stride"] for i in range(EXPERTS)]
    return [pages(b, b + up["bytes"] + down["bytes"]) for b in begins]


FOLDER = mixture() if not NEEDS else None

for weights in ("q8",) if FAST else ("f32", "q8", "q4"):

    @test(needs=NEEDS)
    def a_run_touches_all_pages_of_the_experts_it_uses_and_none_of_the_others(weights=weights):
        path = image(FOLDER, weights)
        tensors = table(path)
        for ids in ("7", "7 300 21 8 9"):
            seen, r = touched(path, "--ids", ids, "-n", 1)
            used, of_experts = 0, np.zeros(len(seen), bool)
            for layer in range(LAYERS):
                for i, expert in enumerate(expert_pages(tensors, layer)):
                    share = seen[expert].mean()
                    assert share in (0, 1), f"layer {layer}, expert {i}: {share:.0%} of its pages"
                    used += int(share)
                    of_experts[expert] = True
            assert used == r.stats["experts_used"] < r.stats["experts"] == LAYERS * EXPERTS, (used, r.stats)
            if ids == "7":
                assert used == LAYERS * TOP, used
            # Of the rest: every page of the matrices that each row needs, the rows of the embedding, and little more.
            rest = np.zeros(len(seen), bool)
            for name, t in tensors.items():
                if ".experts." not in name and name != "embedding":
                    rest[pages(t["offset"], t["offset"] + t["bytes"])] = True
            assert seen[rest].all(), "a dense matrix was not read"
            more = int((seen & ~rest & ~of_experts).sum())
            assert more <= len(ids.split()) * 2 + 16, f"{more} pages besides"  # header, plan, tensors; embedding's rows
            print(f"      {weights}: {used} experts of {LAYERS * EXPERTS}, {seen.sum()} pages of {len(seen)}")


# ---- a model larger than memory ----


def larger_than_memory(folder):
    """An image of 2 layers with 1024 experts each, a quarter larger than this machine's memory. Its experts are holes of
    the file, whose numbers are zeros; what a run does with them is what it does with any."""
    hidden, count, top, v = 256, 1024, 2, 64
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE
    ffn = im.padded(int(memory * 1.25 / (2 * count * 3 * hidden * 4)), 32)
    rng = np.random.default_rng(1)
    b = im.Builder(v, 128)
    x, route, gathered = b.slot(hidden), b.slot(2 * top), b.slot(hidden)
    gated, total = b.slot(ffn), b.slot(hidden)
    b.op(im.EMBED, x, b.matrix("embedding", rng.standard_normal((v, hidden)).astype("<f4")), 1.0)
    up_bytes, down_bytes = 2 * ffn * hidden * 4, hidden * ffn * 4
    stride, banks = im.padded(up_bytes + down_bytes, PAGE), []
    for layer in range(2):
        router = b.matrix(f"{layer}.router", rng.standard_normal((count, hidden)).astype("<f4"))
        b.op(im.ROUTER, x, route, router, im.NONE, top, 1)
        bank = len(b.table)
        b.table.append(im.Tensor(f"{layer}.up", im.F32, im.PANELS, 2 * ffn, hidden, 0, up_bytes, stride, count))
        b.table.append(im.Tensor(f"{layer}.down", im.F32, im.PANELS, hidden, ffn, 0, down_bytes, stride, count))
        b.op(im.EXPERTS, x, route, x, x, gathered, gated, total, bank, bank + 1, im.NONE, im.NONE, top, 1, 1.0, 0.0)
    b.op(im.LOGITS, x, b.matrix("head", rng.standard_normal((v, hidden)).astype("<f4")), 1.0, 0.0)
    at = im.padded(len(b.weights), PAGE)
    for t in b.table:
        if t.name.endswith((".up", ".down")):
            t.offset = at + (up_bytes if t.name.endswith(".down") else 0)
            at += stride * count if t.name.endswith(".down") else 0
    made = b.image()
    made.section(im.WEIGHTS).length = at
    path = folder / "larger.stele"
    made.write(path)
    return path, memory, stride


@test(needs=NEEDS)
def a_model_larger_than_memory_runs_in_the_pages_of_its_chosen_experts():
    path, memory, stride = larger_than_memory(fresh("larger"))
    assert path.stat().st_size > 1.25 * memory
    seen, r = touched(path, "--ids", "5", "-n", 1)
    assert r.stats["experts"] == 2048 and r.stats["experts_used"] == 4, r.stats
    assert len(r.ids) == 1
    experts, dense = r.stats["experts_used"] * stride // PAGE, (2 * 64 + 2 * 1024) * 256 * 4 // PAGE
    assert experts <= seen.sum() <= experts + dense + 32, (seen.sum(), experts, dense)
    print(f"      {path.stat().st_size / 2**30:.0f} GiB of image on {memory / 2**30:.0f} GiB of memory: "
          f"{seen.sum() * PAGE / 2**20:.0f} MiB touched")  # fmt: skip


finish()
