#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Chat templates through the command: every case of ../shared/chat is what transformers renders or refuses; no text of
a message, a tool or a document becomes a control token; the options of conversations; what a model thinks and what it
answers, from models that write chosen tokens."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import imagefile as im

from harness import *
from workshop import *

CHAT = DATA / "chat"
NAMES = sorted(f.name for f in (CHAT / "templates").iterdir()) if CHAT.exists() else []
NOW = ["--date", "2026-01-15T10:30:00"]  # the clock of the cases
pool = ThreadPoolExecutor(os.cpu_count())
TINY = dict(
    hidden_size=16, head_dim=8, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16, num_hidden_layers=1
)

# ---- checkpoints with a template ----

LETTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {b: chr(b) for b in LETTERS} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in LETTERS)
}


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


_files = itertools.count()  # for threads


def messages_file(value):
    path = SCRATCH / f"messages-{next(_files)}.json"
    path.write_text(json.dumps(value, ensure_ascii=False))
    return path


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

SHAPES = [
    re.compile(p)
    for p in (
        r"<\|[^|<>{}'\"\s+]+\|>",
        r"<｜[^｜<>{}'\"\s+]+｜>",
        r"</?[a-zA-Z_:]+>",
        r"\[/?[A-Z_]{3,}\]",
        r"<<?/?\|?[A-Za-z_]+\|?>>?",
    )
]


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
        yield {
            "messages": [user, calling, tool, assistant, last],
            "tools": [{"type": "function", "function": function}],
        }
    yield {"messages": [dict(user, name=say("name"))], "tools": [{"type": "function", "function": function}]}
    yield {"messages": [user, assistant, last], "documents": [{"title": say("title"), "text": say("document")}]}
    yield {"messages": [user], "documents": [{"title": say("title"), "text": say("document"), "doc_id": 1}]}


# What is said of a control token, the n-th at a place: between QnQ and ZnZ, which no template writes.
SAYINGS = {
    "whole": lambda token, n: f" Q{n}Q{' ' * (n % 2)}{token}{' ' * (n % 2)}Z{n}Z",
    "twisted": lambda token, n: (
        f" Q{n}Q\u0301{token[: 1 + n % len(token)]}{token}{token[n % len(token) :]}\u0338\u200dZ{n}Z"
    ),
}


def whole_text(tokens, how):
    """say() of a conversation in which every place spells every token."""
    places = {}

    def say(place):
        first = places.setdefault(place, 1000 * (1 + len(places)))
        return "".join(SAYINGS[how](t, first + i) for i, t in enumerate(tokens))

    return say


def split_text(tokens, turn, filler=None):
    """say() in which every place begins with the end of a token and ends with the beginning of the same, so that what
    stands before or behind may complete it. `filler`: the same, spelling nothing."""

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
        assert not any(
            a < at + len(token) and at < b for a, b in said
        ), f"{token} at {at} of {text[max(0, at - 60) : at + 60]!r} comes from a message"
    trusted = vocabulary.ids(img, talk, "--trust-content")
    raw = stele("tokenize", img, "--raw", "--bare", stdin=text).exits(0).ids
    assert trusted == raw, "--trust-content reads something else than the text"
    whole = sum(text[a:b].decode().strip() in vocabulary.control.values() for a, b in said)
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
    """Says every control token at every place of every conversation. How often one was said, and how often one was
    split where that changed nothing else."""
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
    return len([i for i in trusted if i in control]) > len(template)


# Vocabularies of models, with templates of their families.
REAL = {
    "llama2-normalized": "llama2",
    "llama2": "llama2",
    "phi3-mini": "phi3",
    "smollm2": "smollm2",
    "olmo": "olmo",
    "dolma2": "olmo2",
    "mistral-v0.3": "mistral-v0.3",
    "qwen3": "qwen3",
    "deepseek-v3": "deepseek-v3",
    "mistral-nemo": "mistral-nemo",
    "llama3": "llama3",
    "deepseek-coder": "deepseek-v3-base",
}

_real = {}


