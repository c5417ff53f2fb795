#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How likely a model finds each of some texts behind a prompt, as `stele choose --raw --json` says.

    score.py model.stele "The sky is" " blue" " green"
"""
import ctypes
import sys
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_double, c_int, c_size_t, c_uint, c_uint32, c_uint64
from ctypes import c_void_p

# ---- what is used of stele.h ----


class Error(Structure):
    _fields_ = [("status", c_int), ("text", c_char * 1024)]


class Options(Structure):
    _fields_ = [("threads", c_uint32), ("context", c_uint32), ("sequences", c_uint32), ("chunk", c_uint32), ("kv", c_int),
                ("kernels", c_char_p), ("reserved", c_uint64 * 6)]  # fmt: skip


class Branch(Structure):
    _fields_ = [("ids", POINTER(c_uint32)), ("count", c_size_t), ("logprob", c_double)]


class Item(Structure):
    _fields_ = [("prompt", POINTER(c_uint32)), ("prompt_count", c_size_t), ("branches", POINTER(Branch)),
                ("branch_count", c_size_t)]  # fmt: skip


library = ctypes.CDLL("libstele.so.1")
libc = ctypes.CDLL(None)
libc.free.argtypes = [c_void_p]


def function(name, *types):
    """A function of the library that can fail: it then ends the program with the sentence."""
    f = getattr(library, name)
    f.argtypes = [*types, POINTER(Error)]

    def call(*args):
        err = Error()
        if f(*args, byref(err)):
            print(f"score.py: {err.text.decode(errors='replace')}", file=sys.stderr)
            sys.exit(err.status)

    return call


image_open = function("stele_image_open", POINTER(c_void_p), c_char_p)
session_open = function("stele_session_open", POINTER(c_void_p), c_void_p, POINTER(Options))
stele_tokenize = function("stele_tokenize", c_void_p, c_char_p, c_size_t, c_uint, POINTER(POINTER(c_uint32)),
                          POINTER(c_size_t))  # fmt: skip
score = function("stele_score", c_void_p, POINTER(Item), c_size_t)

# ---- the program ----


def tokenize(image, text):
    ids, count, text = POINTER(c_uint32)(), c_size_t(), text.encode()
    stele_tokenize(image, text, len(text), 0, byref(ids), byref(count))
    result = ids[: count.value]
    libc.free(ids)
    return result


def array(ids):
    return (c_uint32 * len(ids))(*ids)


def common(a, b):
    """How many ids two lists begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def main(path, prompt, *choices):
    image, session = c_void_p(), c_void_p()
    image_open(byref(image), path.encode())
    session_open(byref(session), image, byref(Options(sequences=1 + 2 * len(choices))))

    # A token can begin in the prompt and end in the choice: what is scored begins where the ids part.
    alone, whole = tokenize(image, prompt), [tokenize(image, prompt + choice) for choice in choices]
    shared = min(common(alone, ids) for ids in whole)
    branches = (Branch * len(choices))(*[Branch(array(ids[shared:]), len(ids) - shared) for ids in whole])
    item = Item(array(alone), shared, branches, len(choices))
    score(session, byref(item), 1)

    for choice, branch in zip(choices, branches):
        print(f"{branch.logprob:.9g}\t{choice}")
    library.stele_session_close(session)
    library.stele_image_close(image)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
