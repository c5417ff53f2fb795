#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every family against transformers' reference values (../shared/models/zoo): logits within 1e-5 of the largest, greedy ids
equal, and the same bits however the prompt is cut and however many threads there are."""
import hashlib

import numpy as np

from harness import *

FAMILIES = [
    "llama3-rope-scaled", "llama-linear-rope", "llama-yarn-rope", "mistral-swa", "qwen2", "qwen2-yarn", "qwen3",
    "qwen3-headdim", "phi3", "phi3-longrope", "smollm3", "olmo2", "olmo3", "granite", "mixtral", "qwen2-moe", "qwen3-moe",
    "qwen3-moe-mixed", "gemma2", "gemma3", "gpt-oss",
]  # fmt: skip
LATER = {
    "qwen3-next": "Qwen3NextForCausalLM", "granite-hybrid": "GraniteMoeHybridForCausalLM",
    "qwen3.5": "Qwen3_5ForConditionalGeneration", "qwen3.5-moe": "Qwen3_5MoeForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration", "gemma4-moe": "Gemma4ForConditionalGeneration",
}  # fmt: skip


def options(model, ids):
    """longrope: rows of one file belong to one set of factors, which --context chooses."""
    return ["--context", 32] if model == "phi3-longrope" and len(ids) <= 32 else []


def dump(img, ids, *more, table=""):
    file = SCRATCH / "family.bin"
    r = stele("logprobs", img, "--ids", " ".join(map(str, ids)), "--dump-logits", file, *more, env={"STELE_KERNELS": table})
    r.exits(0)
    return file.read_bytes()


for model in FAMILIES:

    @test(needs=data(f"models/zoo/{model}"))
    def logits_of_every_family_are_within_1e_5_of_the_largest(model=model):
        folder = DATA / "models" / "zoo" / model
        for entry in json.loads((folder / "expected.json").read_text())["inputs"]:
            got = np.frombuffer(dump(image(folder), entry["ids"], *options(model, entry["ids"])), "<f4")
            want = np.fromfile(folder / entry["logits"], "<f4")
            worst = np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()
            assert worst <= 1e-5, f"{model}, {len(entry['ids'])} ids: off by {worst:.2e}"

    @test(needs=data(f"models/zoo/{model}"))
    def greedy_ids_of_every_family_are_those_of_transformers(model=model):
        folder = DATA / "models" / "zoo" / model
        for entry in json.loads((folder / "expected.json").read_text())["inputs"]:
            if len(entry["ids"]) <= 32 < len(entry["ids"]) + len(entry["greedy"]) and model == "phi3-longrope":
                continue  # would cross from one set of factors to the other
            r = stele("run", image(folder), "--ids", " ".join(map(str, entry["ids"])), "-n", len(entry["greedy"]),
                      "--print", "ids", *options(model, entry["ids"]))  # fmt: skip
            got, want = r.exits(0).ids, entry["greedy"]
            assert got == want[: len(got)], (model, got, want)  # the references ignore end of text
            assert len(got) == len(want) or want[len(got)] in (1, 2, 106), (model, len(got))

    @test(needs=data(f"models/zoo/{model}"))
    def a_family_gives_one_answer_however_the_prompt_is_cut(model=model):
        folder = DATA / "models" / "zoo" / model
        ids = json.loads((folder / "expected.json").read_text())["inputs"][-1]["ids"]
        seen = set()
        for weights in ("f32", "q8"):
            ways = [(c, t) for c in (1, 3, 16, 512) for t in (1, 2, 3)]
            digests = {
                hashlib.sha256(dump(image(folder, weights), ids, "--chunk", c, "--threads", t)).hexdigest()
                for c, t in (ways if not os.environ.get("STELE_FAST") else ways[::4])
            }
            assert len(digests) == 1, f"{model} {weights}: {len(digests)} answers"
            seen |= digests
        assert len(seen) == 2


@test(needs=data("models/zoo/gpt-oss"))
def an_image_of_mxfp4_gives_one_answer_however_the_prompt_is_cut_and_on_every_table():
    folder = DATA / "models" / "zoo" / "gpt-oss"
    ids = json.loads((folder / "expected.json").read_text())["inputs"][-1]["ids"]
    path, digests, seen = image(folder, None), set(), 0
    for table in ("generic", "avx2", "avx512"):
        if stele("run", path, "--ids", 1, "-n", 0, "--print", "ids", env={"STELE_KERNELS": table}).code:
            continue  # not on this CPU
        for chunk, threads in ((1, 1), (3, 3), (16, 2), (512, 1), (512, 3)):
            digests.add(hashlib.sha256(dump(path, ids, "--chunk", chunk, "--threads", threads, table=table)).hexdigest())
            seen += 1
    assert seen >= 5 and len(digests) == 1, (seen, len(digests))


@test(needs=data("models/zoo/mistral-swa"))
def a_window_keeps_only_the_blocks_that_it_can_still_see():
    folder = SCRATCH / "long-window"
    shutil.copytree(DATA / "models" / "zoo" / "mistral-swa", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    ids = [int(i) for i in np.random.default_rng(3).integers(3, 128, 1000)]
    answers, bytes_kept = set(), {}
    for chunk in (1, 8, 100, 512):
        answers.add(dump(image(folder), ids, "--chunk", chunk))
        r = stele("run", image(folder), "--ids", "1", "-n", 1, "--print", "ids", "--chunk", chunk, "--stats").exits(0)
        bytes_kept[chunk] = r.stats["kv_bytes"]
    assert len(answers) == 1
    # Two layers, blocks of 64 positions of 2 heads of 16 + 16 numbers: 16 + 8 positions lie in 2 blocks, the whole in 64.
    assert bytes_kept[8] == 2 * 2 * 64 * 64 * 4, bytes_kept
    assert bytes_kept[512] < 2 * 64 * 64 * 64 * 4 / 4, bytes_kept


@test(needs=data("models/zoo/qwen3-moe"))
def stats_say_how_many_experts_a_run_used():
    folder = DATA / "models" / "zoo" / "qwen3-moe"
    r = stele("run", image(folder), "--ids", "5", "-n", 0, "--print", "ids", "--stats").exits(0)
    assert r.stats["experts"] == 32 and r.stats["experts_used"] == 8, r.stats  # 2 layers, 4 of 16 each


@test(needs=data("models/zoo/qwen3-moe"))
def behind_its_keys_and_values_the_last_layer_computes_only_the_row_whose_logits_are_wanted():
    folder = DATA / "models" / "zoo" / "qwen3-moe"
    for chunk in (512, 16):  # of the chunks before the last no row
        r = stele("run", image(folder), "--ids", " ".join(map(str, range(5, 69))), "-n", 0, "--print", "ids", "--chunk", chunk, "--stats")
        used = r.exits(0).stats["experts_used"]
        assert 12 < used <= 16 + 4, used  # nearly all of the first layer's 16, 4 of the last layer's


for model, name in LATER.items():

    @test(needs=data(f"models/zoo/{model}"))
    def families_with_recurrent_layers_and_gemma_4_are_refused_by_name(model=model, name=name):
        folder = DATA / "models" / "zoo" / model
        stele("convert", folder, "-o", SCRATCH / "later.stele").exits(3, name)


finish()
