#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Chat templates through the command: every case of ../shared/chat is what transformers renders or refuses; no text of a
message, a tool or a document becomes a control token; the options of conversations; what a model thinks and what it
answers, from models that write chosen tokens."""
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from harness import *
from workshop import *

CHAT = DATA / "chat"
NAMES = sorted(f.name for f in (CHAT / "templates").iterdir()) if CHAT.exists() else []
NOW = ["--date", "2026-01-15T10:30:00"]  # the clock of the cases
pool = ThreadPoolExecutor(os.cpu_count())
TINY = dict(hidden_size=16, head_dim=8, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16, num_hidden_layers=1)

# ---- checkpoints with a template ----

LETTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {b: chr(b) for b in LETTERS} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in LETTERS)}


def letters(text):
    """Text in the letters that byte-level BPE has for bytes."""
    return "".join(LETTERS[b] for b in text.encode())


def byte_level(added, pieces=(), special=lambda token: True, **flags):
    """A byte-level tokenizer: the 256 bytes, `pieces` that no merge leads to, and added tokens."""
    words = [*LETTERS.values(), *map(letters, pieces)]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False) | flags
    return {
        "added_tokens": [dict(flags, id=len(words) + i, content=t, special=special(t)) for i, t in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": []},
    }


def with_template(template, tokenizer, tokens={}, name="chat", **changes):
    """A checkpoint folder. `template`: chat_template of tokenizer_config.json, None: it has none."""
    size = 1 + max([*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])])
    folder = llama(name, **(TINY | dict(vocab_size=size, max_position_embeddings=32768) | changes))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = dict(tokens) | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def source(name):
    """A template of the test data, its line breaks as they are."""
    return (CHAT / "templates" / name / "chat_template.jinja").read_bytes().decode()


def tokens(name):
    return json.loads((CHAT / "templates" / name / "special.json").read_text())["template_sees"]


def messages_file(value):
    global _files
    _files += 1
    path = SCRATCH / f"messages-{_files}.json"
    path.write_text(json.dumps(value, ensure_ascii=False))
    return path


_files = 0


def arguments(kwargs):
    """kwargs of apply_chat_template, which adds no generation prompt unless asked, as options."""
    return [f"--arg={k}={json.dumps(v)}" for k, v in ({"add_generation_prompt": False} | kwargs).items()]


# ---- every case ----


def conversation(case):
    return {k: case[k] for k in ("messages", "tools") if k in case}


def check_case(img, case):
    """None, or what is wrong."""
    r = stele("render", img, "--messages", messages_file(conversation(case)), *NOW, *arguments(case["kwargs"]))
    if "rendered" in case:
        ok = r.code == 0 and r.out == case["rendered"].encode()
    else:
        ok = r.code == (2 if case["kind"] == "refused" else 3) and r.out == b"" and r.error.startswith("stele render: ")
    if ok and case.get("kind") == "raised":
        ok = sentence(case["error"]) in r.error
    return None if ok else f"{case['name']}: exit {r.code}, {r.error or r.text!r} instead of {case}"


def sentence(text):
    """As a sentence shows it: control bytes escaped."""
    return "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in text)


for name in NAMES:

    @test(needs=CHAT)
    def a_template_through_the_command_renders_and_refuses_what_transformers_does(name=name):
        img = converted(with_template(source(name), byte_level([]), tokens(name)))
        cases = json.loads((CHAT / "cases" / f"{name}.json").read_text())
        cases = cases[NAMES.index(name) % 40 :: 40] if FAST else cases
        wrong = [w for w in pool.map(lambda c: check_case(img, c), cases) if w]
        assert not wrong, f"{name}: {len(wrong)} of {len(cases)}: {wrong[0][:1200]}"


# ---- what a message says is text ----

SHAPES = [re.compile(p) for p in (r"<\|[^|<>{}'\"\s+]+\|>", r"<｜[^｜<>{}'\"\s+]+｜>", r"</?[a-zA-Z_:]+>",
                                  r"\[/?[A-Z_]{3,}\]", r"<<?/?\|?[A-Za-z_]+\|?>>?")]  # fmt: skip


def spelled_in(name):
    """The control tokens that a template writes, or is given."""
    found = {t for shape in SHAPES for t in shape.findall(source(name))} | {"<|user|>", "<|assistant|>", "<|system|>"}
    return sorted(found | {t for t in tokens(name).values() if isinstance(t, str) and t})


def conversations(say):
    """Conversations of every shape that a template may take; `say` gives the text of a place."""
    user, assistant = {"role": "user", "content": say("user")}, {"role": "assistant", "content": say("assistant")}
    system, last = {"role": "system", "content": say("system")}, {"role": "user", "content": say("last")}
    call = lambda given: {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": given}}
    tool = {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": say("result")}
    parameters = {"type": "object", "properties": {"place": {"type": "string", "description": say("parameter")}}}
    function = {"name": "look", "description": say("tool"), "parameters": parameters | {"required": ["place"]}}
    yield {"messages": [user]}
    yield {"messages": [user, assistant, last]}
    yield {"messages": [system, user, assistant, last]}
    yield {"messages": [user, assistant | {"reasoning_content": say("reasoning")}, last]}
    yield {"messages": [dict(user, content=[{"type": "text", "text": say("part")}]), assistant, last]}
    for given in ({"place": say("argument")}, json.dumps({"place": say("argument")})):
        calling = {"role": "assistant", "content": say("calling"), "tool_calls": [call(given)]}
        yield {"messages": [user, calling, tool, assistant, last], "tools": [{"type": "function", "function": function}]}
    yield {"messages": [dict(user, name=say("name"))], "tools": [{"type": "function", "function": function}]}
    yield {"messages": [user, assistant, last], "documents": [{"title": say("title"), "text": say("document")}]}
    yield {"messages": [user], "documents": [{"title": say("title"), "text": say("document"), "doc_id": 1}]}


# What is said of a control token, the n-th at a place: between QnQ and ZnZ, which no template writes.
SAYINGS = {
    "whole": lambda token, n: f" Q{n}Q{token}Z{n}Z",
    "twisted": lambda token, n: f" Q{n}Q\u0301{token[: 1 + n % len(token)]}{token}{token[n % len(token) :]}\u0338\u200dZ{n}Z",
}


def whole_text(tokens, how):
    """say() of a conversation in which every place spells every token."""
    places = {}

    def say(place):
        first = places.setdefault(place, 1000 * (1 + len(places)))
        return "".join(SAYINGS[how](t, first + i) for i, t in enumerate(tokens))

    return say


def split_text(tokens, turn, filler=None):
    """say() in which every place begins with the end of a token and ends with the beginning of the same, so that what stands
    before or behind may complete it. `filler`: the same, spelling nothing."""

    def say(place):
        token = tokens[(turn + len(place)) % len(tokens)]
        at = 1 + (turn * 7 + len(place)) % max(1, len(token) - 1)
        begin, end = token[:at], token[at:]
        if filler:
            begin, end = filler * len(begin.encode()), filler * len(end.encode())
        return end + " Q " + place + " Z " + begin

    return say


class Vocabulary:
    def __init__(self, tokenizer):
        self.control = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
        bytes_of = {c: b for b, c in LETTERS.items()}
        self.bytes = {i: bytes(bytes_of.get(c, 63) for c in w) for w, i in tokenizer["model"]["vocab"].items()}
        self.bytes |= {i: t.encode() for i, t in self.control.items()}

    def ids(self, img, talk, *options):
        """Ids of a conversation; None where the template refuses it."""
        r = stele("tokenize", img, "--messages", messages_file(talk), *NOW, *options)
        return None if r.code == 3 else r.exits(0).ids

    def text(self, ids):
        return b"".join(self.bytes[i] for i in ids)

    def places(self, ids):
        """[(offset, id)] of the control tokens among ids."""
        found, at = [], 0
        for i in ids:
            if i in self.control:
                found.append((at, i))
            at += len(self.bytes[i])
        return found


SAID = re.compile(rb"Q(\d+)Q((?:(?!Q\d|Z\d).)+?)Z\1Z", re.S)


def check_whole(vocabulary, img, talk):
    """How many times something was said where nothing but content is, and read as text."""
    ids = vocabulary.ids(img, talk)
    if ids is None:
        return 0
    text = vocabulary.text(ids)
    assert text == stele("render", img, "--messages", messages_file(talk), *NOW).exits(0).out, "ids of another text"
    said = [m.span(2) for m in SAID.finditer(text)]
    for at, i in vocabulary.places(ids):
        token = vocabulary.control[i].encode()
        assert not any(a < at + len(token) and at < b for a, b in said), (
            f"{token} at {at} of {text[max(0, at - 60) : at + 60]!r} comes from a message")  # fmt: skip
    trusted = vocabulary.ids(img, talk, "--trust-content")
    raw = stele("tokenize", img, "--raw", "--bare", stdin=text).exits(0).ids
    assert trusted == raw, "--trust-content reads something else than the text"
    whole = sum(text[a:b].decode() in vocabulary.control.values() for a, b in said)
    assert len(vocabulary.places(trusted)) >= len(vocabulary.places(ids)) + whole, "there was nothing to guard"
    return len(said)


def check_split(vocabulary, img, talk, plain):
    """Whether the template treats both alike, so that both must have the same control tokens."""
    ids, want = vocabulary.ids(img, talk), vocabulary.ids(img, plain, "--trust-content")
    if ids is None or want is None or len(vocabulary.text(ids)) != len(vocabulary.text(want)):
        return 0
    assert vocabulary.places(ids) == vocabulary.places(want), f"{vocabulary.text(ids)!r}: {vocabulary.places(ids)}"
    return 1


def check_injection(img, vocabulary, spelled):
    """Says every control token at every place of every conversation. How often one was said, and how often one was split
    where that changed nothing else."""
    whole = [talk for how in SAYINGS for talk in conversations(whole_text(spelled, how))]
    split, shapes = [], 10
    for turn in range(max(shapes, len(spelled))):
        pair = [list(conversations(split_text(spelled, turn, filler))) for filler in (None, "x")]
        split.append((pair[0][turn % shapes], pair[1][turn % shapes]))
    said = sum(pool.map(lambda talk: check_whole(vocabulary, img, talk), whole))
    return said, sum(pool.map(lambda pair: check_split(vocabulary, img, *pair), split))


def check_template(name):
    spelled = spelled_in(name)
    tokenizer = byte_level(spelled)
    img = converted(with_template(source(name), tokenizer, tokens(name)))
    said, alike = check_injection(img, Vocabulary(tokenizer), spelled)
    assert said > 2 * len(spelled) and alike, f"{said} said, {alike} split"
    return said, alike


for name in NAMES[::12] if FAST else NAMES:

    @test(needs=CHAT)
    def no_control_token_of_a_template_stands_where_content_is(name=name):
        check_template(name)


def filled_text(tokens, how):
    """whole_text() in which every token is as many letters that spell nothing."""
    return whole_text(["x" * len(t) for t in tokens], how)


def check_filled(img, control, talk, plain):
    """Whether the template treats both alike; then what they say makes no difference to the control tokens."""
    file, plain_file = messages_file(talk), messages_file(plain)
    r = stele("render", img, "--messages", file, *NOW)
    want = stele("render", img, "--messages", plain_file, *NOW)
    if r.code == 3 or len(r.exits(0).text) != len(want.exits(0).text):
        return 0
    ids = lambda *args: [i for i in stele("tokenize", img, *NOW, "--messages", *args).exits(0).ids if i in control]
    template = ids(plain_file, "--trust-content")
    assert ids(file) == template == ids(plain_file), f"{r.text[:500]!r}: {ids(file)} instead of {template}"
    trusted = stele("tokenize", img, *NOW, "--messages", file, "--trust-content").exits(0).ids
    assert trusted == stele("tokenize", img, "--raw", "--bare", stdin=r.out).exits(0).ids, "--trust-content"
    return len(trusted) > len(template)


# Vocabularies of models, with templates of their families.
REAL = {"llama2-normalized": "llama2", "llama2": "llama2", "phi3-mini": "phi3", "smollm2": "smollm2", "olmo": "olmo",
        "dolma2": "olmo2", "mistral-v0.3": "mistral-v0.3", "qwen3": "qwen3", "deepseek-v3": "deepseek-v3",
        "mistral-nemo": "mistral-nemo", "llama3": "llama3", "deepseek-coder": "deepseek-v3-base"}  # fmt: skip

_real = {}


def real(name):
    """(image, tokenizer.json) of a model's vocabulary and template."""
    if name not in _real:
        tokenizer = json.loads(data(f"tokenizers/{name}/tokenizer.json").read_text())
        _real[name] = converted(with_template(source(REAL[name]), tokenizer, tokens(REAL[name])), "--weights", "q8"), tokenizer
    return _real[name]


