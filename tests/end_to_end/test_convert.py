#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What stele-convert makes of a good checkpoint: the same bytes every time, the same model from every spelling of its
config and every cut of its files, the types that were asked for, and no more memory than a few panels."""
import re
import shutil

import numpy as np

import imagefile as im
from harness import *
from workshop import *


def identity(path):
    return im.ImageFile.read(path).identity


IDS = [1, 5, 33, 2, 60, 7]


# ---- the same bytes ----


@test
def the_same_input_gives_the_same_bytes_with_any_number_of_threads():
    folder = llama("threads", hidden_size=96, intermediate_size=200, head_dim=24, vocab_size=500, num_hidden_layers=3,
                   tie_word_embeddings=False)  # fmt: skip
    for weights in ("f32", "bf16", "f16", "q8", "q4"):
        first = converted(folder, "--weights", weights, "--threads", 1).read_bytes()
        for threads in (1, 2, 3, 7, 64):
            assert converted(folder, "--weights", weights, "--threads", threads).read_bytes() == first, (weights, threads)


@slow(needs=data("models/trained12M"))
def a_trained_model_gives_the_same_bytes_with_1_2_and_3_threads():
    for weights in ("bf16", "q8", "q4"):
        made = {converted(data("models/trained12M"), "--weights", weights, "--threads", n).read_bytes() for n in (1, 2, 3)}
        assert len(made) == 1, weights


@test
def neither_the_folders_name_nor_times_nor_the_order_of_its_files_change_a_byte():
    folder = llama("here")
    other = fresh("there") / "deeper"
    other.mkdir()
    for f in sorted(folder.iterdir(), reverse=True):
        shutil.copyfile(f, other / f.name)
        os.utime(other / f.name, (1, 1))
    (other / "README.md").write_text("a file that is not read")
    assert converted(folder).read_bytes() == converted(other).read_bytes()


# ---- the same model ----


@test
def shards_and_one_file_have_the_same_identity_and_weights():
    folder = llama("whole")
    tensors = read_safetensors(folder / "model.safetensors")
    parts = copied(folder)
    (parts / "model.safetensors").unlink()
    weight_map = {}
    for i in range(3):
        names = [*tensors][i::3]
        file = f"model-{i + 1:05}-of-00003.safetensors"
        write_safetensors(parts / file, {n: tensors[n] for n in names})
        weight_map |= {n: file for n in names}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    one, three = im.ImageFile.read(converted(folder)), im.ImageFile.read(converted(parts))
    assert one.identity == three.identity
    for kind in (im.PLAN, im.TENSORS, im.DEFAULTS, im.WEIGHTS, im.DIGESTS):
        assert one.section(kind).raw == three.section(kind).raw
    assert one.section(im.PROVENANCE).raw != three.section(im.PROVENANCE).raw


@test
def the_order_of_tensors_and_metadata_of_a_file_do_not_change_the_identity():
    folder = llama("order")
    tensors = read_safetensors(folder / "model.safetensors")
    other = copied(folder)
    write_safetensors(other / "model.safetensors", dict(reversed(tensors.items())),
                      lambda h: {"__metadata__": {"format": "pt", "x": "y"}} | h)  # fmt: skip
    assert identity(converted(folder)) == identity(converted(other))


@test
def another_weight_config_or_type_is_another_identity():
    folder = llama("one")
    seen = {identity(converted(folder))}
    for change in (dict(seed=2), dict(rope_theta=500000.0), dict(rms_norm_eps=1e-6), dict(max_position_embeddings=128),
                   dict(eos_token_id=3)):  # fmt: skip
        made = identity(converted(llama("other", **change)))
        assert made not in seen, change
        seen.add(made)
    for weights in ("bf16", "f16", "q8", "q4"):
        made = identity(converted(folder, "--weights", weights))
        assert made not in seen, weights
        seen.add(made)


@test
def spellings_of_transformers_4_and_5_are_the_same_model():
    drop = ("rope_theta", "torch_dtype")
    four = llama("four", rope_theta=50000.0, rope_scaling=None)
    five = llama("five", drop=drop, rope_parameters={"rope_type": "default", "rope_theta": 50000.0}, dtype="F32")
    edit_json(five / "config.json", lambda c: c.update(dtype="float32"))
    typed = llama("typed", rope_theta=50000.0, rope_scaling={"type": "default"})
    assert identity(converted(four)) == identity(converted(five)) == identity(converted(typed))


@test
def what_a_config_leaves_out_has_the_value_that_transformers_gives_it():
    # The oldest spelling: no head_dim, no rope_theta, no biases, no tying, no key heads, no activation.
    sizes = dict(num_key_value_heads=4, head_dim=8, rope_theta=10000.0, rms_norm_eps=1e-6, max_position_embeddings=2048,
                 tie_word_embeddings=False)  # fmt: skip
    full = llama("full", attention_bias=False, mlp_bias=False, **sizes)
    left_out = ("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "max_position_embeddings",
                "tie_word_embeddings", "hidden_act")  # fmt: skip
    assert identity(converted(full)) == identity(converted(llama("least", drop=left_out, **sizes)))


@test
def keys_that_change_nothing_are_taken():
    base = identity(converted(llama("plain")))
    for key, value in (("_name_or_path", "x/y"), ("attention_dropout", 0.1), ("initializer_range", 0.02), ("use_cache", False),
                       ("pretraining_tp", 1), ("transformers_version", "4.40.0"), ("is_llama_config", True),
                       ("rope_interleaved", False), ("transformers.js_config", {"dtype": "q4"}), ("auto_map", {"A": "b"}),
                       ("bos_token_id", 1), ("torch_dtype", "bfloat16"), ("unsloth_fixed", True)):  # fmt: skip
        assert identity(converted(llama("plain", **{key: value}))) == base, key


@test
def an_ignored_key_is_recorded_and_is_no_part_of_the_identity():
    made = converted(llama("key", no_such_field=2), "--ignore-key", "no_such_field")
    assert identity(made) == identity(converted(llama("key")))
    assert b"no_such_field" in im.ImageFile.read(made).section(im.PROVENANCE).raw


@test
def provenance_names_files_sizes_and_digests_and_neither_path_nor_time():
    folder = llama("source")
    raw = im.ImageFile.read(converted(folder)).section(im.PROVENANCE).raw
    found = json.loads(raw)
    files = {f["name"]: f for f in found["files"]}
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        assert files[name]["bytes"] == len(content) and im.xxh3_128(content).hex() in json.dumps(files[name])
    assert str(folder).encode() not in raw and b"/" not in raw.replace(b"\\/", b"")
    assert not re.search(rb"20\d\d-\d\d", raw)


# ---- types ----


@test
def without_weights_the_type_is_that_of_the_source():
    for dtype, kind in (("F32", im.F32), ("BF16", im.BF16), ("F16", im.F16)):
        table = im.tensors(im.ImageFile.read(converted(llama("typed", dtype=dtype))))
        assert {t.kind for t in table.values() if t.layout == im.PANELS} == {kind}, dtype
        assert {t.kind for t in table.values() if t.layout == im.VECTOR} == {im.F32}, dtype


@test
def with_weights_matrices_have_that_type_and_vectors_are_f32():
    folder = llama("asked", dtype="BF16", tie_word_embeddings=False)
    for weights in ("f32", "bf16", "f16", "q8", "q4"):
        table = im.tensors(im.ImageFile.read(converted(folder, "--weights", weights)))
        for t in table.values():
            want = im.TYPES[weights] if t.layout == im.PANELS else im.F32
            if weights == "q4" and t.name in ("embedding", "head"):
                want = im.Q8
            assert t.kind == want, (weights, t.name, t.kind)


@test
def the_same_numbers_in_f32_bf16_and_f16_files_are_the_same_f32_image():
    rng = np.random.default_rng(3)
    exact = lambda s: (rng.integers(-8, 9, s) / 32).astype("<f4")  # in all three types
    shapes = {n: s for n, (_, s, _) in llama_tensors(llama_config()).items()}
    numbers = {n: exact(s) for n, s in shapes.items()}
    made = set()
    for dtype in ("F32", "BF16", "F16"):
        folder = llama("exact", tensors={n: (dtype, shapes[n], stored(dtype, x)) for n, x in numbers.items()})
        made.add(identity(converted(folder, "--weights", "f32")))
    assert len(made) == 1


@test
def rounding_to_bf16_and_f16_is_to_nearest_and_ties_go_to_even_subnormals_too():
    name = "model.layers.0.self_attn.o_proj.weight"
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000, 0x00008000, 0x00018000, 0x00000001], "<u4").view("<f4")
    halves = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 2**-24, 3 * 2**-25, 2**-14 - 2**-26, 65519.0, -0.0], "<f4")
    rng = np.random.default_rng(4)
    w = np.concatenate([ties, halves, rng.standard_normal(32 * 32 - 15) * 2.0 ** rng.integers(-20, 3, 32 * 32 - 15)])
    w = w.astype("<f4").reshape(32, 32)
    folder = llama("ties", tensors={name: ("F32", [32, 32], w.tobytes())})
    for weights, want in (("bf16", bf16_floats(bf16_bits(w)).reshape(32, 32)), ("f16", w.astype("<f2").astype("<f4"))):
        image = im.ImageFile.read(converted(folder, "--weights", weights))
        t = im.tensors(image)["layers.0.out"]
        got = im.unpanel_floats(im.tensor_bytes(image, t), im.TYPES[weights], 32, 32)
        assert np.array_equal(got.view("<u4"), np.ascontiguousarray(want).view("<u4")), weights


@test
def tensors_that_are_not_part_of_the_model_are_left_out_and_said():
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [4], bytes(16))}
    folder = llama("extra", tensors=extra)
    target = fresh("t") / "x.stele"
    r = stele("convert", folder, "-o", target).exits(0)
    assert "inv_freq" in r.error
    assert identity(target) == identity(converted(llama("extra")))


@test
def a_tied_head_is_stored_once_as_the_head():
    tied, untied = (im.ImageFile.read(converted(llama("t", tie_word_embeddings=t))) for t in (True, False))
    assert "embedding" not in im.tensors(tied) and "head" in im.tensors(tied)
    assert set(im.tensors(untied)) - set(im.tensors(tied)) == {"embedding"}


@test
def sizes_that_are_no_multiple_of_anything_convert_and_run():
    for changes in (dict(hidden_size=33, intermediate_size=7, vocab_size=17, head_dim=6), dict(hidden_size=1, vocab_size=1),
                    dict(hidden_size=100, intermediate_size=257, vocab_size=1, head_dim=2),
                    dict(num_attention_heads=1, num_key_value_heads=1, head_dim=2, intermediate_size=1)):  # fmt: skip
        for weights in ("f32", "f16", "bf16", "q8", "q4"):
            path = converted(llama("odd", tie_word_embeddings=False, **changes), "--weights", weights)
            stele("run", path, "--ids", "0 0 0", "-n", 3, "--print", "ids").exits(0)
            stele("verify", path).exits(0)


# ---- defaults ----


def defaults_of(folder):
    raw = im.ImageFile.read(converted(folder)).section(im.DEFAULTS).raw
    temperature, top_p, min_p, penalty = np.frombuffer(raw, "<f4", 4)
    top_k, flags, stops, _ = (int(x) for x in np.frombuffer(raw, "<u4", 4, 16))
    ids = np.frombuffer(raw, "<u4", stops, 32).tolist()
    return dict(temperature=temperature, top_p=top_p, min_p=min_p, repeat_penalty=penalty, top_k=top_k, stops=ids)


def with_generation(config, **changes):
    folder = llama(changes.pop("name", "generation"), **changes)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@test
def end_of_text_is_one_id_or_a_list_and_comes_of_the_file_that_has_it():
    assert defaults_of(with_generation({"eos_token_id": 7}, eos_token_id=9))["stops"] == [7]
    assert defaults_of(with_generation({"eos_token_id": [7, 8, 7]}, eos_token_id=9))["stops"] == [7, 8]
    assert defaults_of(with_generation({}, eos_token_id=9))["stops"] == [9]
    assert defaults_of(with_generation({"eos_token_id": None}, eos_token_id=[9, 4]))["stops"] == [9, 4]
    assert defaults_of(llama("none", eos_token_id=[9, 4]))["stops"] == [9, 4]
    assert defaults_of(llama("none"))["stops"] == []


@test
def sampling_defaults_are_off_where_the_file_is_silent_and_greedy_without_do_sample():
    off = dict(temperature=0, top_p=0, min_p=0, repeat_penalty=0, top_k=0, stops=[])
    assert defaults_of(llama("none")) == off
    assert defaults_of(with_generation({"temperature": 0.7}))["temperature"] == 0
    assert defaults_of(with_generation({"do_sample": False, "temperature": 0.7}))["temperature"] == 0
    got = defaults_of(with_generation({"do_sample": True}))
    assert got == off | dict(temperature=1)
    got = defaults_of(with_generation({"do_sample": True, "temperature": 0.5, "top_p": 0.75, "top_k": 20, "min_p": 0.25,
                                       "repetition_penalty": 1.5}))  # fmt: skip
    assert got == dict(temperature=0.5, top_p=0.75, top_k=20, min_p=0.25, repeat_penalty=1.5, stops=[])
    got = defaults_of(with_generation({"do_sample": True, "top_p": 1.0, "repetition_penalty": 1.0, "top_k": 0}))
    assert got["top_p"] in (0, 1) and got["repeat_penalty"] in (0, 1) and got["top_k"] == 0


@test
def a_run_ends_at_the_models_end_of_text_which_is_not_written():
    probe = converted(llama("eos"))
    answer = stele("run", probe, "--ids", "1 2", "-n", 20, "--print", "ids").exits(0).ids
    stop = answer[5]
    first = answer.index(stop)
    path = converted(with_generation({"eos_token_id": [63, stop]}, name="eos"))
    for n in (first + 1, first + 20, 10**9):
        assert stele("run", path, "--ids", "1 2", "-n", n, "--print", "ids").exits(0).ids == answer[:first]
    assert stele("run", path, "--ids", "1 2", "--print", "ids").exits(0).ids == answer[:first]


@test
def a_run_draws_as_the_model_says_and_options_have_the_last_word():
    plain = converted(llama("draw"))
    drawn = converted(with_generation({"do_sample": True, "temperature": 2.0, "top_k": 5}, name="draw"))
    run = lambda path, *o: stele("run", path, "--ids", "1 2", "-n", 30, "--print", "ids", *o).exits(0).ids
    assert run(drawn) == run(plain, "--temperature", 2, "--top-k", 5) != run(plain)
    assert run(drawn, "--temperature", 0) == run(plain)


# ---- memory ----


def peak_private_kib(folder, *options):
    """Largest RssAnon of a conversion, looked at as fast as /proc allows, and Python's maxrss cross-checked."""
    p = subprocess.Popen([str(x) for x in [BUILD / "stele-convert", folder, "-o", fresh("m") / "x.stele", *options]])
    worst = 0
    while p.poll() is None:
        try:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{p.pid}/status").read_text())
        except (ProcessLookupError, FileNotFoundError):
            break
        worst = max(worst, int(found.group(1)) if found else 0)
    assert p.wait() == 0
    return worst


