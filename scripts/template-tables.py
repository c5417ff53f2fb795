#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes runtime/value_unicode.inc: what Python 3.11 (Unicode 14) calls printable, and the case mappings that make more
than one character. Run it with the Python whose answers are wanted: scripts/template-tables.py > runtime/value_unicode.inc"""
import sys
import unicodedata


def ranges(wanted):
    first = None
    for c in range(0x110001):
        inside = c < 0x110000 and wanted(c)
        if inside and first is None:
            first = c
        elif not inside and first is not None:
            yield first, c - 1
            first = None


def lines(items, width=118):
    line = ""
    for item in items:
        if len(line) + len(item) + 1 > width:
            print(line)
            line = ""
        line += (" " if line else "") + item
    print(line)


def code_points(text):
    return "{" + ", ".join(f"0x{ord(c):x}" for c in text) + "}"


print("/* SPDX-License-Identifier: Apache-2.0 */")
print(f"/* By scripts/template-tables.py, Unicode {unicodedata.unidata_version}. */")
print("/* clang-format off */")
print("static const struct { uint32_t first, last; } unprintable[] = {")
lines(f"{{0x{a:x}, 0x{b:x}}}," for a, b in ranges(lambda c: not chr(c).isprintable()))
print("};")
for name, change in (("long_upper", str.upper), ("long_title", str.title)):
    print(f"static const struct {{ uint32_t from, to[3]; }} {name}[] = {{")
    lines(f"{{0x{c:x}, {code_points(change(chr(c)))}}}," for c in range(0x110000) if len(change(chr(c))) > 1)
    print("};")
print("/* clang-format on */")