for name in [*REAL][:1] if FAST else REAL:

    @test(needs=[CHAT, data(f"tokenizers/{name}")])
    def no_control_token_of_a_models_vocabulary_stands_where_content_is(name=name):
        img, tokenizer = real(name)
        control = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
        spelled = [t for t in control.values() if len(t) > 1 and not t.isspace()]
        spelled = spelled[:40] + spelled[40::20]
        pairs = []
        for how in SAYINGS:
            pairs += zip(conversations(whole_text(spelled, how)), conversations(filled_text(spelled, how)))
        for turn in range(20):
            both = [list(conversations(split_text(spelled, turn, f))) for f in (None, "x")]
            pairs.append((both[0][turn % 10], both[1][turn % 10]))
        alike = sum(pool.map(lambda pair: check_filled(img, control, *pair), pairs))
        assert alike >= 4, f"{alike} of {len(pairs)} conversations told something"


# Runs of spaces, and letters that some vocabularies have as added tokens: deepseek-coder's, olmo's.
ORDINARY = "def f(x):\n    if x:\n        return õ ÷ 2\n\n\n\tdone   end ÿ\r\n  ü À\u0301 ½\n                         }\n"

for name in ["olmo"] if FAST else REAL:

    @test(needs=[CHAT, data(f"tokenizers/{name}")])
    def what_spells_no_control_token_has_the_ids_that_transformers_gives(name=name):
        talk = messages_file([{"role": "user", "content": ORDINARY}])
        ids = stele("tokenize", real(name)[0], "--messages", talk).exits(0).ids
        assert ids == stele("tokenize", real(name)[0], "--messages", talk, "--trust-content").exits(0).ids, name


finish()
