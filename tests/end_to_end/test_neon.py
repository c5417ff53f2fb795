#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The tables for aarch64, and a whole model on it: built by Debian's cross compiler, run by qemu, which executes each
instruction as the architecture defines it. Images are made by the programs under test on this machine. Two CPUs: one that
has every extension (table neon with i8mm), and a Neoverse N1, which has dot products only. How fast a real one is, no test
here can tell."""
import functools
import shutil
import sys

from harness import *
from workshop import *

sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
import make_bits

CROSS = "aarch64-linux-gnu-"
ARM = ROOT / "build" / "aarch64-linux-gnu"
ALL, DOT = "max", "neoverse-n1"  # qemu's names of the two CPUs
I8MM = 1 << 13  # in AT_HWCAP2


@functools.cache
def program(name):
    """A program for aarch64, made anew where its sources are. Of what make was called with here nothing holds there."""
    for tool in (CROSS + "gcc", "qemu-aarch64"):
        assert shutil.which(tool), f"{tool} is not there: scripts/setup --cross installs what it takes"
    path = ARM / name
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "CI") if name in os.environ}
    r = subprocess.run(["make", "-s", "-j2", f"CROSS={CROSS}", path.relative_to(ROOT)], cwd=ROOT, env=env,
                       capture_output=True, text=True)  # fmt: skip
    assert r.returncode == 0, f"{name} for aarch64 (scripts/setup --cross installs what it takes): {r.stderr[-1000:]}"
    return path


def emulated(name, *args, cpu=ALL, table=None, env=None, stdin=b""):
    """A program of aarch64."""
    env = dict(env or {}, **({"STELE_KERNELS": table} if table else {}))
    return call(["qemu-aarch64", "-cpu", cpu, program(name), *args], stdin=stdin, env=env)


def bits_are_those_of_bits_txt(cpu, table, wanted):
    """The lines of bits.txt for which wanted(weights, kv, chunk)."""

    def logits_there(img, ids, *options):
        dump = SCRATCH / "logits.bin"
        emulated("stele", "logprobs", img, "--ids", " ".join(map(str, ids)), "--dump-logits", dump, *options, cpu=cpu,
                 table=table).exits(0)  # fmt: skip
        return np.fromfile(dump, "<f4")

    lines = (ROOT / "tests" / "fixtures" / "bits.txt").read_text().splitlines()
    cases = [line.split() for line in lines if line and not line.startswith("#")]
    cases = [case for case in cases if wanted(*case[:3])]
    assert cases, "no line of bits.txt"
    for weights, kv, chunk, want in cases:
        got = make_bits.bits(image(DEMO, weights), kv, int(chunk), logits_there)
        assert got == want, f"{cpu}, {table}: {weights} --kv {kv} --chunk {chunk}: {got} instead of {want}"


def kernels_are_generic(rounds):
    r = emulated("tests/blas/check_kernels", env={"CHECK_ROUNDS": str(rounds), "CK_FORK": "no"})
    assert r.code == 0, r.text[-2000:]


@test
def the_emulated_cpus_run_both_tables_of_neon():
    for cpu, i8mm in ((ALL, True), (DOT, False)):
        r = emulated("stele", "run", image(DEMO, "q8"), "--ids", "1 2", "-n", 1, "--stats", cpu=cpu)
        assert r.exits(0).stats["kernels"] == "neon"
        shown = emulated("stele", "--version", cpu=cpu, env={"LD_SHOW_AUXV": "1"}).text.split("AT_HWCAP2:")[-1].split()[0]
        assert bool(int(shown, 16) & I8MM) == i8mm, f"{cpu}: AT_HWCAP2 {shown}"


@test
def a_few_rounds_of_every_kernel_give_the_bits_of_generic():
    kernels_are_generic(4)


@test
def a_model_in_q8_gives_the_bits_of_bits_txt_on_both_cpus():
    for cpu in (ALL, DOT):
        bits_are_those_of_bits_txt(cpu, "neon", lambda *case: case == ("q8", "f16", "16"))


@slow
def every_kernel_gives_the_bits_of_generic():
    kernels_are_generic(120)


@slow
def images_made_here_give_all_bits_of_bits_txt():
    bits_are_those_of_bits_txt(ALL, "neon", lambda *case: True)


@slow
def dot_products_alone_give_the_bits_of_bits_txt_for_quantised_weights():
    bits_are_those_of_bits_txt(DOT, "neon", lambda weights, kv, chunk: weights in ("q8", "q4") and kv == "f32")


@slow
def plain_c_gives_the_bits_of_bits_txt_too():
    bits_are_those_of_bits_txt(ALL, "generic", lambda weights, kv, chunk: chunk == "512")


@slow
def text_becomes_the_same_text_as_on_this_machine():
    for prompt in ("Once upon a time", "Zoë's naïve café – 12 \U0001f600\n"):
        for weights in ("f32", "q4"):
            args = ("run", image(DEMO, weights), "--raw", prompt, "-n", 20, "--temperature", 0.8, "--seed", 5)
            assert emulated("stele", *args).exits(0).out == stele(*args).exits(0).out
        assert emulated("stele", "tokenize", image(DEMO), prompt).exits(0).out == stele("tokenize", image(DEMO), prompt).out


@slow
def what_damages_an_image_is_refused_there_as_here():
    broken = SCRATCH / "broken.stele"
    raw = bytearray(image(DEMO, "q8").read_bytes())
    raw[-5000] ^= 1
    broken.write_bytes(raw)
    assert emulated("stele", "verify", broken).error == stele("verify", broken).exits(4).error


finish()