@slow
def peak_private_memory_of_a_conversion_does_not_grow_with_the_model():
    sizes = dict(hidden_size=1024, head_dim=64, num_attention_heads=16, num_key_value_heads=16, vocab_size=1024)
    small = llama("shallow", intermediate_size=2048, num_hidden_layers=1, dtype="BF16", **sizes)
    large = llama("deep", intermediate_size=2048, num_hidden_layers=8, dtype="BF16", **sizes)
    for weights in ("f32", "q4"):
        a = max(peak_private_kib(small, "--weights", weights, "--threads", 2) for _ in range(2))
        b = peak_private_kib(large, "--weights", weights, "--threads", 2)
        assert b < a + 2048, f"{weights}: {a} KiB for one layer, {b} KiB for eight"
        assert b < 24 << 10, f"{weights}: {b} KiB"


# ---- tokenizers ----


@test
def added_tokens_are_numbered_as_the_library_does_also_where_the_vocabulary_has_gaps():
    folder = copied(DEMO)
    at = {}

    def change(t):
        t["model"]["vocab"]["beyond"] = 5000
        at["size"] = len(t["model"]["vocab"])
        token = dict(t["added_tokens"][0], special=False)
        t["added_tokens"] += [dict(token, id=5000, content="beyond"), dict(token, id=5001, content="<x>"),
                              dict(token, id=5002, content="<y>")]  # fmt: skip

    edit_json(folder / "tokenizer.json", change)
    img = converted(folder)
    # tokenizers 0.23: ids of the file do not count, nor what lies beyond the vocabulary's size
    assert stele("tokenize", img, "--bare", "<x><y>beyond").exits(0).ids == [at["size"], at["size"] + 1, 5000]


finish()
