#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""One answer: the same bits for every table of kernels, thread count and cut of the prompt, the bits of bits.txt on every
machine, and halves within 1e-5 of an f32 run over the same rounded weights."""
import functools
import hashlib

import numpy as np

from harness import *
from workshop import *

sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
WEIGHTS = ("f32", "bf16", "f16", "q8", "q4")


@functools.cache
def tables():
    """Kernel tables that this CPU runs."""
    probe = image(_odd)
    names = ("generic", "avx2", "avx512", "neon")
    return [n for n in names if stele("run", probe, "--ids", "1", "-n", 1, "--print", "ids", env={"STELE_KERNELS": n}).code == 0]


_odd = llama("odd", hidden_size=100, intermediate_size=300, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
             head_dim=22, vocab_size=259, max_position_embeddings=1024, scale=0.2, tie_word_embeddings=False)  # fmt: skip
_wide = llama("wide", hidden_size=544, intermediate_size=800, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1,
              head_dim=128, vocab_size=128, max_position_embeddings=1024, scale=0.1)  # fmt: skip


def prompt(n, vocabulary, seed=5):
    return np.random.default_rng(seed).integers(vocabulary, size=n).tolist()


def sha(img, ids, *options, env=None):
    return hashlib.sha256(logits(img, ids, *options, env=env).tobytes()).hexdigest()


def one_sha(folder, ids, weights, kv):
    """Every chunk on every table, with every thread count somewhere."""
    path = image(folder, weights)
    want = sha(path, ids, "--kv", kv, "--chunk", 512, "--threads", 1, env={"STELE_KERNELS": "generic"})
    for table in tables():
        for chunk, n in [(3, 3), (512, 2)] if table == "generic" else [(1, 1), (3, 2), (16, 3), (16, 1), (512, 2), (512, 3)]:
            got = sha(path, ids, "--kv", kv, "--chunk", chunk, "--threads", n, env={"STELE_KERNELS": table})
            assert got == want, f"{weights}, --kv {kv}, --chunk {chunk}, --threads {n}, {table}: other bits"


@slow
def chunks_threads_and_tables_give_one_sha_256_of_the_logits_for_odd_sizes():
    for weights in WEIGHTS:
        one_sha(_odd, prompt(150, 259), weights, "f32" if weights in ("f32", "q4") else "f16")


@slow
def chunks_threads_and_tables_give_one_sha_256_of_the_logits_for_wide_rows():
    for weights in WEIGHTS:
        one_sha(_wide, prompt(70, 128), weights, "f16" if weights in ("f32", "q4") else "f32")


@slow(needs=data("models/trained12M"))
def every_chunk_and_thread_count_gives_one_sha_256_of_the_logits_of_a_trained_model():
    ids = json.loads((data("models/trained12M") / "golden.json").read_text())["logits"]["ids"]
    for weights in ("q8", "q4"):
        path = image("trained12M", weights)
        cuts = [(c, t) for c in (1, 3, 16, 512) for t in (1, 2, 3)]
        assert len({sha(path, ids, "--chunk", c, "--threads", t) for c, t in cuts}) == 1, weights


@test
def generation_draws_the_same_ids_on_every_table_thread_count_and_chunk():
    ids = " ".join(map(str, prompt(40, 259)))
    for weights in ("f32", "q8", "q4"):
        path, seen = image(_odd, weights), set()
        for table in tables():
            for chunk, n in ((1, 1), (7, 2), (512, 3)):
                r = stele("run", path, "--ids", ids, "-n", 60, "--temperature", 1, "--top-p", 0.9, "--seed", 3, "--print", "ids",
                          "--chunk", chunk, "--threads", n, env={"STELE_KERNELS": table})  # fmt: skip
                seen.add(r.exits(0).out)
        assert len(seen) == 1, weights


@test
def logits_of_a_prefill_are_those_of_decoding_id_by_id_and_do_not_depend_on_what_follows():
    path, ids = image(_odd, "q8"), prompt(90, 259)
    whole = logits(path, ids)
    assert np.array_equal(whole, logits(path, ids, "--chunk", 1))
    for n in (1, 2, 63, 64, 65):
        assert np.array_equal(whole[:n], logits(path, ids[:n])), n


@test
def attention_of_one_row_cut_among_threads_has_the_bits_of_one_thread_whatever_it_sees():
    size = dict(num_attention_heads=6, num_key_value_heads=3, head_dim=24, num_hidden_layers=1, max_position_embeddings=8192)
    full = llama("cut", **size)
    window = llama("cut-window", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=1000, **size)
    for folder, before in ((full, 4500), (full, 800), (window, 1500)):  # beyond 64 blocks, within, not from the first on
        path, ids = image(folder), prompt(before + 2, 64)
        cut = ["--chunk", before // 2 if before > 1500 else before]
        want = logits(path, ids, *cut, "--threads", 1)[before:]
        for n in (2, 4, 5):
            assert np.array_equal(logits(path, ids[: before + 1], *cut, "--threads", n)[before:], want[:1]), (before, n)


@test(needs=ROOT / "tests" / "fixtures" / "bits.txt")
def bits_of_the_demo_model_are_those_of_bits_txt():
    import make_bits

    for line in (ROOT / "tests" / "fixtures" / "bits.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            weights, kv, chunk, want = line.split()
            got = make_bits.bits(image(DEMO, weights), kv, int(chunk), logits)
            assert got == want, f"{weights} --kv {kv} --chunk {chunk}: {got} instead of {want}"


# ---- halves ----


def rounded_twin(folder, weights):
    """The checkpoint whose f32 weights are those that `weights` rounds to."""
    twin = copied(folder, f"{Path(folder).name}-{weights}")
    tensors = {}
    for file in sorted(twin.glob("*.safetensors")):
        for name, (dtype, shape, raw) in read_safetensors(file).items():
            x = floats(dtype, raw)
            if len(shape) == 2:  # vectors stay f32
                x = bf16_floats(bf16_bits(x)) if weights == "bf16" else x.astype("<f2").astype("<f4")
            tensors[name] = ("F32", shape, x.astype("<f4").tobytes())
        file.unlink()
    (twin / "model.safetensors.index.json").unlink(missing_ok=True)
    write_safetensors(twin / "model.safetensors", tensors)
    return twin


def relative(a, b):
    return float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())


@test
def bf16_and_f16_images_are_within_1e_5_of_an_f32_run_over_the_same_rounded_weights():
    for folder, vocabulary in ((_odd, 259), (_wide, 128)):
        for weights in ("bf16", "f16"):
            ids = prompt(100, vocabulary)
            want = logits(image(rounded_twin(folder, weights), "f32"), ids)
            worst = relative(logits(image(folder, weights), ids, "--kv", "f32"), want)
            assert worst <= 1e-5, f"{weights}: {worst:.1e}"


@slow(needs=data("models/stories260K"))
def trained_models_in_bf16_and_f16_are_within_1e_5_of_an_f32_run_over_the_rounded_weights():
    ids = json.loads((data("models/stories260K") / "golden.json").read_text())["logits"]["ids"]
    for weights in ("bf16", "f16"):
        want = logits(image(rounded_twin(data("models/stories260K"), weights), "f32"), ids)
        assert relative(logits(image("stories260K", weights), ids, "--kv", "f32"), want) <= 1e-5, weights


@slow(needs=data("models/trained12M"))
def what_f16_keys_and_values_add_is_small_and_printed():
    for model in ("stories260K", "trained12M"):
        golden = json.loads((data("models") / model / "golden.json").read_text())
        ids = golden["runs"][-1]["prompt_ids"] + golden["runs"][-1]["greedy_ids"]
        added = relative(logits(image(model), ids, "--kv", "f16"), logits(image(model), ids, "--kv", "f32"))
        print(f"      {model}: f16 keys and values move the logits by {added:.1e} of the largest ({len(ids)} ids)")
        assert 0 < added < 5e-3


@test
def keys_and_values_are_f32_for_f32_images_and_else_f16():
    for weights in WEIGHTS:
        path = image(_odd, weights)
        r = stele("run", path, "--ids", "1", "-n", 1, "--print", "ids", "--stats").exits(0)
        assert r.stats["kv"] == ("f32" if weights == "f32" else "f16"), weights


finish()
