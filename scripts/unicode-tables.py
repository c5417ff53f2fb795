#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes convert/unicode.inc: the general category and age of every character of Unicode 16, in runs.

    python3 -m venv V && V/bin/pip install unicodedataplus==16.0.0.post1
    V/bin/python scripts/unicode-tables.py > convert/unicode.inc

The package carries the Unicode Character Database: DerivedGeneralCategory.txt, DerivedAge.txt and Scripts.txt.
"""
import itertools
import sys

import unicodedataplus as ucd

VERSION = "16.0.0"


def age(c):
    """0: there in Unicode 8 (the library's punctuation), 1: new in 9 (its normal forms), 2: younger or unassigned."""
    since = ucd.age(c)
    if since in ("NA", "Unassigned", None):
        return 2
    major = int(since.split(".")[0])
    return 0 if major <= 8 else 1 if major == 9 else 2


def properties(code):
    c = chr(code)
    return ucd.category(c), age(c), ucd.script(c) == "Han"


def main():
    if ucd.unidata_version != VERSION:
        sys.exit(f"unicodedataplus has Unicode {ucd.unidata_version}, not {VERSION}")
    print("/* SPDX-License-Identifier: Apache-2.0 */")
    print(f"/* Unicode {VERSION}: first character of each run, general category, age, Han. By scripts/unicode-tables.py. */")
    row = []
    for (category, since, han), run in itertools.groupby(range(0x110000), properties):
        row.append(f"{{0x{next(run):x}, CATEGORY_{category.upper()}, {since}, {int(han)}}},")
        if len(row) == 4:
            print(" ".join(row))
            row = []
    if row:
        print(" ".join(row))


if __name__ == "__main__":
    main()
