#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Models that people use: as f32 images they give transformers' answers, ids, text, logits and perplexity. The
checkpoints are what scripts/real-model fetched; without them everything here is skipped. SmolLM2 is tested whenever it
is there, the larger ones by `make test-real` (STELE_REAL=1)."""
import json

import numpy as np

from harness import *
from workshop import slow

GOLDEN = data("tools/real-models/golden")
LARGER = ["gemma-3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"] if os.environ.get("STELE_REAL") else []
EXACT = 1e-5  # of the largest logit
HOUR = 3600  # at most, of a call: 6 GB of weights on a machine that others use too
GREEDY = ["--temperature", 0, "--repeat-penalty", 1]  # whatever generation_config.json says


def ids_text(ids):
    return " ".join(map(str, ids))


def prompt_text(run):
    """The run's prompt as UTF-8: itself, or the first bytes of a file, a character cut at the end left out."""
    if "prompt" in run:
        return run["prompt"].encode()
    return data("text/" + run["prompt_file"]).read_bytes()[: run["prompt_bytes"]].decode("utf-8", "ignore").encode()


def tokens_max(run):
    """As many as the reference drew; where it ended with end of text a larger number changes nothing."""
    return len(run["greedy_ids"]) + (100 if run["stop"] == "eos" else 0)


def decided(run, golden):
    """How many ids f32 decides: all, unless two logits come closer than the rounding that both are allowed."""
    largest = max(p["largest"] for p in golden["logits"]["positions"])
    return None if run["min_gap"] > 2 * EXACT * largest else run["min_gap_step"]


def small(model):
    return model == "smollm2-135m"


for model in ["smollm2-135m", *LARGER]:
    checkpoint, reference = ROOT / "build" / "real" / model, GOLDEN / f"{model}.json"
    needs = [checkpoint, reference]
    golden = json.loads(reference.read_text()) if reference.exists() else {"runs": [], "perplexity": []}

    for run in golden["runs"]:

        @slow(needs=needs)
        def real_models_continue_text_as_transformers_does(checkpoint=checkpoint, golden=golden, run=run):
            how, stdin = (["--raw", "-"], prompt_text(run)) if run["kind"] != "chat" else \
                (["--messages", "-"], json.dumps(run["messages"]).encode())  # fmt: skip
            assert stele("tokenize", image(checkpoint), *how, stdin=stdin).exits(0).ids == run["prompt_ids"], run["kind"]
            r = stele("run", image(checkpoint), "-n", tokens_max(run), "--print", "json", *GREEDY, *how, stdin=stdin,
                      timeout=HOUR)  # fmt: skip
            answer, n = json.loads(r.exits(0).out), decided(run, golden)
            assert answer["prompt_tokens"] == len(run["prompt_ids"]), run["kind"]
            assert answer["ids"][:n] == run["greedy_ids"][:n], (run["kind"], answer["ids"])
            if n is None:
                assert answer["text"] == run["text"], (run["kind"], answer["text"])
                assert answer["finish"] == ("stop" if run["stop"] == "eos" else "length")

        if small(model):

            @slow(needs=needs)
            def real_models_continue_ids_as_transformers_does(checkpoint=checkpoint, run=run):
                r = stele("run", image(checkpoint), "--ids", ids_text(run["prompt_ids"]), "-n", tokens_max(run),
                          "--print", "ids", *GREEDY)  # fmt: skip
                assert r.exits(0).ids == run["greedy_ids"], (run["kind"], r.ids)

    @slow(needs=needs)
    def logits_of_real_models_are_within_1e_5_of_the_largest(checkpoint=checkpoint, golden=golden):
        g = golden["logits"]
        dump = SCRATCH / "logits.bin"
        stele("logprobs", image(checkpoint), "--ids", ids_text(g["ids"]), "--dump-logits", dump).exits(0)
        got = np.fromfile(dump, "<f4").reshape(len(g["ids"]), g["n_vocab"]).astype(np.float64)
        off = []
        for p in g["positions"]:
            row = got[p["position"]]
            off.append(np.abs(row[p["top_ids"]] - p["top_logits"]).max() / p["largest"])
            off.append(np.abs(row[:: g["sample_stride"]] - p["sample"]).max() / p["largest"])
            off.append(abs(np.logaddexp.reduce(row) - p["logsumexp"]) / p["largest"])
        if g["file"]:
            want = np.fromfile(GOLDEN / g["file"], "<f4").reshape(-1, g["n_vocab"])
            off.append(np.abs(got[g["file_positions"]] - want).max() / np.abs(want).max())
        print(f"      {checkpoint.name}: off by {max(off):.1e} of the largest logit")
        assert max(off) <= EXACT, off

    for p in golden["perplexity"]:

        @slow(needs=needs)
        def perplexity_of_real_models_is_that_of_transformers(checkpoint=checkpoint, p=p):
            bos = "none" if p["bos"] is None else p["bos"]
            r = stele("perplexity", image(checkpoint), data("text/" + p["file"]), "--bytes", p["bytes"], "--context",
                      p["window"], "--bos", bos, "--json", timeout=HOUR)  # fmt: skip
            got = json.loads(r.exits(0).out)
            off = abs(got["perplexity"] / p["perplexity"] - 1)
            print(f"      {checkpoint.name}, {p['file']}: mean nll {got['mean_nll']:.7f}, perplexity off by {off:.1e}")
            assert got["scored"] == p["scored"], got
            assert off <= 1e-4 and abs(got["mean_nll"] - p["mean_nll"]) <= 1e-4, (got, p)


    if small(model):

        @slow(needs=needs)
        def a_real_model_writes_its_answer_and_a_newline(checkpoint=checkpoint, run=(golden["runs"] or [None])[0]):
            r = stele("run", image(checkpoint), "--raw", *GREEDY, run["prompt"]).exits(0)
            assert r.text == run["text"] + "\n", r.text

    forget_images()


finish()