def real(name):
    """(image, tokenizer.json) of a model's vocabulary and template."""
    if name not in _real:
        tokenizer = json.loads(data(f"tokenizers/{name}/tokenizer.json").read_text())
        _real[name] = (
            converted(with_template(source(REAL[name]), tokenizer, tokens(REAL[name])), "--weights", "q8"),
            tokenizer,
        )
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
ORDINARY = (
    "def f(x):\n    if x:\n        return õ ÷ 2\n\n\n\tdone   end ÿ\r\n  ü À\u0301 ½\n                         }\n"
)

for name in ["olmo"] if FAST else REAL:

    @test(needs=[CHAT, data(f"tokenizers/{name}")])
    def what_spells_no_control_token_has_the_ids_that_transformers_gives(name=name):
        talk = messages_file([{"role": "user", "content": ORDINARY}])
        ids = stele("tokenize", real(name)[0], "--messages", talk).exits(0).ids
        assert ids == stele("tokenize", real(name)[0], "--messages", talk, "--trust-content").exits(0).ids, name


@test
def a_role_makes_no_token_unless_templates_know_it():
    control = ["<|user|>", "<|end|>", "<|assistant|>"]
    img = converted(with_template("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}",
                                  byte_level(control)))
    ids = lambda role, *more: stele("tokenize", img, "--messages", messages_file([{"role": role, "content": "x"}]),
                                    *more).exits(0).ids
    assert len(ids("user")) == 2 and len(ids("end", "--trust-content")) == 2
    assert len(ids("end")) == len("<|end|>x")


# ---- the options ----

CLOCK = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ strftime_now('%Y-%m-%d %H:%M:%S %a') }}"
SHOWN = (
    "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}{{ bos_token }}{{ tools }}{{ documents }}{{ x }}"
)
SHOWN += "{% if add_generation_prompt %}[?]{% endif %}"

_shown = {}


def shown(template=SHOWN, *options, **changes):
    """An image with a template; made once."""
    key = (str(template), *options, *changes)
    if key not in _shown:
        tokenizer = byte_level(["<s>", "<|end|>"])
        _shown[key] = converted(with_template(template, tokenizer, {"bos_token": "<s>"}, **changes), *options)
    return _shown[key]


def renders(text, *args, stdin=b"", img=None, env=None):
    r = stele("render", img or shown(), *args, stdin=stdin, env=env).exits(0)
    assert r.text == text and not r.error, (r.text, text, r.error)


def refuses(code, *says, args, img=None, stdin=b"", verb="render", env=None):
    """One sentence, nothing on stdout."""
    r = stele(verb, img or shown(), *args, stdin=stdin, env=env).exits(code, *says)
    assert r.out == b"" and r.error.startswith(f"stele {verb}: ") and r.error.count("\n") == 1, (r.out, r.error)


TAIL = "<s>NoneNone"
HI = [{"role": "user", "content": "hi"}]


@test
def messages_come_from_prompt_options_file_and_standard_input():
    renders(f"[user hi]{TAIL}[?]", "hi")
    renders(f"[user hi]{TAIL}[?]", stdin=b"hi")
    renders(f"[user hi]{TAIL}[?]", "-", stdin=b"hi")
    renders(f"[user ]{TAIL}[?]", "")
    renders(f"[system be][user hi]{TAIL}[?]", "--system", "be", "hi")
    file = messages_file([*HI, {"role": "assistant", "content": "yo"}])
    renders(f"[user hi][assistant yo]{TAIL}[?]", "--messages", file)
    renders(f"[user hi][assistant yo][user so]{TAIL}[?]", "--messages", file, "so")
    renders(f"[user hi][assistant yo][user so]{TAIL}[?]", "--messages", file, "-", stdin=b"so")
    renders(f"[user hi][assistant yo]{TAIL}[?]", "--messages", "-", stdin=file.read_bytes())
    renders(f"[system be][user hi][assistant yo][user so]{TAIL}[?]", "--messages", file, "so", "--system", "be")
    whole = {"messages": HI, "tools": [{"a": 1}], "documents": [{"b": "c"}], "more": 1}
    renders("[user hi]<s>[{'a': 1}][{'b': 'c'}][?]", "--messages", "-", stdin=json.dumps(whole).encode())
    renders(f"[user hi]{TAIL}[?]", "--messages", "-", "hi", stdin=b"[]")
    renders(f"[user hi]{TAIL}[?]", "--messages", "-", stdin=b"\xef\xbb\xbf" + json.dumps(HI).encode())


