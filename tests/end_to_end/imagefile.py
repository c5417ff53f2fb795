# SPDX-License-Identifier: Apache-2.0
"""A second reader and writer of images, made from image/FORMAT.md alone: it shares no line with image/, so that an image
that both agree on is one that the document describes."""
import ctypes
import os
import struct
from pathlib import Path

import numpy as np

MAGIC = b"stele\r\n\x1a"
PAGE, CHUNK, NONE = 4096, 2 << 20, 0xFFFFFFFF
PLAN, TENSORS, TOKENIZER, DEFAULTS, WEIGHTS, DIGESTS, PROVENANCE, TEMPLATES = range(1, 9)
F32, BF16, F16, Q8, Q4, MXFP4 = range(6)
PANELS, VECTOR = 0, 1
EMBED, NORM, LINEAR, ROPE_KV, ATTENTION, LOGITS, ROUTER, EXPERTS = range(8)
TYPES = {"f32": F32, "bf16": BF16, "f16": F16, "q8": Q8, "q4": Q4}
BOOK = np.array([-32, -26, -21, -17, -13, -9, -6, -3, 0, 3, 6, 9, 13, 17, 22, 28], np.int16)  # of q4
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # twice the values of the codes

_xxh = ctypes.CDLL("libxxhash.so.0")


class _Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


_xxh.XXH3_128bits.restype = _Hash128
_xxh.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_xxh.XXH3_64bits.restype = ctypes.c_uint64
_xxh.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def xxh3_128(raw):
    """XXH3-128 in canonical byte order."""
    raw = bytes(raw)
    h = _xxh.XXH3_128bits(raw, len(raw))
    return h.high.to_bytes(8, "big") + h.low.to_bytes(8, "big")


def xxh3_64(raw):
    raw = bytes(raw)
    return _xxh.XXH3_64bits(raw, len(raw))


def chunk_digests(raw):
    return b"".join(xxh3_128(raw[i : i + CHUNK]) for i in range(0, len(raw), CHUNK))


def section_digest(raw):
    return xxh3_128(chunk_digests(raw))


def padded(n, unit):
    return (n + unit - 1) // unit * unit


# ---- the file ----


class Section:
    """`raw`, then zeros up to `length`, which write() leaves as a hole of the file and which have no true digest."""

    def __init__(self, kind, raw, offset=None, digest=None, length=None):
        self.kind, self.raw, self.offset, self.digest, self.length = kind, bytes(raw), offset, digest, length


