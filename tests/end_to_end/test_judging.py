#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The tools that judge: perplexity, kld and compare against the reference values of ../shared and against numpy over the
logits that `logprobs` writes; sizes against the images that `convert` writes and the sessions that `run` opens."""
import json
import os
import shutil

import numpy as np

from harness import *
from workshop import FAST, copied, edit_json, fresh, llama, llama_config, logits, read_safetensors, slow, write_safetensors

TRAINED = data("models/trained12M")
STORIES = data("models/stories260K")
HELDOUT = TRAINED / "heldout.txt"
TEXT = data("text/multilingual.txt")
ZOO = data("models/zoo")
SMOLLM2 = ROOT / "build" / "real" / "smollm2-135m"
SANITIZED = bool(os.environ.get("STELE_SAN"))
SMOLLM2_GOLDEN = data("tools/real-models/golden/smollm2-135m.json")


def perplexity(img, file, *options, **kwargs):
    return json.loads(stele("perplexity", img, file, "--json", *options, **kwargs).exits(0).out)


def kld(img, reference, file, *options):
    return json.loads(stele("kld", img, "--reference", reference, file, "--json", *options).exits(0).out)


def short(text, name="text.txt"):
    file = fresh("text") / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def ids_of(img, text):
    return stele("tokenize", img, "--bare", "-", stdin=text).exits(0).ids


def log_softmax(rows):
    rows = rows.astype(np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def windows(count, length, stride, bos):
    """(first, end, first that is scored) of each window, as the Hugging Face documentation walks over a text."""
    end = 0
    for begin in range(0, count, stride):
        scored, end = end, min(begin + length, count)
        yield begin, end, scored + (scored == begin and bos is None)
        if end == count:
            return


def scored_rows(img, ids, length, stride, bos):
    """Rows of logits that predict the scored ids, and these ids."""
    rows, targets = [], []
    for begin, end, scored in windows(len(ids), length, stride, bos):
        tokens = ([] if bos is None else [bos]) + ids[begin:end]
        before = len(tokens) - (end - begin)
        if scored < end:
            all_rows = logits(img, tokens, "--context", length + before)
            rows.append(all_rows[scored - begin + before - 1 : end - begin + before - 1])
            targets += ids[scored:end]
    return np.concatenate(rows), np.array(targets)


def mean_nll(img, ids, length, stride, bos):
    rows, targets = scored_rows(img, ids, length, stride, bos)
    return -log_softmax(rows)[np.arange(len(targets)), targets].mean(), len(targets)


# ---- perplexity ----


@slow(needs=HELDOUT)
def perplexity_of_the_trained_model_is_that_of_transformers():
    want = json.loads((TRAINED / "golden.json").read_text())["heldout"]
    got = perplexity(image("trained12M"), HELDOUT, "--context", want["window"])
    assert got["scored"] == got["ids"] == want["n_tokens"]
    assert got["bos"] == 4090, "the id that the tokenizer puts before a text"
    assert abs(got["mean_nll"] - want["mean_nll"]) < 1e-5, got
    assert abs(got["perplexity"] - want["perplexity"]) < 1e-3, got


@slow(needs=[SMOLLM2, SMOLLM2_GOLDEN])
def perplexity_of_smollm2_is_that_of_transformers():
    for want in json.loads(SMOLLM2_GOLDEN.read_text())["perplexity"]:
        got = perplexity(image(SMOLLM2), data("text") / want["file"], "--context", want["window"], "--bytes", want["bytes"])
        assert (got["ids"], got["scored"], got["bos"]) == (want["n_ids"], want["scored"], want["bos"]), got
        assert abs(got["mean_nll"] - want["mean_nll"]) < 1e-5, got


@test(needs=STORIES)
def perplexity_is_that_of_the_logits():
    text = b"Once upon a time there was a small dog. He liked to play in the park with his friend, a red ball. " * 3
    img, file = image("stories260K"), short(text)
    ids = ids_of(img, text)
    for length, stride, bos in [(16, 16, 1), (16, 16, None), (16, 5, None), (16, 5, 1), (50, 49, 3), (400, 400, None), (1, 1, 1)]:
        want, scored = mean_nll(img, ids, length, stride, bos)
        got = perplexity(img, file, "--context", length, "--stride", stride, "--bos", "none" if bos is None else bos)
        assert (got["scored"], got["context"], got["stride"], got["bos"]) == (scored, length, stride, bos), got
        assert got["windows"] == len(list(windows(len(ids), length, stride, bos))), got
        assert abs(got["mean_nll"] - want) < 1e-6, (length, stride, bos, got, want)


@test(needs=STORIES)
def windows_begin_anew_where_keys_and_values_lie_in_a_ring():
    folder = llama("sliding", architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=512, sliding_window=16,
                   max_position_embeddings=512)
    shutil.copyfile(STORIES / "tokenizer.json", folder / "tokenizer.json")
    img, file = image(folder), short("Once upon a time there was a small dog. " * 40)
    ids = ids_of(img, file.read_bytes())
    want, scored = mean_nll(img, ids, 300, 200, 1)
    got = perplexity(img, file, "--context", 300, "--stride", 200, "--bos", 1, "--chunk", 16)
    assert got["windows"] > 2 and got["scored"] == scored and abs(got["mean_nll"] - want) < 1e-6, (got, want)


@slow(needs=HELDOUT)
def threads_chunks_and_kernels_change_no_digit_of_a_perplexity():
    img = image("trained12M", "q8")
    call = lambda *options, **env: perplexity(img, HELDOUT, "--bytes", 1000, "--context", 64, *options, env=env)
    want = call()
    for options in [("--threads", 1), ("--threads", 3), ("--chunk", 1), ("--threads", 2, "--chunk", 7)]:
        assert call(*options) == want, options
    assert call(STELE_KERNELS="generic") == want


@test(needs=[STORIES, TEXT])
def a_character_that_bytes_cuts_is_left_out():
    text, img = TEXT.read_bytes(), image("stories260K")
    at = next(i for i in range(2000, len(text)) if text[i] & 0xC0 == 0x80 and text[i + 1] & 0xC0 == 0x80)
    for n in [at, at + 1, 2000]:
        want = len(ids_of(img, text[:n].decode("utf-8", "ignore").encode()))
        assert perplexity(img, TEXT, "--bytes", n)["ids"] == want, n
        assert perplexity(img, "-", "--bytes", n, stdin=text)["ids"] == want, n


@test(needs=STORIES)
def perplexity_prints_the_definition_with_the_number():
    r = stele("perplexity", image("stories260K"), short("One day a cat sat on a mat. " * 9), "--context", 32, "--stride", 8)
    text = r.exits(0).text
    for part in ["perplexity  ", "mean nll ", "definition", "windows of up to 32 ids", "id 1 before each", "every 8 ids"]:
        assert part in text, (part, text)


@test(needs=STORIES)
def windows_that_cannot_be_are_refused():
    img, file = image("stories260K"), short("One day a cat sat on a mat.")
    stele("perplexity", img).exits(2, "FILE")
    stele("perplexity", img, file, "--context", 512).exits(2, "behind a BOS", "--context 511 fits")
    stele("perplexity", img, file, "--context", 513, "--bos", "none").exits(2, "--context 512 fits")
    stele("perplexity", img, file, "--context", 8, "--stride", 9).exits(2, "stride of 9")
    stele("perplexity", img, file, "--context", 1, "--bos", "none").exits(2, "nothing to score")
    stele("perplexity", img, file, "--bos", 512).exits(2, "id 512")
    stele("perplexity", img, file, "--bos", "<s>").exits(2, "<s>")
    stele("perplexity", img, short(b"")).exits(2, "empty")
    stele("perplexity", img, short(b"caf\xe9 ")).exits(3, "UTF-8")
    stele("perplexity", img, SCRATCH / "absent.txt").exits(1, "absent.txt")
    stele("perplexity", img, SCRATCH).exits(1, "directory")
    stele("perplexity", image(llama()), file).exits(3, "no tokenizer")


@test
def an_id_beyond_the_head_is_refused_wherever_steps_are_cut():
    folder = copied(DEMO, "cut")
    tensors = read_safetensors(folder / "model.safetensors")
    kind, (rows, width), raw = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = (kind, [900, width], raw[: 900 * width * len(raw) // (rows * width)])
    write_safetensors(folder / "model.safetensors", tensors)
    edit_json(folder / "config.json", lambda c: c.update(vocab_size=900))
    file = SCRATCH / "beyond.txt"
    file.write_text("One day, Ben lost his red hat and zebras quickly jumped")
    ids = stele("tokenize", image(folder), "--bare", file.read_text()).exits(0).ids
    (at,) = [i for i, id in enumerate(ids) if id >= 900][:1]
    assert at > 2
    for chunk in (1, at, at + 1, 512):  # with chunks of `at` it is scored by the last row of the step before its own
        stele("perplexity", image(folder), file, "--bos", "none", "--chunk", chunk).exits(2, f"id {ids[at]}", "900")


# ---- kld ----


@test(needs=HELDOUT)
def divergences_are_those_of_the_logits():
    img, reference = image("trained12M", "q4"), image("trained12M")
    text = HELDOUT.read_bytes()[: 400 if FAST else 1200]
    ids = ids_of(img, text)
    for length, stride in [(64, 64), (64, 20)]:
        got = kld(img, reference, short(text), "--context", length, "--stride", stride, "--bos", "none")
        q, targets = scored_rows(img, ids, length, stride, None)
        p, _ = scored_rows(reference, ids, length, stride, None)
        lq, lp = log_softmax(q), log_softmax(p)
        each = np.sort((np.exp(lp) * (lp - lq)).sum(axis=1))
        n = len(each)
        want = {"mean": each.mean(), "p90": each[-(-9 * n // 10) - 1], "p99": each[-(-99 * n // 100) - 1], "largest": each[-1]}
        at = np.arange(n)
        want |= {"same_top": (p.argmax(axis=1) == q.argmax(axis=1)).mean()}
        want |= {"perplexity": np.exp(-lq[at, targets].mean()), "reference_perplexity": np.exp(-lp[at, targets].mean())}
        want |= {"perplexity_ratio": want["perplexity"] / want["reference_perplexity"]}
        assert got["scored"] == n
        for key, value in want.items():
            assert abs(got[key] - value) <= 1e-6 * max(1, value), (key, got[key], value)
        assert 0 < got["mean"] < got["p99"] < got["largest"]


@test(needs=HELDOUT)
def an_image_does_not_diverge_from_itself():
    img = image("trained12M", "q8")
    got = kld(img, img, HELDOUT, "--bytes", 1000)
    assert (got["mean"], got["largest"], got["same_top"], got["perplexity_ratio"]) == (0, 0, 1, 1), got


@test(needs=HELDOUT)
def more_bits_diverge_less():
    mean = {w: kld(image("trained12M", w), image("trained12M"), HELDOUT, "--bytes", 1000 if FAST else 4000)["mean"] for w in ["bf16", "q8", "q4"]}
    assert mean["bf16"] < mean["q8"] < mean["q4"], mean
    text = stele("kld", image("trained12M", "q8"), "--reference", image("trained12M"), HELDOUT, "--bytes", 500).exits(0).text
    for part in ["KL divergence", "90 % below", "same top token", "ratio", "definition"]:
        assert part in text, (part, text)


@test(needs=[STORIES, HELDOUT])
def images_of_different_vocabularies_are_refused_by_name():
    stories, trained, file = image("stories260K"), image("trained12M"), short("Once upon a time")
    stele("kld", stories, "--reference", trained, file).exits(2, str(stories), str(trained), "tokenizers")
    heads = []
    for rows in [512, 520]:
        folder = llama(f"head-{rows}", vocab_size=rows)
        shutil.copyfile(STORIES / "tokenizer.json", folder / "tokenizer.json")
        heads.append(image(folder))
    stele("kld", heads[0], "--reference", heads[1], file).exits(2, str(heads[0]), str(heads[1]), "512", "520")
    stele("kld", stories, file).exits(2, "--reference")
    stele("kld", stories, "--reference", image(llama()), file).exits(3, "no tokenizer")


# ---- compare ----

# Families whose images are there whatever the zoo's others come to.
COMPARED = ["llama", "llama-f16", "mistral-swa", "qwen3", "phi3-longrope", "qwen3-moe", "gemma3"]

for model in COMPARED:

    @test(needs=ZOO / model)
    def an_f32_image_has_the_answers_of_its_checkpoints_references(model=model):
        lines = stele("compare", image(ZOO / model), ZOO / model, "--json").exits(0).text.splitlines()
        inputs = json.loads((ZOO / model / "expected.json").read_text())["inputs"]
        assert len(lines) == len(inputs)
        for line, entry in zip(map(json.loads, lines), inputs):
            assert line["ids"] == len(entry["ids"]) and line["logits"] < 1e-5 and line["within"], line
            assert line["greedy"] == line["greedy_equal"] == len(entry["greedy"]), line


@slow(needs=TRAINED)
def an_image_of_the_trained_model_has_the_answers_of_golden_json():
    text = stele("compare", image("trained12M", "bf16"), TRAINED, "--chunk", 5).exits(0).text
    runs = json.loads((TRAINED / "golden.json").read_text())["runs"]
    assert text.count("greedy ids equal") == len(runs) and "logits off by" in text, text


@slow(needs=[SMOLLM2, SMOLLM2_GOLDEN])
def a_file_of_references_may_hold_some_rows_of_the_logits():
    lines = stele("compare", image(SMOLLM2), SMOLLM2_GOLDEN, "--json").exits(0).text.splitlines()
    first = json.loads(lines[0])
    assert first["name"] == "logits" and first["logits"] < 1e-5 and len(lines) == 8, lines


@test(needs=[ZOO / "llama", ZOO / "llama-odd"])
def another_models_answers_end_with_exit_4():
    r = stele("compare", image(ZOO / "llama", "q8"), ZOO / "llama").exits(4, "3 of 3", "bound 1e-05")
    assert r.text.count("DIFFERENT") == 3, r.text
    loose = stele("compare", image(ZOO / "llama", "bf16"), ZOO / "llama", "--bound", "0.5").text
    assert "off by" in loose
    stele("compare", image(ZOO / "llama"), ZOO / "llama", "--bound", "1e-9").exits(4)
    stele("compare", image(ZOO / "llama-odd"), ZOO / "llama").exits(3, "131")


@test(needs=ZOO / "llama")
def greedy_ids_that_part_are_named():
    folder = copied(ZOO / "llama")
    edit_json(folder / "expected.json", lambda e: e["inputs"][1]["greedy"].__setitem__(3, 100))
    r = stele("compare", image(ZOO / "llama"), folder).exits(4, "1 of 3")
    assert "part at 4 of 24" in r.text and "instead of 100" in r.text, r.text


@test(needs=ZOO / "llama")
def malformed_references_are_refused():
    img = image(ZOO / "llama")

    def refused(change, *says, code=3):
        folder = copied(ZOO / "llama")
        edit_json(folder / "expected.json", change)
        stele("compare", img, folder).exits(code, *says)

    refused(lambda e: e["inputs"][0].update(logits="../llama/logits-1.bin"), "input 1", "name")
    refused(lambda e: e["inputs"][0].update(logits=".."), "input 1", "name")
    refused(lambda e: e["inputs"][2].update(logits="logits-7.bin"), "logits-7.bin", "rows")
    refused(lambda e: e["inputs"][1].update(ids=[]), "input 2", "no ids")
    refused(lambda e: e["inputs"][1].update(ids=[1, -2]), "input 2", "whole number")
    refused(lambda e: e["inputs"][1].update(ids=[1, 128]), "rows")
    refused(lambda e: e["inputs"][1].update(greedy=[1.5]), "input 2", "whole number")
    refused(lambda e: e["inputs"][1].pop("greedy"), "input 2", "greedy")
    refused(lambda e: e.update(n_vocab=0), "n_vocab")
    refused(lambda e: e.pop("inputs"), "inputs")
    refused(lambda e: e["inputs"][0].update(logits="absent.bin"), "absent.bin", code=1)
    stele("compare", img, short("{", "x.json")).exits(3, "x.json", "line 1")
    stele("compare", img, fresh("empty")).exits(3, "expected.json")
    stele("compare", img, SCRATCH / "absent").exits(1, "absent")
    stele("compare", img).exits(2, "DIR")


# ---- sizes ----


def sizes(source, *options):
    return json.loads(stele("sizes", source, "--json", *options).exits(0).out)


def same(a, b, but=()):
    """Equal but for what is measured."""
    but = {"bandwidth_bytes_per_s", "tokens_per_s_empty", "tokens_per_s_full", *but}
    assert {k: v for k, v in a.items() if k not in but} == {k: v for k, v in b.items() if k not in but}, (a, b)


SIZED = [ZOO / m for m in ["llama", "llama-odd", "llama-bias", "qwen2", "qwen3-moe", "phi3", "granite", "gemma2"]] + [STORIES, TRAINED]

for folder in SIZED[1::4] if FAST else SIZED:

    @test(needs=folder)
    def sizes_are_those_of_the_image_that_convert_writes(folder=folder):
        for weights in ["f32", "q4"]:
            img = image(folder, weights)
            options = ["--context", 100, "--threads", 3, "--chunk", 20]
            before = sizes(folder, "--weights", weights, *options)
            same(before, sizes(img, *options))
            assert before["image_bytes"] == img.stat().st_size
            parts = [k for k in before if k.endswith("_bytes") and k.split("_")[0] in
                     ("embedding", "layers", "experts", "head", "tokenizer", "rest")]
            assert sum(before[k] for k in parts) == before["image_bytes"] and len(parts) == 6
            config = sizes(folder / "config.json", "--weights", weights, *options)
            assert config["tokenizer_bytes"] is None
            sections = json.loads(stele("inspect", "--json", img).exits(0).out)["sections"]
            text = sum(s["bytes"] for s in sections if s["name"] in ("tokenizer", "templates", "provenance"))
            assert abs(before["image_bytes"] - config["image_bytes"] - text) < 4096 + 4 * 64, "what only the folder tells"
            same(before, config, ["image_bytes", "tokenizer_bytes", "rest_bytes"])
            stats = stele("run", img, "--ids", "1 " * 90, "-n", 5, "--print", "ids", "--stats", *options).exits(0).stats
            for key in ["kv_bytes", "scratch_bytes", "kv", "threads"]:
                assert stats[key] == before[key], (key, stats, before)
            assert before["own_bytes"] == stats["kv_bytes"] + stats["scratch_bytes"] + (4 << 20)
            # Where the scratch folder is no disk, the kernel counts the image's pages too.
            assert SANITIZED or stats["private_dirty_bytes"] <= before["own_bytes"] + img.stat().st_size


@test(needs=TRAINED)
def without_weights_the_sources_type_counts():
    img = SCRATCH / "source.stele"
    stele("convert", TRAINED, "-o", img).exits(0)
    same(sizes(TRAINED), sizes(img))
    assert sizes(TRAINED)["image_bytes"] == img.stat().st_size
    folder = fresh("config-only")
    shutil.copyfile(TRAINED / "config.json", folder / "config.json")
    shutil.copyfile(TRAINED / "tokenizer.json", folder / "tokenizer.json")
    same(sizes(folder), sizes(img), ["image_bytes", "rest_bytes"])


@test(needs=ZOO / "mistral-swa")
def keys_and_values_are_counted_for_context_and_sequences():
    folder = ZOO / "mistral-swa"
    config = json.loads((folder / "config.json").read_text())
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * 16
    one = sizes(folder, "--kv", "f32", "--context", 128)
    assert one["kv_token_bytes"] == 4 * numbers
    assert one["kv_read_bytes"] == 4 * numbers * config["sliding_window"]
    assert sizes(folder, "--kv", "f16", "--context", 128)["kv_token_bytes"] == 2 * numbers
    assert sizes(folder, "--kv", "f32", "--context", 128, "--parallel", 3)["kv_bytes"] >= 2 * one["kv_bytes"]


@test(needs=ZOO / "qwen3-moe")
def a_token_reads_the_experts_that_it_chooses():
    config = json.loads((ZOO / "qwen3-moe" / "config.json").read_text())
    z = sizes(ZOO / "qwen3-moe", "--weights", "q8")
    row = z["embedding_bytes"] // config["vocab_size"]
    chosen = z["experts_bytes"] * config["num_experts_per_tok"] // config["num_experts"]
    assert z["read_bytes"] == z["layers_bytes"] + z["head_bytes"] + row + chosen, z


@test
def a_model_larger_than_the_machine_is_counted_from_its_config():
    file = fresh("70b") / "config.json"
    file.write_text(json.dumps(llama_config(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        head_dim=128, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False, torch_dtype="bfloat16")))
    z = sizes(file)
    weights = 2 * 70_553_706_496
    assert 0 < z["image_bytes"] - weights < 16 << 20, z
    assert z["kv_token_bytes"] == 2 * 2 * 80 * 8 * 128 and z["kv_bytes"] == z["kv_token_bytes"] * 131072
    text = stele("sizes", file, "--weights", "q4", "--parallel", 4).exits(0).text
    for part in ["without tokenizer", "4 x 131072 tokens", "own memory", "tokens/s"]:
        assert part in text, (part, text)


@test
def what_cannot_be_counted_is_refused():
    folder = llama()
    config = folder / "config.json"
    stele("sizes").exits(2, "DIR")
    stele("sizes", folder, folder).exits(2, str(folder))
    stele("sizes", image(folder), "--weights", "q8").exits(2, "--weights")
    stele("sizes", folder, "--context", 65).exits(2, "64")
    stele("sizes", folder, "--weights", "q5").exits(2, "q5")
    stele("sizes", folder, "--parallel", 0).exits(2, "--parallel")
    stele("sizes", SCRATCH / "absent").exits(1, "absent")
    stele("sizes", fresh("nothing")).exits(3, "config.json")
    stele("sizes", short("{}", "config.json")).exits(3, "architecture")
    edit_json(config, lambda c: c.pop("torch_dtype"))
    stele("sizes", config).exits(2, "--weights TYPE")
    stele("sizes", config, "--weights", "q8").exits(0)
    edit_json(config, lambda c: c.update(hidden_sizes=3))
    stele("sizes", config, "--weights", "q8").exits(3, "hidden_sizes")
    stele("sizes", config, "--weights", "q8", "--ignore-key", "hidden_sizes").exits(0)
    damaged = SCRATCH / "damaged.stele"
    damaged.write_bytes(image(llama()).read_bytes()[:-4096])
    stele("sizes", damaged).exits(4, "cut short")


finish()
