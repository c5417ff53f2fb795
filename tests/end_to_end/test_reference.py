#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Answers against implementations that no one here wrote: the reference values of ../shared/models, made by transformers."""
import numpy as np

from harness import *

TRAINED = ["stories260K", "trained12M"]
# The Llamas of the zoo that need nothing but plain RoPE.
ZOO = ["llama", "llama-bias", "llama-f16", "llama-odd", "llama-sharded", "llama-tied-gqa"]


def logits(img, ids, *options):
    dump = SCRATCH / "logits.bin"
    stele("logprobs", img, "--ids", " ".join(map(str, ids)), "--dump-logits", dump, *options).exits(0)
    return np.fromfile(dump, "<f4").reshape(len(ids), -1)


def compare(img, ids, file, n_vocab, bound):
    want = np.fromfile(file, "<f4").reshape(len(ids), n_vocab)
    got = logits(img, ids)
    assert got.shape == want.shape, (got.shape, want.shape)
    worst = np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()
    assert worst <= bound, f"off by {worst:.2e} of the largest logit"


def greedy(img, ids, n, *options):
    r = stele("run", img, "--ids", " ".join(map(str, ids)), "-n", n, "--print", "ids", "--temperature", 0, *options)
    return r.exits(0).ids


for model in TRAINED:

    @test(needs=data(f"models/{model}"))
    def trained_models_continue_as_transformers_does(model=model):
        golden = json.loads((DATA / "models" / model / "golden.json").read_text())
        for run in golden["runs"]:
            # One token more than the reference drew: where it ended with end of text nothing follows.
            n = len(run["greedy_ids"]) + (50 if run["stop"] == "eos" else 0)
            assert greedy(image(model), run["prompt_ids"], n) == run["greedy_ids"], run["prompt"]

    @test(needs=data(f"models/{model}"))
    def logits_of_trained_models_are_within_1e_4_of_the_largest(model=model):
        golden = json.loads((DATA / "models" / model / "golden.json").read_text())["logits"]
        compare(image(model), golden["ids"], DATA / "models" / model / golden["file"], golden["n_vocab"], 1e-4)


for model in ZOO:

    @test(needs=data(f"models/zoo/{model}"))
    def the_zoos_llamas_are_within_1e_5_and_their_greedy_ids_equal(model=model):
        folder = DATA / "models" / "zoo" / model
        expected = json.loads((folder / "expected.json").read_text())
        for entry in expected["inputs"]:
            compare(image(folder), entry["ids"], folder / entry["logits"], expected["n_vocab"], 1e-5)
            got = greedy(image(folder), entry["ids"], len(entry["greedy"]))
            # The references ignore end of text.
            assert got == entry["greedy"][: len(got)], (entry["n_tokens"], got)
            assert len(got) == len(entry["greedy"]) or entry["greedy"][len(got)] == 2


@test
def the_demo_model_reads_and_continues_as_transformers_does():
    golden = json.loads((DEMO.parent / "golden.json").read_text())
    for run in golden["greedy"]:
        r = stele("run", image(DEMO), run["prompt"], "-n", len(run["greedy_ids"]) + 50, "--print", "json").exits(0)
        answer = json.loads(r.text)
        assert answer["ids"] == run["greedy_ids"] and answer["text"] == run["text"], run["prompt"]
    for case in golden["tokenizer"]:
        for ids, more in ((case["ids_plain"], ["--bare"]), (case["ids"], [])):
            assert stele("tokenize", image(DEMO), "-", *more, stdin=case["text"].encode()).exits(0).ids == ids, case


finish()
