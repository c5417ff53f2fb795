#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`stele choose`: log-probabilities are transformers' and logprobs', the same bits alone and in any company."""
import random
import shutil
import time

from harness import *
from workshop import *

GOLDEN = json.loads((DEMO.parent / "golden.json").read_text())["choices"]
PROMPT = "One day, {} lost her red"
CHOICES = " ball, hat, ball. She looked under, very red shoe"


def demo(**config):
    """The demo model, with other fields in config.json."""
    folder = fresh("demo")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(json.loads((DEMO / "config.json").read_text()) | config))
    return folder


_windowed = demo(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=20)


def choose(img, *args, stdin=b"", env=None):
    r = stele("choose", img, "--json", *args, stdin=stdin, env=env).exits(0)
    return [json.loads(line) for line in r.text.splitlines()]


def from_logprobs(img, prompt, choice, tokens):
    """The sum over the last ids of prompt and choice, as logprobs prints them."""
    lines = stele("logprobs", img, prompt + choice).exits(0).text.splitlines()
    return sum(json.loads(line)["logprob"] for line in lines[-tokens:])


@test
def log_probabilities_are_those_of_transformers():
    for case in GOLDEN:
        for chunk in (1, 3, 512):
            r = choose(image(DEMO), "--choices", ",".join(case["choices"]), "--chunk", chunk, case["prompt"])[0]
            assert [c["text"] for c in r["choices"]] == case["choices"]
            assert [c["tokens"] for c in r["choices"]] == case["tokens"]
            worst = max(abs(c["logprob"] - want) for c, want in zip(r["choices"], case["logprobs"]))
            assert worst < 1e-4, (case, r, worst)
            assert r["index"] == max(range(len(case["logprobs"])), key=lambda i: case["logprobs"][i])
            assert r["choice"] == case["choices"][r["index"]]


@test
def log_probabilities_are_the_sums_of_those_that_logprobs_prints():
    for model in (DEMO, _windowed):
        for weights in ("f32", "q8"):
            for case in GOLDEN:
                r = choose(image(model, weights), "--choices", ",".join(case["choices"]), case["prompt"])[0]
                for c in r["choices"]:
                    said = from_logprobs(image(model, weights), case["prompt"], c["text"], c["tokens"])
                    assert abs(c["logprob"] - said) <= 1e-7 * abs(said) + 1e-12, (c, said)


LINES = ["Anna", "Mia", "the big brown fox", "Tom", "", "the old owl who lived in the tree by the farm", "Ä", "x" * 90] * 6


@test
def each_line_gets_the_bits_that_it_gets_alone_in_any_order_and_company():
    for model in (DEMO, _windowed):
        for weights in ("f32", "q4"):
            img = image(model, weights)
            alone = {line: stele("choose", img, "--json", "--choices", CHOICES, PROMPT.replace("{}", line)).exits(0).text
                     for line in set(LINES)}
            for seed, more in enumerate([(), ("--chunk", 7), ("--threads", 3)]):
                lines = LINES[:]
                random.Random(seed).shuffle(lines)
                out = stele("choose", img, "--json", "--each", "--choices", CHOICES, *more, PROMPT,
                            stdin="".join(line + "\n" for line in lines).encode()).exits(0).text
                assert out == "".join(alone[line] for line in lines), (model, weights, more)


@test
def kernels_do_not_change_a_bit():
    args = ["choose", image(DEMO, "q8"), "--json", "--choices", CHOICES, PROMPT]
    said = {stele(*args, env={"STELE_KERNELS": k}).exits(0).out for k in ("generic", "avx2") } | {stele(*args).exits(0).out}
    assert len(said) == 1


