#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the kernels: no warning, no spill, registers and shared memory within bounds, no rounding but
those of the source. Prints a line for each kernel. Where there is no nvcc (Debian has none) it says so, and is counted
as skipped."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "end_to_end"))
from harness import *
from workshop import slow

NVCC = os.environ.get("NVCC") or shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
THREADS = dict(re.findall(r"X\((\w+), \w+, (\d+)\)", (ROOT / "blas" / "cuda" / "args.h").read_text()))

# Registers of a thread, so that blocks enough stand on a processor's 65,536: the least that __launch_bounds__ asks for.
SOURCE = "".join(f.read_text() for f in sorted((ROOT / "blas" / "cuda").glob("*.cu*")))
BLOCKS = {}
for name, threads, blocks in re.findall(r"KERNEL\((\w+(?:##name##_\d+)?), struct args_\w+, (\d+), (\d)\)", SOURCE):
    for t in ("f32", "bf16", "f16", "q8", "q4", "mxfp4") if "##" in name else ("",):
        if THREADS.get(name.replace("##name##", t)) == threads:
            BLOCKS[name.replace("##name##", t)] = int(blocks)
assert set(BLOCKS) == set(THREADS), set(BLOCKS) ^ set(THREADS)
SHARED_BYTES = 49152  # all that a kernel can have without asking for more


def compiled():
    """{(kernel, architecture): (registers, spilled bytes, shared bytes)} of `make cuda`."""
    call(["make", "-C", ROOT, "--no-print-directory", "-s", "cuda", f"NVCC={NVCC}"], cwd=ROOT).exits(0)
    log = (ROOT / "build" / "blas" / "cuda" / "kernels.fatbin.log").read_text()
    assert "warning" not in log.lower(), log[:2000]
    found = {}
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name, architecture = re.match(r"'stele_(\w+)' for '(\w+)'", part).groups()
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[name, architecture] = (registers, spills, int(shared[1]) if shared else 0)
    return found


def kernels_compile_without_warnings_and_spills_within_registers_and_shared_memory():
    found = compiled()
    assert set(found) == {(name, a) for name in THREADS for a in ARCHITECTURES}, set(found)
    print(f"      {'registers, shared bytes':24}" + "".join(f"{a:>14}" for a in ARCHITECTURES))
    for name, threads in THREADS.items():
        rows = [found[name, a] for a in ARCHITECTURES]
        print(f"      {name:24}" + "".join(f"{r[0]:>6}{r[2]:>8}" for r in rows))
        for registers, spills, shared in rows:
            assert spills == 0, (name, rows)
            assert registers * int(threads) * BLOCKS[name] <= 65536, (name, rows)
            assert shared <= SHARED_BYTES, (name, rows)


def every_sum_and_product_is_rounded_once_and_none_is_fused_by_the_compiler():
    """PTX names the rounding of each operation; one without a name could be fused, or be an approximation."""
    ptx = SCRATCH / "kernels.ptx"
    options = re.search(r"^NVCCFLAGS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    call([NVCC, *options, "-arch=compute_80", "-ptx", "blas/cuda/kernels.cu", "-o", ptx], cwd=ROOT).exits(0)
    text = ptx.read_text()
    words = "add|sub|mul|fma|mad|div|sqrt|rcp|rsqrt|ex2|lg2|sin|cos|tanh|max|min|cvt"
    found = set(re.findall(rf"\t((?:{words})\.[\w.]*f32[\w.]*)", text))
    exact = {"max.f32", "min.f32", "cvt.f32.f16", "cvt.rzi.s32.f32", "cvt.rzi.u32.f32"}
    assert {"add.rn.f32", "mul.rn.f32", "fma.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= found, found
    assert all(op in exact or re.fullmatch(r"\w+\.rn\.f32(\.[su]\d\d)?", op) for op in found), found
    assert ".ftz" not in text and ".approx" not in text and ".f64" not in text


for f in (every_sum_and_product_is_rounded_once_and_none_is_fused_by_the_compiler,
          kernels_compile_without_warnings_and_spills_within_registers_and_shared_memory):
    slow(needs=Path(NVCC or "nvcc"))(f)

finish()
