#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A model that people use: SmolLM2-135M-Instruct as an f32 image gives transformers' answers. The checkpoint is what
`make demo-real` fetched; without it everything here is skipped."""
import json

import numpy as np

from harness import *
from workshop import slow

CHECKPOINT = ROOT / "build" / "real" / "smollm2-135m"
REFERENCE = data("tools/real-models/golden/smollm2-135m.json")
NEEDS = [CHECKPOINT, REFERENCE]

golden = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {"runs": []}


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


for run in golden["runs"]:

    @slow(needs=NEEDS)
    def smollm2_continues_ids_as_transformers_does(run=run):
        r = stele("run", image(CHECKPOINT), "--ids", ids_text(run["prompt_ids"]), "-n", tokens_max(run), "--print", "ids",
                  "--temperature", 0)
        assert r.exits(0).ids == run["greedy_ids"], (run["kind"], r.ids)

    @slow(needs=NEEDS)
    def smollm2_continues_text_as_transformers_does(run=run):
        # A chat prompt is what the template gave, so nothing is added to it.
        bare = ["--bare"] if run["kind"] == "chat" else []
        r = stele("run", image(CHECKPOINT), "--raw", *bare, "-n", tokens_max(run), "--print", "json", "--temperature", 0,
                  "-", stdin=prompt_text(run))
        answer = json.loads(r.exits(0).out)
        assert answer["prompt_tokens"] == len(run["prompt_ids"]), run["kind"]
        assert answer["ids"] == run["greedy_ids"], (run["kind"], answer["ids"])
        assert answer["text"] == run["text"], (run["kind"], answer["text"])
        assert answer["finish"] == ("stop" if run["stop"] == "eos" else "length")


@slow(needs=NEEDS)
def smollm2_writes_its_answer_and_a_newline():
    run = golden["runs"][0]
    r = stele("run", image(CHECKPOINT), "--raw", "--temperature", 0, run["prompt"]).exits(0)
    assert r.text == run["text"] + "\n", r.text


@slow(needs=NEEDS)
def logits_of_smollm2_are_within_1e_5_of_the_largest():
    g = golden["logits"]
    dump = SCRATCH / "logits.bin"
    stele("logprobs", image(CHECKPOINT), "--ids", ids_text(g["ids"]), "--dump-logits", dump).exits(0)
    got = np.fromfile(dump, "<f4").reshape(len(g["ids"]), g["n_vocab"])[g["file_positions"]].astype(np.float64)
    want = np.fromfile(REFERENCE.parent / g["file"], "<f4").reshape(len(g["file_positions"]), g["n_vocab"])
    worst = np.abs(got - want).max() / np.abs(want).max()
    assert worst <= 1e-5, f"off by {worst:.2e} of the largest logit"


finish()