@test
def what_is_no_conversation_is_refused():
    bad = SCRATCH / "bad.json"
    for text, code, says in [
        (b"[", 3, "bad.json"),
        (b"{}", 2, "bad.json: neither a list"),
        (b"1", 2, "neither"),
        (b'{"tools": []}', 2, "neither"),
        (b"[]", 2, "no message"),
        (b"[1]", 2, "message 1"),
        (b"[{}, []]", 2, "message 2"),
        (b'[{"role": "user", "role": "user"}]', 3, "twice"),
        (b'{"messages": [{}], "tools": 1}', 2, "tools"),
        (b"", 3, "bad.json"),
        (b"[{}] x", 3, "bad.json"),
        (b'[{"role": "\xff"}]', 3, "bad.json"),
        (b"[" * 100000, 3, "bad.json"),
        (b'{"messages": [{}], "documents": ["a"]}', 2, "documents"),
    ]:
        bad.write_bytes(text)
        refuses(code, says, args=["--messages", bad])
    refuses(3, "standard input", args=["--messages", "-"], stdin=b"{")
    refuses(1, "none.json", args=["--messages", SCRATCH / "none.json"])
    refuses(1, "directory", args=["--messages", SCRATCH])
    refuses(2, "cannot both be standard input", args=["--messages", "-", "-"], stdin=b"[]")
    refuses(2, "begin with a system message", args=["--messages", "-", "--system", "a"], stdin=b'[{"role": "system"}]')
    refuses(3, "prompt is not UTF-8: byte 0xff at offset 1", args=["-"], stdin=b"a\xff")
    refuses(3, "system message is not UTF-8", args=["--system", b"\xc3".decode("utf-8", "surrogateescape"), "hi"])


@test
def arguments_are_json_and_each_name_comes_once():
    renders(f"[user hi]{TAIL}[1, 'a', None, 1e+22][?]", "--arg", 'x=[1, "a", null, 1e22]', "hi")
    renders(f"[user hi]{TAIL}", "--arg", "add_generation_prompt=false", "hi")
    renders("[user hi]</s>NoneNone[?]", "--arg", 'bos_token="</s>"', "hi")
    renders("[user hi]<s>[{}]None[?]", "--arg", "tools=[{}]", "hi")
    talk = json.dumps([*HI, {"role": "assistant", "content": "so"}]).encode()
    end = "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}"
    renders(
        "[user hi][assistant so", "--messages", "-", "--arg", "continue_final_message=true", stdin=talk, img=shown(end)
    )
    renders(
        "[user hi][assistant so]",
        "--messages",
        "-",
        "--arg",
        "continue_final_message=false",
        stdin=talk,
        img=shown(end),
    )
    for arg, says in [
        ("x", "it is not NAME=JSON"),
        ("=1", "it is not NAME=JSON"),
        ("x=", "no JSON"),
        ("x=abc", "no JSON"),
        ("x=" + "[" * 60000, "no JSON"),
        ("messages=[]", "messages"),
        ("tools=1", "tools"),
        ('continue_final_message="none"', "none"),
    ]:
        refuses(2, says, args=["--arg", arg, "hi"])
    refuses(2, "given twice", args=["--arg", "x=1", "--arg", "x=1", "hi"])
    refuses(
        2,
        "exclude each other",
        args=["--arg", "add_generation_prompt=true", "--arg", "continue_final_message=true", "hi"],
    )


