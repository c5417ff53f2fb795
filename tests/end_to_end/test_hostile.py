#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a stranger: whatever is malformed or not understood is refused by name with exit 3; nothing is left at
the target or beside it, and what was there before stays whole."""
import signal
import struct

import numpy as np

from harness import *
from workshop import *


def convert(folder, *options, target=None, codes=(3,)):
    """Converts into a folder of its own and asserts that a refusal is one sentence and leaves nothing there."""
    target = target or fresh("target") / "model.stele"
    before = sorted(target.parent.iterdir())
    r = call([BUILD / "stele", "convert", folder, "-o", target, *options])
    assert r.code in codes, f"exit {r.code} instead of {codes}: {r.error}"
    assert "Sanitizer" not in r.error and "runtime error:" not in r.error, r.error
    if r.code:
        last = r.error.strip().splitlines()[-1]
        assert last.startswith("stele convert: "), r.error
        assert sorted(target.parent.iterdir()) == before, "something was left beside the target"
        assert r.out == b""
    return r


def says(r, *parts):
    for part in parts:
        assert str(part) in r.error, f"{part!r} is not named: {r.error!r}"
    return r


BASE = llama("base", num_hidden_layers=1)
TENSORS = read_safetensors(BASE / "model.safetensors")
NAMES = list(TENSORS)
Q = "model.layers.0.self_attn.q_proj.weight"


def with_file(raw):
    folder = copied(BASE)
    (folder / "model.safetensors").write_bytes(raw)
    return folder


def with_header(change):
    def apply(entries):
        change(entries)
        return entries

    return with_file(pack_safetensors(TENSORS, apply))


def with_config(**changes):
    folder = copied(BASE)
    edit_json(folder / "config.json", lambda c: c.update(changes))
    return folder


def with_text(name, content):
    folder = copied(BASE)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def entry(name):
    """What the header of BASE says of a tensor."""
    raw = (BASE / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length])[name]


# ---- safetensors ----


@test
def the_checkpoint_that_these_tests_break_converts():
    convert(BASE, codes=(0,))


@test
def a_header_that_does_not_fit_into_its_file_is_refused():
    whole = (BASE / "model.safetensors").read_bytes()
    for length in (0, 1, len(whole), len(whole) - 7, 1 << 31, 1 << 32, 1 << 62, (1 << 64) - 1, (1 << 64) - 8):
        says(convert(with_file(struct.pack("<Q", length) + whole[8:])), "model.safetensors")
    for n in (0, 1, 7, 8, 9, 100):
        says(convert(with_file(whole[:n])), "model.safetensors")


@test
def a_file_cut_short_is_refused():
    whole = (BASE / "model.safetensors").read_bytes()
    rng = np.random.default_rng(1)
    for n in [len(whole) - 1, len(whole) - 4096, *(int(n) for n in rng.integers(8, len(whole), 12))]:
        says(convert(with_file(whole[:n])), "model.safetensors")


@test
def data_offsets_that_lie_are_refused_with_the_tensor_named():
    def offsets(*pair):
        return with_header(lambda h: h[Q].update(data_offsets=list(pair)))

    begin, end = entry(Q)["data_offsets"]
    wrong = [(begin, end - 4), (begin, end + 4), (end, begin), (begin + 1, end), (-4, end - begin - 4), (begin, 1 << 40),
             (1 << 62, (1 << 62) + end - begin), (0.5, end), ("0", "1"), (begin,), (begin, end, end), (), (None, None),
             (1e308, 1e308)]  # fmt: skip
    for pair in wrong:
        says(convert(offsets(*pair)), Q)
    says(convert(with_header(lambda h: h[Q].pop("data_offsets"))), Q)
    says(convert(with_header(lambda h: h[Q].update(data_offsets={"a": 1}))), Q)


@test
def data_that_overlaps_is_refused():
    # The safetensors library refuses it: two names for the same bytes.
    k, v = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
    says(convert(with_header(lambda h: h[v].update(data_offsets=h[k]["data_offsets"]))), "model.safetensors")


@test
def shapes_that_lie_or_overflow_are_refused_with_the_tensor_named():
    wrong = [[1 << 32, 1 << 32], [1 << 63, 2], [(1 << 64) - 1], [0, 0], [32, 0], [-32, -32], [32.5, 32], ["32", 32], [32],
             [32, 32, 1], [1] * 64, [16, 64], [], [1e300, 1], [None, 32]]  # fmt: skip
    for shape in wrong:
        says(convert(with_header(lambda h: h[Q].update(shape=shape))), Q)
    says(convert(with_header(lambda h: h[Q].update(shape="32x32"))), Q)
    says(convert(with_header(lambda h: h[Q].pop("shape"))), Q)


@test
def types_that_are_unknown_or_no_floats_are_refused_with_tensor_and_type_named():
    for name in ("F4", "f32", "", "complex64", "F\x1b[31m"):
        r = says(convert(with_header(lambda h: h[Q].update(dtype=name))), Q)
        assert b"\x1b" not in r.err
    for name, bytes_each in (("I32", 4), ("U8", 1), ("BOOL", 1), ("F64", 8), ("F8_E4M3", 1)):
        shape = [32, 32]
        t = dict(TENSORS) | {Q: (name, shape, bytes(32 * 32 * bytes_each))}
        says(convert(with_file(pack_safetensors(t))), Q, name)
    says(convert(with_header(lambda h: h[Q].update(dtype=7))), Q)
    says(convert(with_header(lambda h: h[Q].pop("dtype"))), Q)


@test
def a_header_that_is_no_json_or_no_object_of_objects_is_refused():
    good = json.dumps({n: entry(n) for n in NAMES})
    bad = ["", "{", "[]", "null", "7", good[:-1], good + "x", good.replace(":", "=", 1), '{"a": 1}', '{"a": []}', "\xff\xfe",
           '{"a": {"dtype": "F32"}}', "{" * 100000, "[" * 100000, '{"a":' * 5000 + "1" + "}" * 5000]  # fmt: skip
    for text in bad:
        raw = text.encode("latin-1")
        says(convert(with_file(pack_safetensors(TENSORS, raw))), "model.safetensors")


@test
def a_tensor_named_twice_is_refused():
    again = json.dumps(entry(Q))
    good = json.dumps({n: entry(n) for n in NAMES})
    says(convert(with_file(pack_safetensors(TENSORS, (good[:-1] + f', "{Q}": {again}}}').encode()))), "model.safetensors")


@test
def a_tensor_that_is_missing_is_refused_by_name():
    for name in NAMES:
        rest = {n: t for n, t in TENSORS.items() if n != name}
        says(convert(with_file(pack_safetensors(rest))), name, "missing")


@test
def a_tensor_of_another_shape_is_refused_with_both_shapes():
    for name in NAMES:
        dtype, shape, raw = TENSORS[name]
        other = [shape[0] + 1, *shape[1:]]
        n = 4 * int(np.prod(other))
        t = dict(TENSORS) | {name: (dtype, other, bytes(n))}
        says(convert(with_file(pack_safetensors(t))), name, other[0], shape[0])


@test
def names_of_tensors_that_steer_a_terminal_are_escaped():
    r = convert(with_header(lambda h: h.update({"\x1b[2Jevil\n": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}})))
    assert b"\x1b" not in r.err and len(r.error.strip().splitlines()) == 1, r.err


# ---- shards ----


def sharded(change=lambda index: None):
    folder = copied(BASE)
    (folder / "model.safetensors").unlink()
    half = len(NAMES) // 2
    files = {"model-00001-of-00002.safetensors": NAMES[:half], "model-00002-of-00002.safetensors": NAMES[half:]}
    for file, names in files.items():
        write_safetensors(folder / file, {n: TENSORS[n] for n in names})
    index = {"metadata": {}, "weight_map": {n: f for f, names in files.items() for n in names}}
    change(index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@test
def the_shards_that_these_tests_break_convert():
    convert(sharded(), codes=(0,))


@test
def a_file_outside_the_folder_is_refused_by_name():
    outside = fresh("outside") / "model.safetensors"
    write_safetensors(outside, TENSORS)
    for name in (str(outside), f"../{outside.parent.name}/model.safetensors", "..", "a/b", "../../etc/passwd", "",
                 "sub/../model.safetensors", "/dev/zero"):  # fmt: skip
        r = convert(sharded(lambda i: i["weight_map"].update({Q: name})))
        says(r, "index.json")
    says(convert(sharded(lambda i: i["weight_map"].update({Q: "a\0b"}))), "index.json")


@test
def an_index_that_is_malformed_is_refused():
    for change in (lambda i: i.pop("weight_map"), lambda i: i.update(weight_map=[]), lambda i: i.update(weight_map={}),
                   lambda i: i["weight_map"].update({Q: 7}), lambda i: i["weight_map"].update({Q: None})):  # fmt: skip
        says(convert(sharded(change)), "index.json")


@test
def a_shard_that_is_absent_is_refused_by_name():
    says(convert(sharded(lambda i: i["weight_map"].update({Q: "model-00003-of-00003.safetensors"})), codes=(1, 3)), "00003")


@test
def a_tensor_that_is_in_no_shard_is_refused_by_name():
    folder = sharded()
    last = "model-00002-of-00002.safetensors"
    held = read_safetensors(folder / last)
    held.pop(NAMES[-1])
    write_safetensors(folder / last, held)
    says(convert(folder), NAMES[-1])


@test
def a_tensor_in_two_shards_is_refused_by_name():
    folder = sharded()
    write_safetensors(folder / "model-00001-of-00002.safetensors", TENSORS)
    says(convert(folder), "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


# ---- config.json ----


@test
def json_that_is_malformed_is_refused_with_file_and_line():
    good = (BASE / "config.json").read_text()
    for bad in ("", "{", "[]", "7", '"x"', good[:-1], good + "}", good[:-1] + ",}", "\xff", good.replace('"', "'"), "{" * 100000,
                '{"a":' * 100000):  # fmt: skip
        says(convert(with_text("config.json", bad)), "config.json")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        for bad in ("", "{", "[]", "7", '{"a":}', "[" * 100000):
            says(convert(with_text(name, bad)), name)


@test
def a_key_given_twice_is_refused():
    good = (BASE / "config.json").read_text()
    says(convert(with_text("config.json", good[:-1] + ', "hidden_size": 64}')), "config.json", "duplicate")
    says(convert(with_text("generation_config.json", '{"top_k": 1, "top_k": 2}')), "generation_config.json")


@test
def sizes_that_are_absent_or_out_of_range_are_refused_by_name():
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        folder = copied(BASE)
        edit_json(folder / "config.json", lambda c: c.pop(key))
        says(convert(folder), key)
        for value in (0, -1, 1.5, 1e300, "32", [32], {}, True, 1 << 31, 1 << 40):
            says(convert(with_config(**{key: value})), key)
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
        for value in (0, -1, 1.5, "2", [2], 1 << 40):
            says(convert(with_config(**{key: value})), key)
    says(convert(with_config(num_key_value_heads=3)), "num_key_value_heads")
    says(convert(with_config(head_dim=7)), "head_dim")
    for value in (-1e-5, "x", [], 1e400):
        says(convert(with_config(rms_norm_eps=value)), "rms_norm_eps")
    for value in (0, -1, "x", []):
        says(convert(with_config(rope_theta=value)), "rope_theta")


@test
def sizes_that_do_not_fit_the_tensors_are_refused_with_tensor_and_shapes():
    for changes in ({"hidden_size": 64}, {"intermediate_size": 64}, {"num_attention_heads": 8}, {"vocab_size": 63},
                    {"vocab_size": 65}, {"num_hidden_layers": 2}, {"head_dim": 16}, {"num_key_value_heads": 4}):  # fmt: skip
        says(convert(with_config(**changes)), "tensor model.")


@test
def an_architecture_that_is_not_known_is_refused_by_name():
    says(convert(with_config(architectures=["NoSuchForCausalLM"])), "NoSuchForCausalLM")
    for value in ([], None, "LlamaForCausalLM", [7], {}):
        says(convert(with_config(architectures=value)), "architectures")
    for name in ("BertModel", "LlamaForSequenceClassification", "\x1b[31m"):
        r = says(convert(with_config(architectures=[name])), "architecture")
        assert b"\x1b" not in r.err


@test
def a_rope_type_or_field_that_is_not_known_is_refused_by_name():
    says(convert(with_config(rope_scaling={"rope_type": "no-such", "factor": 2.0})), "no-such")
    says(convert(with_config(rope_scaling={"type": "no-such", "factor": 2.0})), "no-such")
    says(convert(with_config(rope_parameters={"rope_type": "no-such", "rope_theta": 10000.0})), "no-such")
    says(convert(with_config(rope_scaling={"rope_type": "default", "no_such_field": 2.0})), "no_such_field")
    for value in ("linear", 7, [1], True):
        says(convert(with_config(rope_scaling=value)), "rope_scaling")
    says(convert(with_config(rope_scaling={"rope_type": 7})), "rope")
    says(convert(with_config(rope_parameters={"rope_type": "default", "rope_theta": "x"})), "rope_theta")
    says(convert(with_config(rope_parameters={"rope_type": "default", "rope_theta": -1.0})), "rope_theta")
    long = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    says(convert(with_config(rope_scaling=long | {"short_mscale": 1.2})), "short_mscale")
    says(convert(with_config(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"type": "linear", "factor": 3.0})),
         "rope_parameters")  # fmt: skip


@test
def a_field_that_is_not_known_is_refused_by_name_and_ignore_key_goes_on():
    r = says(convert(with_config(no_such_field=2)), "no_such_field", "--ignore-key")
    assert "--ignore-key no_such_field" in r.error
    folder = with_config(no_such_field=2)
    says(convert(folder, "--ignore-key", "no_such_field", codes=(0,)), "no_such_field")
    says(convert(folder, "--ignore-key", "other_field"), "no_such_field")
    for neutral in (None, False, 0, "", [], {}):
        says(convert(with_config(no_such_field=neutral), codes=(0,)), "no_such_field")


@test
def fields_that_change_the_answer_are_refused_by_name():
    for key, value in (("hidden_act", "gelu"), ("hidden_act", 7), ("attention_bias", "yes"), ("mlp_bias", 1),
                       ("tie_word_embeddings", "no"), ("rope_interleaved", True), ("quantization_config", {"bits": 4}),
                       ("quantization_config", {"quant_method": "mxfp4"}),
                       ("partial_rotary_factor", 0.5), ("sliding_window", 8), ("attn_logit_softcapping", 50.0),
                       ("logits_scaling", 2.0), ("num_experts", 8), ("pretraining_tp", "x")):  # fmt: skip
        if key == "pretraining_tp":
            continue
        says(convert(with_config(**{key: value})), key)


@test
def generation_fields_that_are_lacking_are_refused_by_name_unless_neutral():
    wrong = {"num_beams": 4, "suppress_tokens": [1, 2], "no_repeat_ngram_size": 3, "bad_words_ids": [[1]], "penalty_alpha": 0.6,
             "typical_p": 0.9, "guidance_scale": 2.0, "forced_eos_token_id": 2, "min_new_tokens": 5, "eta_cutoff": 1e-3,
             "begin_suppress_tokens": [7], "sequence_bias": [[[1], 2.0]], "encoder_repetition_penalty": 1.2}  # fmt: skip
    for key, value in wrong.items():
        says(convert(with_text("generation_config.json", json.dumps({key: value}))), "generation_config.json", key)
    neutral = {"num_beams": 1, "suppress_tokens": None, "no_repeat_ngram_size": 0, "bad_words_ids": [], "typical_p": 1.0,
               "max_length": 20, "max_new_tokens": 7, "_from_model_config": True, "transformers_version": "4.40",
               "pad_token_id": 0, "use_cache": True}  # fmt: skip
    convert(with_text("generation_config.json", json.dumps(neutral)), codes=(0,))


@test
def a_generation_field_that_is_unknown_is_refused_by_name_unless_it_says_nothing():
    says(convert(with_text("generation_config.json", '{"no_such_way_to_sample": 3}')), "no_such_way_to_sample")
    convert(with_text("generation_config.json", '{"no_such_way_to_sample": null}'), codes=(0,))


@test
def generation_values_out_of_range_are_refused_by_name():
    wrong = {"temperature": [-1, "x", 1e400, []], "top_k": [-1, "x", 1 << 40, 1.5], "top_p": [-0.1, 1.5, "x"],
             "min_p": [-1, 2, "x"], "repetition_penalty": [0, -1, "x"], "eos_token_id": [-1, 64, "x", [1, 64], [[1]], 1.5],
             "do_sample": ["yes", 1]}  # fmt: skip
    for key, values in wrong.items():
        for value in values:
            says(convert(with_text("generation_config.json", json.dumps({"do_sample": True} | {key: value}))), key)


# ---- other folders ----


@test
def folders_that_are_no_checkpoint_are_refused_by_name():
    empty = fresh("empty")
    says(convert(empty), "config.json")
    says(convert(fresh("x") / "absent", codes=(1, 3)), "absent")
    says(convert(BASE / "config.json"), "config.json")
    for name in ("pytorch_model.bin", "adapter_model.safetensors"):
        folder = copied(BASE)
        (folder / "model.safetensors").rename(folder / name)
        says(convert(folder), name)
    folder = copied(BASE)
    (folder / "model.safetensors").unlink()
    says(convert(folder), "model.safetensors")


@test
def a_pipe_or_folder_in_the_place_of_a_file_is_refused_without_waiting():
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        for make in (os.mkfifo, os.mkdir):
            folder = copied(BASE)
            (folder / name).unlink(missing_ok=True)
            make(folder / name)
            p = subprocess.Popen([BUILD / "stele", "convert", folder, "-o", fresh("t") / "x.stele"], stderr=subprocess.PIPE)
            try:
                code = p.wait(timeout=5)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
                raise AssertionError(f"{name}: waits for a pipe")
            assert code in (1, 3), (name, code)
            assert name.encode() in p.stderr.read()


@test
def links_as_the_hubs_cache_has_them_are_followed():
    blobs, folder = fresh("blobs"), fresh("snapshot")
    for f in BASE.iterdir():
        (blobs / f.name).write_bytes(f.read_bytes())
        (folder / f.name).symlink_to(blobs / f.name)
    convert(folder, codes=(0,))


# ---- numbers ----


def with_numbers(name, change, dtype="F32"):
    x = floats(*TENSORS[name][::2]).copy()
    change(x)
    return with_file(pack_safetensors(dict(TENSORS) | {name: (dtype, TENSORS[name][1], stored(dtype, x))}))


@test
def weights_that_are_not_finite_are_refused_with_the_tensor_named():
    for name in ("model.embed_tokens.weight", Q, "model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        for value in (np.nan, np.inf, -np.inf):

            def change(x):
                x[len(x) // 2] = value

            for weights in ("f32", "bf16", "f16", "q8", "q4"):
                says(convert(with_numbers(name, change), "--weights", weights), name)
    for dtype in ("F16", "BF16"):
        says(convert(with_numbers(Q, lambda x: x.__setitem__(3, np.nan), dtype)), Q)


@test
def a_larger_value_than_f16_holds_is_refused_naming_the_tensor():
    for dtype in ("BF16", "F32"):
        for value in (70000.0, -70000.0, 3e38, 65520.0):
            says(convert(with_numbers(Q, lambda x: x.__setitem__(5, value), dtype), "--weights", "f16"), Q)
    convert(with_numbers(Q, lambda x: x.__setitem__(5, 65504.0)), "--weights", "f16", codes=(0,))
    convert(with_numbers(Q, lambda x: x.__setitem__(5, 3e38)), "--weights", "f32", codes=(0,))
    says(convert(with_numbers(Q, lambda x: x.__setitem__(5, 3.4e38)), "--weights", "bf16"), Q)


@test
def a_group_whose_scale_binary16_does_not_hold_is_refused_naming_the_tensor():
    for weights in ("q8", "q4"):
        says(convert(with_numbers(Q, lambda x: x.__setitem__(5, 3e38)), "--weights", weights), Q)


# ---- the target ----


@test
def an_existing_target_is_2_without_f_and_stays_whole():
    target = fresh("kept") / "kept.stele"
    target.write_bytes(b"precious")
    r = convert(BASE, target=target, codes=(2,))
    says(r, "-f")
    assert target.read_bytes() == b"precious"
    convert(BASE, "-f", target=target, codes=(0,))
    stele("verify", target).exits(0)


@test
def a_refused_conversion_leaves_the_old_target_whole_even_with_f():
    target = fresh("kept") / "kept.stele"
    target.write_bytes(b"precious")
    for folder in (with_numbers("model.norm.weight", lambda x: x.__setitem__(0, np.nan)), with_config(no_such_field=1)):
        convert(folder, "-f", target=target)
        assert target.read_bytes() == b"precious"


@test
def a_link_as_target_is_followed():
    folder = fresh("link")
    (folder / "real").mkdir()
    (folder / "real" / "old.stele").write_bytes(b"old")
    (folder / "link.stele").symlink_to(folder / "real" / "old.stele")
    stele("convert", BASE, "-o", folder / "link.stele", "-f").exits(0)
    assert (folder / "link.stele").is_symlink()
    stele("verify", folder / "real" / "old.stele").exits(0)


@test
def targets_that_cannot_be_written_are_refused_by_name():
    says(convert(BASE, target=fresh("d"), codes=(1, 2)))
    says(stele("convert", BASE, "-o", "/no/such/folder/x.stele").exits(1), "/no/such/folder")
    says(stele("convert", BASE, "-o", "/dev/full", "-f"), "/dev/full")
    r = stele("convert", BASE, "-o", "")
    assert r.code in (1, 2) and r.error.strip()


@test
def wrong_calls_are_2():
    target = fresh("t") / "x.stele"
    for args in ([BASE], ["-o", target], [BASE, BASE, "-o", target], [BASE, "-o", target, "--weights", "f64"], [BASE, "-o"],
                 [BASE, "-o", target, "--weights"], [BASE, "-o", target, "--threads", "0"], [BASE, "-o", target, "--threads", "x"],
                 [BASE, "-o", target, "--threads", "-1"], [BASE, "-o", target, "--no-such"], [],
                 [BASE, "-o", target, "--threads", "257"]):  # fmt: skip
        r = stele("convert", *args).exits(2)
        assert r.out == b"" and not target.exists()


@test
def killed_at_any_moment_it_leaves_no_litter():
    big = llama("big", hidden_size=512, vocab_size=8192, head_dim=64, num_attention_heads=8, intermediate_size=1024)
    folder = fresh("killed")
    for delay in (0.005, 0.02, 0.05, 0.1, 0.2):
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            p = subprocess.Popen([BUILD / "stele", "convert", big, "-o", folder / "x.stele", "-f"], stderr=subprocess.DEVNULL)
            try:
                p.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                p.send_signal(how)
                p.wait()
            left = [f.name for f in folder.iterdir()]
            assert left in ([], ["x.stele"]), left
            if left:
                stele("verify", folder / "x.stele").exits(0)


# ---- anything at all ----


@slow
def random_changes_of_a_checkpoint_never_end_by_a_signal():
    rng = np.random.default_rng(21)
    folder = copied(BASE)
    files = {f.name: f.read_bytes() for f in BASE.iterdir()}
    if TEXT_MODEL.exists():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            files[name] = (TEXT_MODEL / name).read_bytes()
    target = fresh("t") / "x.stele"
    (header_length,) = struct.unpack_from("<Q", files["model.safetensors"])
    for i in range(400):
        name = [*files][i % len(files)]
        raw = bytearray(files[name])
        reach = header_length + 8 if name == "model.safetensors" else len(raw)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(min(reach, len(raw))))
            kind = int(rng.integers(5))
            if kind == 0:
                raw[at] = int(rng.integers(256))
            elif kind == 1:
                raw[at] = int(rng.choice(list(b'0123456789-.eE"{}[],:\\')))
            elif kind == 2:
                del raw[at : at + int(rng.integers(1, 20))]
            elif kind == 3:
                raw[at:at] = raw[at : at + int(rng.integers(1, 50))]
            else:
                raw[at:at] = rng.choice([b"null", b"1e999", b"-1", b"[]", b"99999999999999999999", b'"\\ud800"', b"\\u0000"])
        for n, content in files.items():
            (folder / n).write_bytes(raw if n == name else content)
        r = call([BUILD / "stele", "convert", folder, "-o", target, "-f", "--threads", "1"])
        if r.code not in (0, 2, 3) or "Sanitizer" in r.error or "runtime error:" in r.error:
            keep = Path("/tmp") / f"stele-checkpoint-21-{i}"
            shutil.copytree(folder, keep, dirs_exist_ok=True)
            raise AssertionError(f"round {i}: {name}: exit {r.code}, kept as {keep}: {r.error[-1500:]}")


finish()
