#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Draws: over 2,000 seeds they fit the probabilities that logprobs prints, and options mean what they mean in transformers.

The reference is a second implementation, in binary64, of the order that transformers has: repetition penalty, temperature,
top-k, top-p, min-p. One small model, one token a run."""
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from harness import *
from workshop import *

PROMPT = "1 5 2 5"
SEEDS = 2000 if not FAST else 300
# 24 ids of quite unlike probabilities.
_model = llama("draw", vocab_size=24, num_hidden_layers=1, scale=0.5, seed=3)


def model():
    return image(_model)


def row():
    """Logits of what follows the prompt."""
    return logits(model(), [int(i) for i in PROMPT.split()])[-1].astype(np.float64)


def probabilities(temperature=1.0, top_k=0, top_p=0.0, min_p=0.0, penalty=1.0):
    x = row()
    for i in {int(i) for i in PROMPT.split()}:
        x[i] = x[i] * penalty if x[i] < 0 else x[i] / penalty
    x = x / temperature
    order = np.lexsort((np.arange(len(x)), -x))
    keep = np.ones(len(x), bool)
    softmax = lambda: np.where(keep, np.exp(x - x.max()), 0) / np.where(keep, np.exp(x - x.max()), 0).sum()
    if top_k:
        keep[order[top_k:]] = False
    if 0 < top_p < 1:
        p = softmax()
        before = np.cumsum(p[order]) - p[order]
        keep[order[before >= top_p]] = False
    if min_p:
        p = softmax()
        keep &= p >= min_p * p.max()
    return softmax()


def draw(seed, *options):
    r = stele("run", model(), "--ids", PROMPT, "-n", 1, "--print", "ids", "--seed", seed, "--threads", 1, *options)
    (token,) = r.exits(0).ids
    return token


def draws(n, *options):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda seed: draw(seed, *options), range(n)))


def chi_square_bound(freedom):
    """The value that one chi-square of 100,000 exceeds (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.265 * math.sqrt(2 / (9 * freedom))) ** 3


def fits(found, p):
    counts = np.bincount(found, minlength=len(p))
    assert not counts[p == 0].any(), f"drawn what was filtered out: {np.flatnonzero((counts > 0) & (p == 0))}"
    expected = p * len(found)
    # Ids that would hardly come are counted as one.
    rare = (expected < 5) & (p > 0)
    pairs = [(counts[i], expected[i]) for i in np.flatnonzero(expected >= 5)] + [(counts[rare].sum(), expected[rare].sum())]
    pairs = [(c, e) for c, e in pairs if e > 0]
    chi = sum((c - e) ** 2 / e for c, e in pairs)
    freedom = len(pairs) - 1
    assert freedom == 0 or chi <= chi_square_bound(freedom), f"chi-square {chi:.1f} with {freedom} degrees of freedom"
    return chi, freedom


@slow
def draws_over_2000_seeds_fit_the_probabilities_that_logprobs_prints():
    printed = np.zeros(24)
    lines = stele("logprobs", model(), "--ids", PROMPT + " 0", "--top", 24).exits(0).text.splitlines()
    top = json.loads(lines[-1])
    entries = next(v for v in top.values() if isinstance(v, list))
    for e in entries:
        printed[e["id"]] = math.exp(e["logprob"])
    assert abs(printed.sum() - 1) < 1e-5, printed
    assert np.allclose(printed, probabilities(), atol=1e-6)
    chi, freedom = fits(draws(SEEDS, "--temperature", 1), printed / printed.sum())
    print(f"      chi-square {chi:.1f} with {freedom} degrees of freedom")


@slow
def draws_fit_with_every_filter():
    for options, settings in (
        (["--temperature", 0.5], dict(temperature=0.5)),
        (["--temperature", 1, "--top-k", 5], dict(top_k=5)),
        (["--temperature", 1.5, "--top-p", 0.7], dict(temperature=1.5, top_p=0.7)),
        (["--temperature", 1, "--min-p", 0.2], dict(min_p=0.2)),
        (["--temperature", 1, "--repeat-penalty", 3], dict(penalty=3.0)),
        (["--temperature", 1.2, "--top-k", 12, "--top-p", 0.8, "--min-p", 0.05, "--repeat-penalty", 1.5],
         dict(temperature=1.2, top_k=12, top_p=0.8, min_p=0.05, penalty=1.5)),
    ):  # fmt: skip
        fits(draws(400, *options), probabilities(**settings))


@test
def the_same_seed_repeats_whatever_else_is_asked_of_the_machine():
    for seed in (0, 1, 2**32, 2**53 + 1, 2**64 - 2048):
        first = draw(seed, "--temperature", 2)
        for more in ([], ["--threads", 3], ["--chunk", 1], ["--kv", "f32"], ["--context", 10]):
            assert draw(seed, "--temperature", 2, *more) == first, (seed, more)


@test
def seeds_differ_in_all_their_64_bits():
    run = lambda seed: stele("run", model(), "--ids", PROMPT, "-n", 12, "--temperature", 3, "--print", "ids", "--seed", seed)
    found = {tuple(run(1 << bit).exits(0).ids) for bit in range(0, 64, 7)}
    assert len(found) == 10


@test
def temperature_0_top_k_1_and_a_tiny_top_p_are_greedy():
    best = int(row().argmax())
    assert draw(1, "--temperature", 0) == best
    for options in (["--top-k", 1], ["--top-p", 1e-6], ["--min-p", 1]):
        assert {draw(s, "--temperature", 1.5, *options) for s in range(10)} == {best}, options


@test
def ties_go_to_the_lower_id():
    name = "model.embed_tokens.weight"
    rng = np.random.default_rng(1)
    table = rng.standard_normal((64, 32)).astype("<f4")
    table[10:60] = table[60]
    folder = llama("ties", tensors={name: ("F32", [64, 32], table.tobytes())})
    probe = image(folder)
    for prompt in range(0, 64, 5):
        x = logits(probe, [prompt])[-1]
        assert len(set(x[10:61].tolist())) == 1
        (token,) = stele("run", probe, "--ids", prompt, "-n", 1, "--print", "ids").exits(0).ids
        assert token == int(x.argmax())
        (token,) = stele("run", probe, "--ids", prompt, "-n", 1, "--print", "ids", "--temperature", 1, "--top-k", 1).exits(0).ids
        assert token == int(x.argmax())


@test
def the_repetition_penalty_counts_prompt_and_answer_once_each():
    x = row()
    seen = {int(i) for i in PROMPT.split()}
    answer = []
    ids = [int(i) for i in PROMPT.split()]
    got = stele("run", model(), "--ids", PROMPT, "-n", 10, "--temperature", 0, "--repeat-penalty", 2, "--print", "ids").exits(0).ids
    for token in got:
        x = logits(model(), ids)[-1].astype(np.float64)
        for i in set(ids):
            x[i] = x[i] * 2 if x[i] < 0 else x[i] / 2
        assert token == int(x.argmax()), (answer, token)
        ids.append(token)
        answer.append(token)
    assert seen


finish()