@test
def the_date_is_that_of_the_option_then_of_SOURCE_DATE_EPOCH():
    at = lambda date: f"user:hi;{date}"
    epoch = {"SOURCE_DATE_EPOCH": "1700000000", "TZ": "Asia/Tokyo"}
    renders(at("2024-02-29 12:00:00 Thu"), "--date", "2024-02-29", "hi", img=shown(CLOCK), env=epoch)
    renders(
        at("2026-01-15 10:30:00 Thu"), "--date", "2026-01-15T10:30:00", "hi", img=shown(CLOCK), env={"TZ": "Asia/Tokyo"}
    )
    renders(at("1969-12-31 23:59:59 Wed"), "--date", "1969-12-31T23:59:59", "hi", img=shown(CLOCK))
    renders(at("2023-11-14 22:13:20 Tue"), "hi", img=shown(CLOCK), env=epoch)
    today = stele("render", shown(CLOCK), "hi").exits(0).text
    assert re.fullmatch(r"user:hi;20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \w\w\w", today), today
    for date in (
        "",
        "today",
        "2026-02-30",
        "2026-13-01",
        "2026-1-5",
        " 2026-01-05",
        "2026-01-05 ",
        "2026-01-15T",
        "2026-01-15T1:2:3",
        "2026-01-15T24:00:00",
        "2026-01-15T10:30:60",
        "2026-01-15 10:30:00",
        "99999-01-01",
        "-001-01-01",
    ):
        refuses(2, "--date takes YYYY-MM-DD", args=[f"--date={date}", "hi"])
    for seconds in ("", "x", "1.5", "9" * 30, "9223372036854775807"):
        refuses(2, "SOURCE_DATE_EPOCH", args=["hi"], env={"SOURCE_DATE_EPOCH": seconds})
    stats = lambda *args, env={}: stele("run", shown(CLOCK), *args, "-n", 1, "--stats", env=env).exits(0).stats
    assert stats("hi", "--date", "2024-02-29")["date"] == "2024-02-29T12:00:00"
    assert stats("hi", env=epoch)["date"] == "2023-11-14T22:13:20"
    assert not stats("hi", "--raw").get("date")


@test
def options_of_raw_text_and_of_conversations_exclude_each_other():
    chat = [
        ["--system", "a"],
        ["--messages", "x"],
        ["--date", "2026-01-01"],
        ["--template", "x"],
        ["--arg", "x=1"],
        ["--trust-content"],
    ]
    plain = shown(None)
    for option in chat:
        for verb in ("run", "tokenize"):
            refuses(2, option[0], "this is raw", args=["hi", "--raw", *option], verb=verb)
            refuses(2, option[0], "the model has none", args=["hi", *option], verb=verb, img=plain)
        refuses(2, "model has no", args=["hi", *option], img=plain)
    for option in ("--bare", "--plain"):
        refuses(2, option, "--raw", args=["hi", option], verb="run")
        refuses(2, option, "--raw", args=["hi", option, "--system", "a"], verb="tokenize")
        stele("run", shown(), "hi", "--raw", option, "-n", 1).exits(0)
        stele("run", plain, "hi", option, "-n", 1).exits(0)
        refuses(2, "--decode", args=["--decode", "1", option], verb="tokenize")
    refuses(2, "--decode", args=["--decode", "1", "--system", "a"], verb="tokenize")
    refuses(2, "no chat template", args=["hi"], img=plain)
    refuses(2, "--system", args=["--ids", "1", "--system", "a"], verb="run")
    a, b = (stele("tokenize", shown(), *args).exits(0).ids for args in (["a<s>b"], ["--raw", "a<s>b"]))
    assert a == b and len(a) == 3, "tokenize reads a text as it is unless it is a conversation"


@test
def a_model_without_its_template_takes_raw_text():
    folder = with_template("{% include 'x' %}", byte_level(["<s>"]))
    target = fresh("target") / "m.stele"
    stele("convert", folder, "-o", target).exits(3, "tokenizer_config.json: chat_template", "line 1", "include")
    assert not target.exists()
    stele("convert", folder, "-o", target, "--no-template").exits(0)
    assert stele("tokenize", target, "ab").exits(0).ids == stele("tokenize", target, "--raw", "ab").exits(0).ids
    refuses(2, "no chat template", args=["hi"], img=target)
    assert "none" in stele("inspect", target).exits(0).text