class ImageFile:
    """Header and sections. write() makes everything that follows from them: offsets, digests, identity, check."""

    def __init__(self, sections, version=1, numerics=1, reserved=0):
        self.sections, self.version, self.numerics, self.reserved = sections, version, numerics, reserved
        self.identity = self.check = self.file_bytes = None

    @classmethod
    def read(cls, path):
        raw = Path(path).read_bytes()
        assert raw[:8] == MAGIC, "magic"
        version, numerics = struct.unpack_from("<II", raw, 8)
        check, file_bytes, count, reserved = struct.unpack_from("<QQII", raw, 32)
        sections = []
        for i in range(count):
            number, kind, offset, length = struct.unpack_from("<IIQQ", raw, PAGE + 40 * i)
            assert number == i, "section id"
            digest = raw[PAGE + 40 * i + 24 : PAGE + 40 * i + 40]
            sections.append(Section(kind, raw[offset : offset + length], offset, digest))
        image = cls(sections, version, numerics, reserved)
        image.identity, image.check, image.file_bytes, image.raw = raw[16:32], check, file_bytes, raw
        return image

    def section(self, kind):
        return next((s for s in self.sections if s.kind == kind), None)

    def header(self, identity, check, file_bytes, count):
        fields = struct.pack("<8sII16sQQII", MAGIC, self.version, self.numerics, identity, check, file_bytes, count,
                             self.reserved)  # fmt: skip
        return fields.ljust(PAGE, b"\0")

    def parts(self):
        """[(offset, bytes)] of the file, and its length. Sections keep the offset and digest that a test gave them."""
        at, end, entries, parts = 2 * PAGE, 2 * PAGE, [], []
        for i, s in enumerate(self.sections):
            size = len(s.raw) if s.length is None else s.length
            at = padded(at, 64 if s.kind != WEIGHTS else CHUNK if size >= 64 << 20 else PAGE)
            offset = s.offset if s.offset is not None else at
            digest = s.digest if s.digest is not None else section_digest(s.raw)
            entries.append((s.kind, struct.pack("<IIQQ16s", i, s.kind, offset, size, digest)))
            parts.append((offset, s.raw))
            at = offset + size
            end = max(end, at)
        length = end
        bare = self.header(bytes(16), 0, 0, 0)
        identity = xxh3_128(bare + b"".join(e for kind, e in entries if kind != PROVENANCE))
        table = b"".join(e for _, e in entries).ljust(PAGE, b"\0")
        check = xxh3_64(self.header(identity, 0, length, len(entries)) + table)
        return parts + [(0, self.header(identity, check, length, len(entries)) + table)], length

    def pack(self):
        """The bytes of the file."""
        parts, length = self.parts()
        raw = bytearray(length)
        for offset, part in parts:
            raw[offset : offset + len(part)] = part
        return bytes(raw)

    def write(self, path):
        """The file, with holes where sections are longer than their bytes."""
        parts, length = self.parts()
        with open(path, "wb") as f:
            f.truncate(length)
            for offset, part in parts:
                f.seek(offset)
                f.write(part)
            f.flush()
            os.fsync(f.fileno())

    def free(self):
        """Forgets offsets and digests, so that pack() makes them anew."""
        for s in self.sections:
            s.offset = s.digest = None
        return self


# ---- weights ----


