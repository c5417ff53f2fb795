#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""No barrier of the kernels is missing, and none is there for nothing: every op runs with each touch of memory looked at
(blas/cuda/races.c) and turns drawn in several orders; then each barrier in turn is left out, and must be missed."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "end_to_end"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))
from harness import *
from workshop import *

CHECK = BUILD / "tests" / "cuda" / "check_ops"
SOURCES = sorted((ROOT / "blas" / "cuda").glob("*.cu*"))
CASES = {"attend.cuh": "attention", "experts.cuh": "experts", "floats.cuh": "linear", "integers.cuh": "linear"}


def ops(machine, rounds, case=""):
    env = {"CHECK_MACHINE": machine, "CHECK_ROUNDS": str(rounds)} | ({"CK_RUN_CASE": case} if case else {})
    return call([CHECK], env=env)


def barriers():
    for source in SOURCES:
        for number, line in enumerate(source.read_text().splitlines(), 1):
            if re.match(r"\s+(sync_block|sync_warp)\(\);", line):
                yield f"{source.name}:{number}"


@slow
def every_op_runs_without_a_race_in_any_order_of_turns():
    for seed in (1, 2, 3):
        r = ops(f"races=1 seed={seed}", 5)
        assert r.code == 0 and "race:" not in r.error, (seed, r.text[-2000:], r.error[-2000:])


@slow
def each_barrier_that_is_left_out_is_missed():
    all = list(barriers())
    assert len(all) > 12, all
    for place in all:
        name = place.split(":")[0]
        cases = [CASES[name]] if name in CASES else ["norm", "attention"]
        found = [ops(f"races=1 without={place}", 6, case).error for case in cases]
        assert any("race:" in error for error in found), f"{place} is left out and nobody misses it"


finish()