@test
def sizes_counts_the_template_and_leaves_it_out_as_convert_does():
    folder = with_template("{{ messages }}" * 50, byte_level(["<s>"]))
    bytes_of = lambda *options: json.loads(stele("sizes", folder, "--json", *options).exits(0).text)["image_bytes"]
    for options in ([], ["--no-template"]):
        assert bytes_of(*options) == converted(folder, *options).stat().st_size
    refused = with_template("{% include 'x' %}", byte_level(["<s>"]))
    stele("sizes", refused).exits(3, "include")
    stele("sizes", refused, "--no-template").exits(0)


# ---- where templates are found ----


def template_files(config=None, jinja=None, more={}):
    folder = with_template(config, byte_level(["<s>"]))
    if jinja is not None:
        (folder / "chat_template.jinja").write_bytes(jinja if isinstance(jinja, bytes) else jinja.encode())
    for name, text in more.items():
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / name).write_text(text)
    return folder


@test
def templates_are_found_where_transformers_finds_them():
    say = lambda img, *options: stele("render", img, *options, "hi").exits(0).text
    assert say(converted(template_files("config", "file\r\n"))) == "file"
    assert say(converted(template_files("config"))) == "config"
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"},
        {"name": "rag", "template": "rag"},
    ]
    for folder in (
        template_files(named),
        template_files("config", "plain", {"tool_use.jinja": "tools", "rag.jinja": "rag", "x.txt": "{%"}),
    ):
        img = converted(folder)
        assert (
            say(img) == "plain"
            and say(img, "--template", "rag") == "rag"
            and say(img, "--template", "tool_use") == "tools"
        )
        assert say(img, "--arg", "tools=[{}]") == "tools" and say(img, "--arg", "tools=[]") == "tools"
        assert (
            say(img, "--arg", "tools=null") == "plain"
            and say(img, "--arg", "tools=[]", "--template", "default") == "plain"
        )
        refuses(2, '"none"', "default, ", "rag", args=["hi", "--template", "none"], img=img)
        found = json.loads(stele("inspect", "--json", img).exits(0).text)["defaults"]["chat_templates"]
        assert sorted(found) == ["default", "rag", "tool_use"], found
    only = converted(template_files([{"name": "rag", "template": "rag"}]))
    refuses(2, "default", "rag", args=["hi"], img=only)
    assert say(only, "--template", "rag") == "rag"


@test
def a_template_that_is_not_understood_is_refused_with_its_file_and_line():
    def refused(folder, *says):
        target = fresh("target") / "m.stele"
        stele("convert", folder, "-o", target).exits(3, *says)
        assert not list(target.parent.iterdir())

    refused(template_files(None, "a\n{{ x|nosuch }}"), "chat_template.jinja: line 2", "nosuch")
    refused(template_files(None, "a", {"b.jinja": "\n\n{% with a = 1 %}{% endwith %}"}), "b.jinja: line 3", "with")
    refused(template_files([{"name": "x", "template": "{{"}]), 'chat_template "x": line 1')
    refused(template_files([{"name": "x"}]), "item 0")
    refused(template_files([{"name": "x", "template": "a"}] * 2), 'two templates are called "x"')
    refused(template_files([{"name": str(i), "template": "a"} for i in range(65)]), "more than 64")
    refused(template_files(5), "neither a text nor a list")
    refused(template_files(None, b"a\xff"), "chat_template.jinja", "UTF-8")
    refused(template_files(None, b"x" * (5 << 20)), "chat_template.jinja")
    for deep in (
        "{{ " + "(" * 100000,
        "{{ " + "-" * 100000 + "1 }}",
        "{% if 1 %}" * 20000,
        "{{ 'a",
        "{# a",
        "{% raw %}",
        "{{ 1 + }}",
    ):
        refused(template_files(deep), "chat_template: line 1")
    folder = template_files("a")
    os.mkfifo(folder / "chat_template.jinja")
    refused(folder, "chat_template.jinja")
    edit = with_template("a", byte_level(["<s>"]), {"bos_token": 5})
    refused(edit, "bos_token")


