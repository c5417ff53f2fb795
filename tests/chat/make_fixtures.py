#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes fixtures/*/cases.json and fixtures/snippets.json: what Jinja2 (3.1.6) renders, called as transformers 5.24 calls
it. Needs only Jinja2; the steps around the template are those of shared/chat/FEATURES.md."""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent / "fixtures"
NOW = datetime.datetime(2026, 1, 15, 10, 30)
TAG = "CONTINUE_FINAL_MESSAGE_TAG "
REASONING = ("reasoning_content", "thinking", "reasoning")


class Refused(Exception):
    pass


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def prepared(message):
    message = {k: v for k, v in message.items() if v is not None}
    reasoning = next((message[k] for k in REASONING if k in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def apply(source, special, messages, tools=None, kwargs={}):
    kwargs = dict(kwargs)
    field = kwargs.pop("continue_final_message", False)
    prompt = kwargs.pop("add_generation_prompt", False)
    documents = kwargs.pop("documents", None)
    if not messages or (field and prompt):
        raise Refused("no messages, or to be continued and prompted")
    chat = [prepared(m) for m in json.loads(json.dumps(messages))]
    if field:
        field = field if isinstance(field, str) else "content"
        final = chat[-1].get(field)
        names = [n for n in REASONING if chat[-1].get(n) == final] if field in REASONING else [field]
        if final is None or not any(n in source for n in names):
            raise Refused("nothing to continue")
        if isinstance(final, list):
            part = next((p for p in reversed(final) if "text" in p), None)
            if part is None:
                raise Refused("no text to continue")
            final = part["text"]
            part["text"] += TAG
        else:
            for name in names:
                chat[-1][name] += TAG
    text = environment().from_string(source).render(
        {**special, **kwargs}, messages=chat, tools=tools, documents=documents, add_generation_prompt=prompt)
    if field:
        if final.strip() not in text or TAG.strip() not in text:
            raise Refused("the text does not come")
        at = text.rindex(TAG.strip())
        text = text[:at] if text[at:at + len(TAG)] == TAG else text[:at].rstrip()
    return text


def outcome(render):
    kinds = [(Refused, "refused"), (jinja2.exceptions.SecurityError, "security"),
             (jinja2.exceptions.UndefinedError, "undefined"), (jinja2.exceptions.TemplateRuntimeError, "runtime"),
             ((jinja2.exceptions.TemplateSyntaxError, SyntaxError), "syntax"),
             (jinja2.exceptions.TemplateError, "raised"), (TypeError, "type"), (Exception, "value")]
    try:
        return {"rendered": render()}
    except Exception as error:
        return {"error": str(error), "kind": next(kind for types, kind in kinds if isinstance(error, types))}


def write(path, rows):
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(path, len(rows))


USER = {"role": "user", "content": " Why is the sky <|blue|>? é\n"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nScattering.", "reasoning": "short waves"}
SYSTEM = {"role": "system", "content": "Be <b>kind</b>."}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {
    "type": "object", "required": ["q"], "properties": {"q": {"type": " string "}, "n": {"type": ["integer", "null"]}}}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "look_up", "arguments": {"q": "it's", "n": 12345678901234567890123}}}]}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}

CASES = [
    ("a question", [USER], None, {"add_generation_prompt": True}),
    ("a conversation", [SYSTEM, USER, ANSWER, USER], None, {"add_generation_prompt": True}),
    ("thinking is kept", [USER, ANSWER], None, {"keep_thinking": True}),
    ("tools", [SYSTEM, USER, CALL, {"role": "tool", "content": "1.5"}], [TOOL, TOOL], {"add_generation_prompt": True}),
    ("no tools", [USER], [], {}),
    ("documents", [USER], None, {"documents": [{"title": "A", "text": "x"}, {"title": "B", "text": "y"}]}),
    ("parts", [PARTS], None, {}),
    ("no part with text", [{"role": "user", "content": [{"type": "image"}]}], None, {}),
    ("two questions", [USER, USER], None, {}),
    ("no messages", [], None, {}),
    ("prefill", [USER, {"role": "assistant", "content": "It is"}], None, {"continue_final_message": True}),
    ("prefill with a blank", [USER, {"role": "assistant", "content": "It is "}], None, {"continue_final_message": True}),
    ("prefill of parts", [PARTS], None, {"continue_final_message": True}),
    ("prefill of reasoning", [USER, {"role": "assistant", "content": "", "thinking": "so"}], None,
     {"continue_final_message": "reasoning_content", "keep_thinking": True}),
    ("prefill of what is dropped", [USER, {"role": "assistant", "content": "x", "thinking": "so"}], None,
     {"continue_final_message": "thinking"}),
    ("prefill of an unknown field", [USER, {"role": "assistant", "content": "x", "colour": "so"}], None,
     {"continue_final_message": "colour"}),
    ("prefill and prompt", [USER, ANSWER], None, {"continue_final_message": True, "add_generation_prompt": True}),
    ("a number for content", [{"role": "user", "content": 5}], None, {}),
    ("no role", [{"content": "x"}], None, {}),
    ("a token that is an argument", [USER], None, {"bos_token": "[B]"}),
]

SNIPPETS = [
    ("{% for x in xs %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% else %}e{% endfor %}", {"xs": [1, 2, 3]}),
    ("{% for x in xs %}{% continue %}{% else %}e{% endfor %}", {"xs": [1]}),
    ("{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}[{{ y }}]", {}),
    ("{% set ns.a = missing.b %}", {}),
    ("{{ missing|int }}", {}),
    ("{{ missing|abs }}", {}),
    ("{{ 1 < 2 < 1 }}{{ 3 > 2 >= 2 != 1 }}{{ 2 in [2] in [[2]] }}", {}),
    ("{{ 'a' if false else 'b' if false else 'c' if true }}", {}),
    ("{{ (1 if x else 2) + (3 if not x else 4 if x else 5) }}", {"x": 0}),
    ("{{ '\\é\\x41\\q\\101' }}", {}),
    ("{{ xs|map('indent', first=true, width=2)|join }}", {"xs": ["a\nb"]}),
    ("{{ xs|map(attribute='a.b.0')|list }}{{ xs|sort(attribute='n')|map(attribute='n')|list }}",
     {"xs": [{"a": {"b": [7]}, "n": "b"}, {"a": {"b": [8]}, "n": "A"}]}),
    ("{% macro f(a, b=a) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, c=4) }}{{ f(b=1) }}", {}),
    ("{% macro f() %}<{{ caller(1, 2) }}>{% endmacro %}{% call(x, y=3) f() %}{{ x }}{{ y }}{% endcall %}", {}),
    ("{{ x }}{{ -x }}{{ x == x + 0.0 }}{{ [x] }}", {"x": 12345678901234567890}),
    ("{{ 1e16 }} {{ 123456789012345.6 }} {{ 1.5e-7 }} {{ 100.0 }} {{ 2.5 // 1 }} {{ -7 % 3 }} {{ -7 // 2 }} {{ 2 ** 62 * 4 }}", {}),
    ("{{ s.upper() }}{{ s|title }}{{ s.title() }}{{ s|capitalize }}", {"s": "straße ﬁx ΑΣ o'neil"}),
    ("{{ 'ΑΣ ΣΑΣ'.lower() }}", {}),
    ("{{ s.split(none, 1) }}{{ s.rsplit(',', 1) }}{{ s.partition(',') }}{{ s.splitlines() }}", {"s": " a b,c\r\nd,e\u2028f "}),
    ("a {%- raw -%} {{ x }} {% endraw -%} \n b", {}),
    ("{#- c -#}  \n  {%+ if true %}x{% endif +%}\ny", {}),
    ("\n\n  {% if true -%}\n  x\n  {%- endif %}\n\n", {}),
    ("{{ {'b': 1, 'a': [1.0, none, {}]}|tojson(indent=2, sort_keys=true) }}", {}),
    ("{{ xs|tojson(ensure_ascii=true, separators=(',', ':')) }}", {"xs": ["é\u2028🎉\u007f", True]}),
    ("{{ g|list }}{{ g|list }}{% set g = [1]|map('string') %}{{ g|list }}{{ g|list }}", {"g": []}),
    ("{{ ('<' ~ 'a')|safe + '<' }}{{ '<' + ('b'|safe) }}{{ ['<'|safe] }}", {}),
    ("{{ d.items is callable }}{{ d['items'] }}{{ d.pop is defined }}", {"d": {"items": 1}}),
    ("{{ loop is defined }}{% for x in 'ab' %}{{ loop.index }}{% for y in 'c' %}{{ loop.index }}{% endfor %}{{ loop.last }}{% endfor %}", {}),
    ("{% for x in xs if x is string %}{{ loop.previtem }}|{{ x }}|{{ loop.length }};{% endfor %}", {"xs": [1, "a", 2, "b"]}),
    ("{{ x|map('upper')|list }}{{ x|selectattr('a')|list }}{{ x|reject|list }}{% set y = 5|items %}", {"x": None}),
    ("{% set ns = namespace(stop=false) %}{% for x in xs if not ns.stop %}{{ x }}{% set ns.stop = x == 2 %}{% endfor %}",
     {"xs": [1, 2, 3]}),
    ("{% for x in xs if x > 1 %}{% for y in xs if y != x %}{{ x }}{{ y }},{% else %}e{% endfor %}{% else %}E{% endfor %}",
     {"xs": [1, 2, 3]}),
    ("{% for x in xs if x > 5 %}{{ x }}{% else %}E{% endfor %}", {"xs": [1, 2, 3]}),
    ("{{ 5|map('upper')|list }}", {}),
    ("{{ [1]|items|list }}", {}),
    ("{% for i in [1] %}{{ x }}{% endfor %}{% set x = 2 %}{{ x }}", {"x": 1}),
    ("{% for i in [1] %}{{ x }}{% endfor %}{% if i %}{% set x = 2 %}{% endif %}{{ x }}", {"x": 1}),
    ("{{ x }}{% for i in [1] %}{{ x }}{% endfor %}{% set x = 2 %}{{ x }}", {"x": 1}),
    ("{% macro f(a=x) %}{{ x }}{{ a }}{% endmacro %}{{ f() }}{% set x = x %}{{ f() }}", {"x": 1}),
    ("{% macro f(a=x) %}{{ x }}{{ a }}{% endmacro %}{{ f() }}{% set x = 2 %}{{ f() }}", {"x": 1}),
    ("{% if 1 %}{% set a = 1 %}{% endif %}{{ a }}{% for i in [1] %}{% set a = 2 %}{% endfor %}{{ a }}", {}),
    ("{{ 0.0 // -2.5 }} {{ -0.0 // 2.5 }} {{ 9007199254740991.0 // 1 }} {{ 7.5 // -2 }} {{ 1.0 // 0.1 }} {{ -0.3 // 0.1 }} {{ 1e300 // 3 }}", {}),
]


def main():
    for folder in sorted(HERE.iterdir()):
        if not folder.is_dir():
            continue
        source = (folder / "chat_template.jinja").read_text()
        special = json.loads((folder / "special.json").read_text())["template_sees"]
        rows = []
        for name, messages, tools, kwargs in CASES:
            row = {"name": name, "messages": messages, "kwargs": kwargs}
            if tools is not None:
                row["tools"] = tools
            rows.append({**row, **outcome(lambda: apply(source, special, messages, tools, kwargs))})
        write(folder / "cases.json", rows)
    rows = [{"name": str(i + 1), "template": source, "variables": variables, "core": True,
             **outcome(lambda: environment().from_string(source).render(variables))}
            for i, (source, variables) in enumerate(SNIPPETS)]
    write(HERE / "snippets.json", rows)


if __name__ == "__main__":
    main()
