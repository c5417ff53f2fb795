# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that tests make themselves, small and from seeds, and the mark of slow tests.

    folder = llama("odd", hidden=72, ffn=100)         # a Llama of random f32 weights, in SCRATCH
    tensors = read_safetensors(path)                  # {name: (dtype, shape, bytes)}
    write_safetensors(path, tensors)                  # the same back"""
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import numpy as np

import harness
from harness import BUILD, DATA, DEMO, SCRATCH, stele, test

FAST = bool(os.environ.get("STELE_FAST"))

# A model with a tokenizer: the repository's own, or one of the test data until that is there.
TEXT_MODEL = DEMO if (DEMO / "config.json").exists() else DATA / "models" / "stories260K"


def slow(function=None, *, needs=None):
    """@test for what takes more than about five seconds: left out, and counted, with STELE_FAST=1."""

    def run(f):
        if FAST and (not harness.only or f.__name__ in harness.only):
            harness.skipped += 1
            print(f"skip  {f.__name__.replace('_', ' ')}  (STELE_FAST)")
            return f
        return test(f) if needs is None else test(needs=needs)(f)

    return run(function) if function else run


# ---- stores ----


class Home:
    """A store of its own."""

    def __init__(self):
        self.path = fresh("home") / "stele"
        self.env = {"STELE_HOME": str(self.path)}

    def call(self, *args, env=None, **kwargs):
        return stele(*args, env=self.env | (env or {}), **kwargs)

    def files(self, folder):
        return sorted(os.listdir(self.path / folder)) if (self.path / folder).exists() else []

    def ls(self):
        return [json.loads(line) for line in self.call("ls", "--json").exits(0).text.splitlines()]


# ---- numbers ----


def bf16_bits(x):
    """binary32 to bf16, nearest, ties to even."""
    bits = np.ascontiguousarray(x, "<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def bf16_floats(bits):
    return (np.asarray(bits, "<u2").astype("<u4") << 16).view("<f4")


def floats(dtype, raw):
    """The numbers of a tensor as binary32."""
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype("<f4")
    assert dtype == "BF16", dtype
    return bf16_floats(np.frombuffer(raw, "<u2"))


def stored(dtype, x):
    """Numbers as the bytes of a tensor."""
    x = np.ascontiguousarray(x, "<f4")
    if dtype == "F32":
        return x.tobytes()
    with np.errstate(over="ignore"):
        return x.astype("<f2").tobytes() if dtype == "F16" else bf16_bits(x).tobytes()


# ---- safetensors ----


def pack_safetensors(tensors, header=None):
    """Bytes of a file. `header`, if given, changes the dict before it is written, or is the text itself."""
    entries, at = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = header if isinstance(header, bytes) else json.dumps(header(entries) if header else entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values())


def write_safetensors(path, tensors, header=None):
    Path(path).write_bytes(pack_safetensors(tensors, header))


def read_safetensors(path):
    raw = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    base = 8 + length
    return {
        name: (t["dtype"], t["shape"], raw[base + t["data_offsets"][0] : base + t["data_offsets"][1]])
        for name, t in header.items()
    }


# ---- models ----

_made = itertools.count(1)


def fresh(name):
    """A new empty folder of that name."""
    folder = SCRATCH / f"made-{next(_made)}" / name
    folder.mkdir(parents=True)
    return folder


def llama_tensors(c, seed=1, scale=0.05, dtype="F32"):
    rng = np.random.default_rng(seed)
    h, d = c["hidden_size"], c["head_dim"]
    q, kv, f, v = c["num_attention_heads"] * d, c["num_key_value_heads"] * d, c["intermediate_size"], c["vocab_size"]
    t = {"model.embed_tokens.weight": (v, h)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t |= {p + "input_layernorm.weight": (h,), p + "self_attn.q_proj.weight": (q, h)}
        t |= {p + "self_attn.k_proj.weight": (kv, h), p + "self_attn.v_proj.weight": (kv, h)}
        t |= {p + "self_attn.o_proj.weight": (h, q), p + "post_attention_layernorm.weight": (h,)}
        t |= {p + "mlp.gate_proj.weight": (f, h), p + "mlp.up_proj.weight": (f, h), p + "mlp.down_proj.weight": (h, f)}
    t |= {"model.norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        t["lm_head.weight"] = (v, h)
    numbers = lambda s: 1 + 0.1 * rng.standard_normal(s) if len(s) == 1 else scale * rng.standard_normal(s)
    return {name: (dtype, s, stored(dtype, numbers(s))) for name, s in t.items()}


def llama_config(**changes):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "eos_token_id": None,
    }
    return config | changes


def llama(name="llama", tensors=None, seed=1, scale=0.05, dtype="F32", drop=(), **changes):
    """The folder of a new checkpoint. `tensors` replaces or adds; `drop` names keys of config.json to leave out."""
    folder = fresh(name)
    config = llama_config(**changes)
    made = llama_tensors(config, seed, scale, dtype)
    made |= tensors or {}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))
    write_safetensors(folder / "model.safetensors", made)
    return folder


def copied(source, name=None):
    """A checkpoint folder that may be changed."""
    folder = fresh(name or Path(source).name)
    for f in Path(source).iterdir():
        if f.is_file():
            shutil.copyfile(f, folder / f.name)
    return folder


def edit_json(path, change):
    """Rewrites a JSON file with what `change` makes of it."""
    value = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    change(value)
    Path(path).write_text(json.dumps(value))


def converted(folder, *options):
    """A new image of a checkpoint folder."""
    target = fresh("image") / "model.stele"
    stele("convert", folder, "-o", target, *options).exits(0)
    return target


def logits(img, ids, *options, env=None):
    """Logits [len(ids)][vocabulary] of `stele logprobs --dump-logits`."""
    dump = fresh("logits") / "logits.bin"
    r = stele("logprobs", img, "--ids", " ".join(map(str, ids)), "--dump-logits", dump, *options, env=env)
    r.exits(0)
    found = np.fromfile(dump, "<f4").reshape(len(ids), -1)
    dump.unlink()
    return found


# ---- pulls that are cut off ----


def pulled_bytes(target):
    """How far a pull that has not ended is, by the journal in its begun image: bytes of the source that are packed."""
    try:
        raw = (target.parent / f"{target.name}.part" / "image").open("rb").read(8192)
    except FileNotFoundError:
        return 0
    pages = [raw[at : at + 4096] for at in (0, 4096)]
    return max([struct.unpack_from("<Q", page, 80)[0] for page in pages if page[:8] == b"STELEgot" and len(page) > 88] + [0])


def killed_pull(seconds, url, target, *options, progress=True):
    """Pulls, and kills that by SIGKILL after a time that runs from its first progress (else from its begin). Whether it was
    still running."""
    before = pulled_bytes(target)
    p = subprocess.Popen([str(x) for x in [BUILD / "stele-pull", url, "-o", target, *options]], stderr=subprocess.DEVNULL)
    while progress and pulled_bytes(target) <= before and p.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    p.kill()
    return p.wait() == -signal.SIGKILL