# Each would run for hours or take the memory: (template, what the sentence names).
HOSTILE = {
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}": "steps",
    "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}": "deep",
    "{% macro m(x) %}{{ m(x) ~ m(x) }}{% endmacro %}{{ m(1) }}": "deep",
    "{{ 'x' * 1000000000 }}": "steps",
    "{% set x = 'x' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}": "writes more than",
    "{% set n = namespace(x='xx') %}{% for i in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "",
    "{% set n = namespace(x=[1]) %}{% for i in range(100) %}{% set n.x = n.x + n.x %}{% endfor %}": "memory",
    "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}": "steps",
    "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson }}": "levels",
    "{{ strftime_now('%99999999d') }}": "date",
    "{{ 9 ** 9 ** 9 }}": "bits",
    "{{ messages|tojson(indent=1000000000) }}": "",
    "{{ ('a' * 100000).replace('', 'y' * 100000) }}": "writes more than",
    "{{ ('a' * 1000000).rsplit('a' * 500000 ~ 'b') }}": "steps",
}
# Text of four million bytes that is compared a million times.
MILLION = (
    "{%% set x = 'a' * 4000000 %%}{%% set y = 'a' * 4000000 %%}{%% for i in range(1000) %%}{%% for j in range(1000) %%}"
)
MILLION += "{%% set z = %s %%}{%% endfor %%}{%% endfor %%}"
HOSTILE |= {
    MILLION % e: "steps"
    for e in (
        "x.startswith(y)",
        "x.endswith((y, x))",
        "x < y",
        "{x: 1}[y]",
        "y in x",
        "x == y",
        "x.rfind('a' * 500000)",
    )
}


@test
def a_hostile_template_ends_with_a_sentence():
    run = lambda item: refuses(3, "chat template, line 1", item[1], args=["hi"], img=item[0])
    images = [(converted(with_template(template, byte_level([]))), says) for template, says in HOSTILE.items()]
    list(pool.map(run, images[::7] if FAST else images))


@test
def a_mutated_section_of_templates_is_survived():
    """Digests made anew, so that it is the section's own checks that stand between a stranger and the machine."""
    template = (
        "{% for m in messages %}<|go|>{{ m.role ~ ':' ~ m.content | trim }}{% endfor %}{{ bos_token }}{# </think> #}"
    )
    whole = im.ImageFile.read(converted(with_template(template, byte_level(["<s>", "<|go|>"]), {"bos_token": "<s>"})))
    rng, codes = np.random.default_rng(3), []
    right = whole.section(im.TEMPLATES).raw
    for turn in range(20 if FAST else 200):
        raw = bytearray(right)
        for at in rng.integers(0, len(raw) if turn % 2 else 200, 1 + turn % 3):
            raw[at] = rng.integers(0, 256)
        whole.section(im.TEMPLATES).raw = bytes(raw)
        path = SCRATCH / "mutated.stele"
        path.write_bytes(whole.pack())
        for args in (["render", path, "hi"], ["run", path, "hi", "-n", 1], ["inspect", path]):
            r = stele(*args)
            assert r.code in (0, 2, 3) and "Sanitizer" not in r.error and "runtime error" not in r.error, (
                r.code,
                r.error,
            )
            codes.append(r.code)
    assert {0, 3} <= set(codes)


# ---- thinking ----


