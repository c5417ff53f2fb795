#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes golden.json: what transformers and tokenizers say about the demo model.

    /tmp/demo-venv/bin/python scripts/demo-model/golden.py     (packages: see train.py)

The BF16 weights are widened to float32 and everything is computed in float32 on one thread.

greedy     per prompt: its ids, the ids of the greedy continuation (at most 200, the end id left
           out), why it stopped ("eos" or "length"), its text, and `min_gap`, the smallest distance
           between the largest and the second largest logit over all steps, the one that chose the
           end included: an implementation whose logits are off by less than half of it agrees.
logits     for one sequence of 16 ids: per position the 8 largest logits as [id, logit], in falling
           order, and the largest absolute logit of the vocabulary.
choices    per prompt and list of choices: the log-probability of each choice behind the prompt. Prompt
           and choice are tokenised together; what the ids of all of them and of the prompt alone
           begin with in common is given, and the ids behind it count.
tokenizer  per text: `ids` with special tokens added, `ids_plain` without, and `decoded`, the text
           of `ids_plain` with special tokens spelled out.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoint"
MAX_NEW = 200

PROMPTS = [
    "Once upon a time",
    "The fox",
    "In the morning, Anna",
    "One winter day, Mia and",
    "It was a dark night. The owl",
    "Tom had six apples.",
]
LOGITS_PROMPT = "One day, Anna lost her red ball. She looked under the table, but it was"

CHOICES = [
    ["Once upon a time, there was a", [" fox", " girl", " boy named Tom", " sheep"]],
    ["One day, Anna lost her red", [" ball", " hat", " ball. She looked under the table"]],
    ["The owl was", [" happy", " sad", "n't"]],
    ["Tom had six", [" apples.", " apples", " red apples and a b", "ty"]],
]

TEXTS = [
    "Hello",
    " Hello",
    "Once upon a time, there was a fox.",
    "The quick brown fox jumps over the lazy dog",
    "THE QUICK BROWN FOX",
    "cAmElCaSe MiXeD",
    "a",
    "",
    " ",
    "  ",
    "   three spaces before",
    "three spaces after   ",
    "two  spaces   three    four",
    "tab\tseparated\t\tvalues",
    "\t\n \r\n mixed blank",
    "line one\nline two",
    "line one\n\nline two\n\n\nline three\n",
    "windows\r\nlines\r\n\r\nend",
    "old mac\rlines",
    "ends with newline\n",
    " \n \n ",
    "trailing space \nthen newline",
    "It's Anna's ball, isn't it?",
    "I'm sure they'll say we've won; you'd know, they're late.",
    "IT'S ANNA'S. DON'T! I'LL. WE'VE. YOU'RE. I'D. I'M",
    "'s 't 're 've 'm 'll 'd",
    "'sit 'tis 'real 'dog",
    "it’s a curly apostrophe",
    "rock 'n' roll",
    "0",
    "7 42 365 1024 65536 1000000",
    "3.14159, 1,000,000 and -5e10",
    "2024-02-29T12:34:56Z",
    "abc123def4567",
    "٣٤٥ ½ ² Ⅷ",
    "...",
    "Wait... what?! No!! (yes) [maybe] {perhaps}",
    "\"Quoted,\" she said. 'Single.'",
    "a-b_c/d\\e|f~g`h",
    "x = y + z * (w - 1) / 2 % 3;",
    "if (a != b && c <= d) { return a[i]++; }\n",
    "#include <stdio.h>\n\nint main(void)\n{\n\treturn 0;\n}\n",
    "user@example.org https://example.org/a?b=c&d=e#f",
    "$5.00 €10 £3 ¥200",
    "café naïve résumé",
    "cafe\u0301 combining",
    "Ärger über große Öfen",
    "Łódź, Żółw, čeština",
    "Однажды лиса пошла в лес.",
    "Μια φορά κι έναν καιρό",
    "שלום مرحبا",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界。",
    "むかしむかし、キツネがいました",
    "안녕하세요",
    "🦊 fox 🦊🦊",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "𝓗𝓮𝓵𝓵𝓸 𐍈",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u200bzero",
    "\ufeffbyte order mark",
    "control \x01\x02\x1b[0m\x7f \x85",
    "\ufffd\uffff\U0010ffff",
    "<|begin_of_text|>",
    "<|begin_of_text|>The fox<|end_of_text|>",
    "a<|end_of_text|>b <|end_of_text|> c",
    "<|end_of_text|><|end_of_text|>",
    "<|end_of_text",
    "<|END_OF_TEXT|> <|begin of text|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "=" * 70,
    " " * 40 + "x",
    "Donaudampfschifffahrtsgesellschaft pneumonoultramicroscopicsilicovolcanoconiosis",
]