@test
def lines_are_answered_as_they_come():
    p = subprocess.Popen([BUILD / "stele", "choose", image(DEMO), "--each", "--choices", CHOICES, PROMPT],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for name in (b"Anna", b"Mia"):
        p.stdin.write(name + b"\n")
        p.stdin.flush()
        assert p.stdout.readline()
    p.stdin.write(b"Tom")  # no newline at the end
    p.stdin.close()
    assert p.stdout.readline() and not p.stdout.readline()
    assert p.wait() == 0


@test
def a_line_that_fails_has_its_error_in_its_place():
    stdin = b"Anna\nbad \xff byte\nMia\n" + b"long " * 600 + b"\nTom\n"
    r = stele("choose", image(DEMO), "--each", "--choices", CHOICES, PROMPT, stdin=stdin)
    r.exits(3, "2 of 5 lines failed, the first is line 2")
    lines = r.text.splitlines()
    assert len(lines) == 5 and [i for i, line in enumerate(lines) if line.startswith("error: ")] == [1, 3]
    assert "UTF-8" in lines[1] and "context" in lines[3]
    r = stele("choose", image(DEMO), "--each", "--json", "--choices", CHOICES, PROMPT, stdin=stdin)
    assert [("error" in json.loads(line)) for line in r.exits(3).text.splitlines()] == [False, True, False, True, False]
    assert stele("choose", image(DEMO), "--each", "--choices", CHOICES, PROMPT, stdin=b"").exits(0).out == b""


@test
def normalize_compares_by_the_byte():
    r = choose(image(DEMO), "--choices", CHOICES, PROMPT)[0]
    n = choose(image(DEMO), "--normalize", "--choices", CHOICES, PROMPT)[0]
    assert [c["logprob"] for c in r["choices"]] == [c["logprob"] for c in n["choices"]]
    best = max(range(4), key=lambda i: r["choices"][i]["logprob"] / len(r["choices"][i]["text"].encode()))
    assert n["index"] == best != r["index"], (n, r)
    for x in (r, n):
        assert abs(sum(c["probability"] for c in x["choices"]) - 1) < 1e-6


@test
def choices_come_from_a_file_too():
    folder = fresh("choices")
    (folder / "c.txt").write_text(CHOICES.replace(",", "\n") + "\n")
    assert choose(image(DEMO), "--choices-file", folder / "c.txt", PROMPT) == choose(image(DEMO), "--choices", CHOICES, PROMPT)


@test
def lines_may_end_as_windows_ends_them():
    folder = fresh("choices")
    file = folder / "c.txt"
    file.write_bytes(CHOICES.replace(",", "\r\n").encode())
    assert choose(image(DEMO), "--choices-file", file, PROMPT) == choose(image(DEMO), "--choices", CHOICES, PROMPT)
    args = [image(DEMO), "--each", "--choices", CHOICES, PROMPT]
    for tail in (b"", b"\r\n"):
        assert choose(*args, stdin=b"Anna\r\nMia" + tail) == choose(*args, stdin=b"Anna\nMia\n")


@test
def standard_input_is_one_thing():
    folder = copied(DEMO)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    args = ["choose", converted(folder), "--choices", "a,b", "--messages", "-"]
    chat = b'[{"role": "user", "content": "x"}]'
    stele(*args, stdin=chat).exits(0)
    stele(*args, "-", stdin=chat).exits(2, "messages and the prompt")
    stele(*args, "--each", "{}", stdin=chat).exits(2, "messages and the lines")


@test
def what_cannot_be_chosen_is_refused():
    img = image(DEMO)
    stele("choose", img, PROMPT).exits(2, "choices are needed")
    stele("choose", img, "--choices", "a,b", "--choices-file", "/dev/null", PROMPT).exits(2, "choices are needed")
    stele("choose", img, "--choices", "a", PROMPT).exits(2, "nothing to choose")
    stele("choose", img, "--choices", "a,,b", PROMPT).exits(2, "choice 2 is empty")
    stele("choose", img, "--choices", "a,b,a", PROMPT).exits(2, "choice 3 is choice 1 again")
    stele("choose", img, "--choices", "a," + "word " * 600, PROMPT).exits(2, "context")
    stele("choose", img, "--choices", "a,\udcff", PROMPT).exits(3, "UTF-8")
    stele("choose", img, "--each", "--choices", "a,b", "no place").exits(2, "{}")
    stele("choose", img, "--each", "--choices", "a,b").exits(2, "{}")
    stele("choose", img, "--bare", "--choices", "a,b", "").exits(2, "empty")
    stele("choose", img, "--choices-file", "/nowhere", PROMPT).exits(1, "/nowhere")
    stele("choose", img, "--choices", "a,b", "--system", "x", PROMPT).exits(2, "--system", "none")


finish()