def chain(
    pieces,
    start="<|go|>",
    template="{{ messages[-1].content }}<|go|>{# </think> #}",
    special=("<think>", "</think>"),
    plain=(),
    end="<|end|>",
):
    """An image of a model that writes `pieces` after the token `start`, one token each, and `end`: its layers add nothing
    to an embedding of one number a token, and the head's row of a token has that number of the token before it."""
    assert len({start, *pieces}) == len(pieces) + 1, "a token has one that follows it"
    added = [*dict.fromkeys(["<|go|>", end, *special, *plain])]
    words = [p for p in pieces if p not in added and letters(p) not in LETTERS.values()]
    tokenizer = byte_level(added, words, special=lambda token: token not in plain)
    number = tokenizer["model"]["vocab"] | {letters(t["content"]): t["id"] for t in tokenizer["added_tokens"]}
    ids = [number[letters(p)] for p in (start, *pieces, end)]
    size = len(number)
    head = np.zeros((size, size), "<f4")
    head[ids[1:], ids[:-1]] = 1
    folder = with_template(
        template,
        tokenizer,
        hidden_size=size,
        tie_word_embeddings=False,
        eos_token_id=ids[-1],
        max_position_embeddings=128,
    )
    made = {
        n: (d, s, stored(d, np.ones(s) if len(s) == 1 else np.zeros(s)))
        for n, (d, s, _) in read_safetensors(folder / "model.safetensors").items()
    }
    made["model.embed_tokens.weight"] = ("F32", head.shape, stored("F32", np.eye(size)))
    made["lm_head.weight"] = ("F32", head.shape, stored("F32", head))
    write_safetensors(folder / "model.safetensors", made)
    return converted(folder)


def thinks(img, thoughts, answer, *options, note=""):
    """Asserts what goes where, to the byte."""
    run = lambda *more: stele("run", img, "hi", "--temperature", 0, *options, *more).exits(0)
    line = lambda text: text if text.endswith("\n") or not text else text + "\n"
    hidden, err, out = run(), run("--thinking", "stderr"), run("--thinking", "stdout")
    assert hidden.text == (line(answer) or "\n") and note in hidden.error and bool(note) == bool(hidden.error), (
        hidden.text,
        hidden.error,
    )
    assert run("--thinking", "hide").out == hidden.out
    assert err.text == hidden.text and err.error.startswith(line(thoughts)), (err.text, err.error)
    assert bool(note) == (err.error != line(thoughts)), err.error
    assert out.text == (line(thoughts) + line(answer) or "\n"), out.text
    for more in ([], ["--thinking", "stderr"], ["--thinking", "stdout"]):
        r = run("--print", "json", *more)
        got = json.loads(r.text)
        assert (got["text"], got.get("thinking", "")) == (answer, thoughts) and r.error == "", (got, r.error)


@test
def what_stands_between_special_marks_is_not_the_answer():
    img = chain(["<think>", "Let", " me", " see", "</think>", "\n\n", "Forty", "-two"])
    thinks(img, "Let me see", "Forty-two")
    ids = stele("run", img, "hi", "--print", "ids").exits(0).ids
    assert len(ids) == 8, "ids are all that the model wrote"
    thinks(img, "Let me", "", "-n", 3, note="still thinking after 3 tokens")


@test
def marks_that_are_text_are_found_however_tokens_cut_them():
    thinks(chain(["\n<thi", "nk>\n", "I ", "wonder\n</", "thi", "nk>\n\n", " Done", "."]), "\nI wonder\n", "Done.")
    thinks(
        chain(["<", "think", ">a </thin", "g> b<", "/think", ">c <think>d</", "thin", "k>"]),
        "a </thing> b",
        "c <think>d</think>",
    )
    thinks(chain(["<think>", "a<", "/think>", " b"], plain=("<think>",), special=("</think>",)), "a", "b")
    thinks(chain(["<think>", "a", "</think>", " b"], plain=("<think>", "</think>"), special=()), "a", "b")


@test
def what_does_not_begin_with_a_mark_is_the_answer():
    thinks(chain(["Yes", ": <think>", "no</think", ">"]), "", "Yes: <think>no</think>")
    thinks(chain([" <thin", "k", "er>"]), "", " <thinker>")
    thinks(chain(["Yes", "<think>", "no", "</think>", "."]), "", "Yesno.")
    thinks(chain(["</think>", "\n\n", "Yes"]), "", "Yes")
    thinks(chain(["<think>", "\n", "</think>", " Yes"]), "\n", "Yes")


