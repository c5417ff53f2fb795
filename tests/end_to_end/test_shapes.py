#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every family, router and kind of RoPE in shapes of our own (shapes.py) against what transformers computed for them
(tests/fixtures/shapes.json, made by scripts/make-references): logits within 1e-5 of the largest, greedy ids equal, and
the same bits however the prompt is cut and however many threads there are. Needs no other test data."""
import hashlib

import numpy as np

import shapes
from harness import *
from workshop import *

FIXTURES = ROOT / "tests" / "fixtures"
WAYS = [(16, 3), (1, 1), (3, 2)] if FAST else [(c, t) for c in (16, 1, 3) for t in (1, 2, 3)]

expected = json.loads((FIXTURES / "shapes.json").read_text())["cases"]
rows = np.fromfile(FIXTURES / "shapes.bin", "<f4")
for reference in expected.values():  # where its rows are
    for entry in reference["inputs"]:
        n = len(entry["positions"]) * reference["vocabulary"]
        entry["logits"], rows = rows[:n].reshape(-1, reference["vocabulary"]), rows[n:]


def run_options(case, n_ids):
    return ["--kv", "f32", *(case["context"](n_ids) if case["context"] else [])]


def dump(img, case, ids, *more, table=""):
    file = SCRATCH / "shape.bin"
    more = [*run_options(case, len(ids)), *more]
    stele("logprobs", img, "--ids", " ".join(map(str, ids)), "--dump-logits", file, *more,
          env={"STELE_KERNELS": table}).exits(0)  # fmt: skip
    return file.read_bytes()


def images(name, case):
    """In f32, and in the source's type where that is another: they hold the same numbers."""
    folder = fresh(name)
    shapes.write(folder, case, expected[name]["seed"])
    return [image(folder)] + [image(folder, None)] * (case["dtype"] != "F32")


for name, case in shapes.CASES.items():

    @test
    def logits_and_greedy_ids_of_every_shape_are_those_of_transformers(name=name, case=case):
        for img in images(name, case):
            for entry in expected[name]["inputs"]:
                ids, answers = entry["ids"], []
                for chunk, threads in WAYS:
                    answers.append(dump(img, case, ids, "--chunk", chunk, "--threads", threads))
                digests = {hashlib.sha256(a).hexdigest() for a in answers}
                assert len(digests) == 1, f"{name}, {len(ids)} ids: {len(digests)} answers"
                got = np.frombuffer(answers[0], "<f4").reshape(len(ids), -1)[entry["positions"]].astype(np.float64)
                worst = np.abs(got - entry["logits"]).max() / entry["largest"]
                assert worst <= 1e-5, f"{name}, {len(ids)} ids: off by {worst:.2e} of the largest"
                if entry["greedy"]:
                    more = ["-n", len(entry["greedy"]), "--print", "ids", "--kv", "f32"]
                    r = stele("run", img, "--ids", " ".join(map(str, ids)), *more)
                    assert r.exits(0).ids == entry["greedy"], (name, len(ids), r.ids, entry["greedy"])


# ---- rounded weights: no reference, but one answer ----

TABLES = [t for t in ("generic", "avx2", "avx512", "neon")
          if stele("run", image(TEXT_MODEL), "--ids", 1, "-n", 0, env={"STELE_KERNELS": t}).code == 0]  # fmt: skip


@slow
def rounded_images_of_every_shape_give_one_answer_on_every_table():
    for name, case in shapes.CASES.items():
        folder = fresh(name)
        shapes.write(folder, case, expected[name]["seed"])
        ids = expected[name]["inputs"][-1]["ids"]
        for weights in ("q8", "q4"):
            img, digests = converted(folder, "--weights", weights), set()
            for chunk, threads, table in zip((16, 1, 3, 512), (3, 1, 2, 3), TABLES * 4):
                answer = dump(img, case, ids, "--chunk", chunk, "--threads", threads, table=table)
                digests.add(hashlib.sha256(answer).hexdigest())
            assert len(digests) == 1, f"{name} {weights}: {len(digests)} answers"


# ---- what transformers refuses, or takes for something that is not here ----

REFUSED = [
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "longrope"),
    ("olmo3", {"rope_theta": 1000.0}, "rope_theta"),
    ("olmo3", {"rope_parameters": {"full_attention": shapes.YARN}}, "sliding_attention"),
    ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}, "rope_parameters"),
    ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping"),
    ("gpt-oss", {"swiglu_alpha": 1.5}, "swiglu_alpha"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "sliding_window"),
    ("qwen2-windows", {"max_window_layers": 1.5}, "max_window_layers"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("llama-yarn-original-absent", {"max_position_embeddings": None}, "max_position_embeddings"),
    ("phi3-longrope", {"max_position_embeddings": None}, "max_position_embeddings"),
]


@test
def what_a_family_does_not_compute_is_refused_by_name():
    for name, change, says in REFUSED:
        folder, case = fresh(name), shapes.CASES[name]
        shapes.write(folder, case | {"config": case["config"] | change}, 1)
        stele("convert", folder, "-o", folder / "model.stele").exits(3, "config.json", says)


@test
def experts_of_gpt_oss_that_are_not_mxfp4_are_refused_by_name():
    folder = fresh("dequantised")
    shapes.write(folder, shapes.CASES["gpt-oss"], 1)
    path = folder / "model.safetensors"
    tensors = {n.removesuffix("_blocks"): t for n, t in read_safetensors(path).items() if not n.endswith("_scales")}
    write_safetensors(path, tensors)
    edit_json(folder / "config.json", lambda c: c.pop("quantization_config"))
    stele("convert", folder, "-o", folder / "model.stele").exits(3, "mlp.experts.gate_up_proj is not MXFP4")


@test
def the_fixtures_are_of_the_cases_that_there_are():
    assert list(expected) == list(shapes.CASES) and not len(rows)


finish()