def panel_floats(w, kind):
    """A matrix [rows][k] as panels of 16 rows: f32 and f16 [k][16], bf16 [k/2][16][2]; k padded to 32."""
    rows, k = w.shape
    full = np.zeros((padded(rows, 16), padded(k, 32)), "<f4")
    full[:rows, :k] = w
    panels = full.reshape(-1, 16, full.shape[1])
    if kind == F32:
        return panels.transpose(0, 2, 1).astype("<f4").tobytes()
    if kind == F16:
        return panels.transpose(0, 2, 1).astype("<f2").tobytes()
    bits = np.ascontiguousarray(panels).view("<u4")
    bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return bits.reshape(-1, 16, full.shape[1] // 2, 2).transpose(0, 2, 1, 3).tobytes()


def unpanel_floats(raw, kind, rows, k):
    n, kk = padded(rows, 16) // 16, padded(k, 32)
    if kind == BF16:
        bits = np.frombuffer(raw, "<u2").reshape(n, kk // 2, 16, 2).transpose(0, 2, 1, 3).astype("<u4") << 16
        full = np.ascontiguousarray(bits).view("<f4").reshape(n * 16, kk)
    else:
        full = np.frombuffer(raw, "<f4" if kind == F32 else "<f2").reshape(n, kk, 16).transpose(0, 2, 1)
        full = full.reshape(n * 16, kk).astype("<f4")
    return full  # with its padding


def scale_columns(kind):
    return 16 if kind == Q4 else 32


def unpanel_groups(raw, kind, rows, k):
    """Integers [rows][k] and scales [rows][k / scale_columns] of a quantised matrix, padding included.

    A panel runs along k in blocks of 256 (8 groups of 32; the last block as many as are left): the block's scales, [..][16],
    padded to 64 bytes, then k-lines of 64 bytes. q8: binary16, [k/4][16][4], w + 128. q4: int8, a scale for 16 columns; two
    lines to one, k-line 2i in the low and 2i + 1 in the high four bits, codes of the book; the panel's head before its
    blocks is [16] binary16, padded to 64 bytes, and multiplies the scales. mxfp4: as q4 without a head, but scales are
    E8M0 bytes for 32 columns, and what comes back are codes and these bytes."""
    panels, columns, per = padded(rows, 16) // 16, padded(k, 32), scale_columns(kind)
    q = np.zeros((panels * 16, columns), np.int16)
    scales = np.zeros((panels * 16, columns // per), np.float64)
    at = 0
    for p in range(panels):
        heads = np.ones((16, 1))
        if kind == Q4:
            heads = np.frombuffer(raw, "<f2", 16, at).astype(np.float64).reshape(16, 1)
            assert not any(raw[at + 32 : at + 64])
            at += 64
        for first in range(0, columns, 256):
            n = min(256, columns - first)
            s = np.frombuffer(raw, {Q8: "<f2", Q4: "i1", MXFP4: "u1"}[kind], n // per * 16, at).reshape(-1, 16).T
            at += padded(s.nbytes, 64)
            lines = n // (4 if kind == Q8 else 8)
            b = np.frombuffer(raw, "u1", lines * 64, at).reshape(lines, 16, 4).astype(np.int16)
            at += lines * 64
            if kind == Q8:
                b = b - 128
            else:
                b = np.stack([b & 15, b >> 4], axis=1).reshape(lines * 2, 16, 4)
                b = BOOK[b] if kind == Q4 else b
            q[p * 16 : p * 16 + 16, first : first + n] = b.transpose(1, 0, 2).reshape(16, n)
            scales[p * 16 : p * 16 + 16, first // per : (first + n) // per] = s * heads
    assert at == len(raw), (at, len(raw))
    return q, scales


def panel_groups(q, scales, kind, heads=None):
    """Integers [rows][k] (k a multiple of 32) and scales as the panels that unpanel_groups reads; of q4 codes, int8 scales
    and heads [rows]."""
    rows, k = q.shape
    per = scale_columns(kind)
    q = np.pad(q, [(0, -rows % 16), (0, 0)], constant_values=8 if kind == Q4 else 0).astype(np.int16)
    scales = np.pad(scales, [(0, -rows % 16), (0, 0)]).astype({Q8: "<f2", Q4: "i1", MXFP4: "u1"}[kind])
    raw = bytearray()
    for p in range(0, len(q), 16):
        if kind == Q4:
            raw += np.pad(heads, (0, -rows % 16)).astype("<f2")[p : p + 16].tobytes().ljust(64, b"\0")
        for first in range(0, k, 256):
            n = min(256, k - first)
            s = scales[p : p + 16, first // per : (first + n) // per].T.tobytes()
            lines = q[p : p + 16, first : first + n].reshape(16, n // 4, 4).transpose(1, 0, 2)
            lines = lines + 128 if kind == Q8 else lines[0::2] | lines[1::2] << 4
            raw += s.ljust(padded(len(s), 64), b"\0") + lines.astype("u1").tobytes()
    return bytes(raw)


# ---- tables ----


class Tensor:
    def __init__(self, name, kind, layout, rows, columns, offset, length, stride=0, count=1, reserved=0):
        self.name, self.kind, self.layout, self.rows, self.columns = name, kind, layout, rows, columns
        self.offset, self.length, self.stride, self.count, self.reserved = offset, length, stride, count, reserved

    def pack(self):
        return struct.pack("<72sIIQQQQQII", self.name.encode(), self.kind, self.layout, self.rows, self.columns,
                           self.offset, self.length, self.stride, self.count, self.reserved)  # fmt: skip


def tensors(image):
    """{name: Tensor} of the section "tensors"."""
    raw, found = image.section(TENSORS).raw, {}
    for at in range(0, len(raw), 128):
        name, *rest = struct.unpack_from("<72sIIQQQQQII", raw, at)
        t = Tensor(name.split(b"\0")[0].decode(), *rest)
        found[t.name] = t
    return found


def tensor_bytes(image, t, expert=0):
    at = t.offset + t.stride * expert
    return image.section(WEIGHTS).raw[at : at + t.length]


class Builder:
    """An image from nothing: slots, tensors and ops are added and numbered as they come."""

    def __init__(self, vocabulary, context):
        self.vocabulary, self.context = vocabulary, context
        self.ops, self.slots, self.states, self.ropes, self.constants = [], [], [], [], []
        self.table, self.weights, self.numbers = [], bytearray(), 0
        self.stops = []

    def slot(self, width):
        width = padded(width, 16)
        stride = width + 16 if width % 1024 == 0 else width
        self.slots.append(struct.pack("<IIII", self.numbers, stride, width, 0))
        self.numbers += stride
        return len(self.slots) - 1

    def _tensor(self, name, kind, layout, rows, columns, raw):
        self.weights += bytes(-len(self.weights) % 64)
        self.table.append(Tensor(name, kind, layout, rows, columns, len(self.weights), len(raw)))
        self.weights += raw
        return len(self.table) - 1

    def matrix(self, name, w, kind=F32):
        return self._tensor(name, kind, PANELS, *w.shape, panel_floats(w, kind))

    def quantised(self, name, q, scales, kind, heads=None):
        return self._tensor(name, kind, PANELS, *q.shape, panel_groups(q, scales, kind, heads))

    def banks(self, first, second, kind):
        """Two banks of [(q, scales), …], an expert after the other, each on pages of its own."""
        raws = [[panel_groups(q, s, kind) for q, s in bank] for bank in (first, second)]
        stride = padded(len(raws[0][0]) + len(raws[1][0]), PAGE)
        self.weights += bytes(-len(self.weights) % PAGE)
        for i, bank in enumerate((first, second)):
            rows, k = bank[0][0].shape
            offset = len(self.weights) + (len(raws[0][0]) if i else 0)
            self.table.append(Tensor(f"bank{i}", kind, PANELS, rows, k, offset, len(raws[i][0]), stride, len(bank)))
        for a, b in zip(*raws):
            self.weights += (a + b).ljust(stride, b"\0")
        return len(self.table) - 2

    def vector(self, name, v):
        return self._tensor(name, F32, VECTOR, 1, len(v), np.asarray(v, "<f4").tobytes())

    def kv(self, heads, head_dim, window=0):
        numbers = heads * (head_dim + padded(head_dim, 16))
        self.states.append(struct.pack("<IIIIIIQ", 1, heads, head_dim, window, numbers, 0, 0))
        return len(self.states) - 1

    def rope(self, frequencies, magnitude=1.0):
        self.ropes.append(struct.pack("<IIfIIfII", len(self.constants), len(frequencies), magnitude, 0, 0, 0.0, 0, 0))
        self.constants += [float(f) for f in frequencies]
        return len(self.ropes) - 1

    def op(self, code, *args):
        words = [struct.pack("<f", a) if isinstance(a, float) else struct.pack("<I", a) for a in args]
        self.ops.append((struct.pack("<I", code) + b"".join(words)).ljust(64, b"\0"))

    def norm(self, x, out, weight, epsilon):
        self.op(NORM, x, out, 0, weight, float(epsilon), NONE)

    def linear(self, x, out, weight, bias=NONE, residual=NONE, activation=0, scale=1.0):
        self.op(LINEAR, x, out, weight, bias, residual, activation, scale)

    def image(self):
        counts = (len(self.ops), len(self.slots), len(self.states), len(self.ropes), len(self.constants))
        plan = struct.pack("<8I", *counts, self.vocabulary, self.context, self.numbers)
        plan += b"".join(self.ops + self.slots + self.states + self.ropes)
        plan += np.asarray(self.constants, "<f4").tobytes()
        defaults = struct.pack("<ffffIIII", 0, 0, 0, 0, 0, 0, len(self.stops), 0)
        defaults += struct.pack(f"<{len(self.stops)}I", *self.stops)
        weights = bytes(self.weights) + bytes(-len(self.weights) % 64)
        return ImageFile([
            Section(PLAN, plan), Section(TENSORS, b"".join(t.pack() for t in self.table)), Section(DEFAULTS, defaults),
            Section(WEIGHTS, weights), Section(DIGESTS, chunk_digests(weights)), Section(PROVENANCE, b"{}"),
        ])  # fmt: skip