@test
def a_prompt_that_ends_inside_thinking_makes_what_follows_thinking():
    for template in ("{{ messages[0].content }}{# </think> #}<think>\n\n", "hi{{ '<think>\\n' }}{# </think> #}"):
        img = chain(["Well", ", ", "no</thi", "nk>", "Yes"], start="\n", template=template)
        thinks(img, "Well, no", "Yes")
        thinks(img, "Well, ", "", "-n", 2, note="still thinking after 2 tokens")
    img = chain(["Well"], start="\n", template="{{ messages[0].content }}\n{# </think> #}")
    said = stele("run", img, "<think>").exits(0)
    assert said.text == "Well\n", "a message that ends with the mark is no thinking of the model's"


@test
def a_stop_text_in_thinking_does_not_stop():
    img = chain(["<think>", "a STOP", " b", "</think>", "one ", "ST", "OP two"])
    thinks(img, "a STOP b", "one ", "--stop", "STOP")
    thinks(chain(["<think>", "a ST", "</think>", "OP c"]), "a ST", "OP c", "--stop", "STOP")


@test
def a_model_that_ends_while_it_thinks_has_no_answer_and_a_sentence_says_so():
    thinks(chain(["<think>", "Hm", "m"]), "Hmm", "", note="without an answer")


def oss(*pieces):
    """A model with gpt-oss's marks, whose thoughts and answer are messages that end with <|end|> and <|return|>."""
    return chain(
        pieces,
        special=("<|channel|>", "<|message|>", "<|end|>", "<|start|>", *(p for p in pieces if "|><|" in p)),
        template="{{ messages[0].content }}<|go|>{# <|channel|>final<|message|> #}",
        end="<|return|>",
    )


THINKS_IN_A_MESSAGE = ["<|channel|>", "analysis", "<|message|>", "Hm", "<|end|>", "<|start|>", "assistant"]
THINKS_IN_A_MESSAGE += ["<|channel|>final<|message|>", "Yes"]


@test
def what_stands_between_messages_is_no_thought():
    thinks(oss(*THINKS_IN_A_MESSAGE), "Hm", "Yes")
    thinks(oss(*THINKS_IN_A_MESSAGE), "Hm", "", "-n", 7, note="still thinking after 7 tokens")
    again = ["<|channel|>analysis", "<|message|>", "Hm", "<|end|>", "<|start|>", "assistant", "<|channel|>", "analysis"]
    again += ["<|message|>...", "<|end|><|start|>", "assist", "ant", "<|channel|>final<|message|>", "Yes"]
    thinks(oss(*again), "Hm...", "Yes")


@test(needs=CHAT / "templates" / "gpt-oss")
def messages_are_spelled_as_the_template_of_gpt_oss_has_them():
    img = converted(with_template(source("gpt-oss"), byte_level([]), tokens("gpt-oss")))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "thinking": "Hm", "content": "Yes"}]
    text = stele("render", img, "--messages", messages_file(said), *arguments({})).exits(0).text
    assert text.endswith("<|end|><|start|>assistant" + "".join(THINKS_IN_A_MESSAGE) + "<|return|>"), text[-200:]
    marks = lambda img: json.loads(stele("inspect", "--json", img).exits(0).text)["defaults"]["thinking"]
    assert marks(img) == marks(oss("Yes")) and len(marks(img)) == 3, marks(img)


@test
def the_marks_of_other_models_are_found():
    thinks(oss("<|channel|>", "final", "<|message|>", "Yes"), "", "Yes")
    mistral = chain(
        ["[THINK]", "Hm", "[/THINK]", "Yes"],
        special=("[THINK]", "[/THINK]"),
        template="{{ messages[0].content }}" "<|go|>{# [/THINK] #}",
    )
    thinks(mistral, "Hm", "Yes")


@test
def raw_text_and_a_template_without_marks_have_no_thinking():
    img = chain(["<think>", "a", "</think>", "b"], plain=("<think>", "</think>"), special=())
    raw = stele("run", img, "--raw", "<|go|>", "--temperature", 0).exits(0)
    assert raw.text == "<think>a</think>b\n" and not raw.error, raw.text
    img = chain(
        ["<think>", "a", "</think>", "b"],
        plain=("<think>", "</think>"),
        special=(),
        template="{{ messages[0].content }}<|go|>",
    )
    assert stele("run", img, "hi").exits(0).text == "<think>a</think>b\n"


finish()