def logits_of(model, ids):
    """[position][vocabulary], the whole sequence at once."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, tokenizer, prompt):
    prompt_ids = tokenizer.encode(prompt).ids
    ids, min_gap, stop = [], float("inf"), "length"
    while len(ids) < MAX_NEW:
        values, indices = logits_of(model, prompt_ids + ids)[-1].topk(2)
        min_gap = min(min_gap, (values[0] - values[1]).item())
        if indices[0] == model.config.eos_token_id:
            stop = "eos"
            break
        ids.append(indices[0].item())
    return {
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "greedy_ids": ids,
        "stop": stop,
        "text": tokenizer.decode(ids, skip_special_tokens=False),
        "min_gap": round(min_gap, 6),
    }


def top_logits(model, tokenizer, prompt, top=8, positions=16):
    ids = tokenizer.encode(prompt).ids[:positions]
    assert len(ids) == positions
    rows = []
    for row in logits_of(model, ids):
        values, indices = row.topk(top)
        pairs = [[i, round(v, 6)] for i, v in zip(indices.tolist(), values.tolist())]
        rows.append({"top": pairs, "max_abs": round(row.abs().max().item(), 6)})
    return {"prompt_ids": ids, "positions": rows}


def choice_logprobs(model, tokenizer, prompt, choices):
    alone = tokenizer.encode(prompt).ids
    ids = [tokenizer.encode(prompt + choice).ids for choice in choices]
    shared = min(next((i for i, (a, b) in enumerate(zip(alone, x)) if a != b), len(alone)) for x in ids)
    sums = []
    for x in ids:
        rows = torch.log_softmax(logits_of(model, x).double(), dim=-1)
        sums.append(round(sum(rows[i - 1, x[i]].item() for i in range(shared, len(x))), 7))
    return {"prompt": prompt, "choices": choices, "tokens": [len(x) - shared for x in ids], "logprobs": sums}


def tokenized(tokenizer, text):
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    return {
        "text": text,
        "ids": tokenizer.encode(text).ids,
        "ids_plain": plain,
        "decoded": tokenizer.decode(plain, skip_special_tokens=False),
    }


def lines(entries):
    """A JSON array with one entry a line."""
    return "[\n" + ",\n".join("  " + json.dumps(entry) for entry in entries) + "\n ]"


def main():
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    stories = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    logits = top_logits(model, tokenizer, LOGITS_PROMPT)
    choices = [choice_logprobs(model, tokenizer, *c) for c in CHOICES]
    texts = [tokenized(tokenizer, text) for text in TEXTS]
    (HERE / "golden.json").write_text(
        f'{{\n "greedy": {lines(stories)},\n'
        f' "logits": {{"prompt_ids": {logits["prompt_ids"]},\n'
        f'  "positions": {lines(logits["positions"])}}},\n'
        f' "choices": {lines(choices)},\n'
        f' "tokenizer": {lines(texts)}\n}}\n'
    )
    for story in stories:
        print(f"{story['min_gap']:.4f} {story['stop']} [{story['prompt']}]{story['text']}")


if __name__ == "__main__":
    main()
