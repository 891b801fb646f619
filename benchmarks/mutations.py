"""Ways to spoil a valid input, by the dice of a `random.Random`: the same dice, the same spoilt input."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

Spoil = Callable[[bytes, random.Random], bytes]

#: What a parser should expect of a stranger where it wanted something else.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 65_536, 2**31, 2**53, 2**63 - 1, -(2**63), 10**30, 0.5, -1.5, 1e-300, 1e308,
    math.nan, math.inf, -math.inf, "", "x", "1", "\x00", "nan", "../../etc/passwd", "/etc/passwd", "µ" * 300, [], {},
    [[]], [1, 2], [None] * 3, ["x", "y"], [64, 64], [-1, 10**12], {"a": 1}, {"": {}}, {"start": 0, "stop": 10**12},
)  # fmt: skip
# Not values but spellings: put in as words, and replaced in the text.
_SPELLINGS = {
    "@@deep@@": "[" * 50_000 + "]" * 50_000, "@@long@@": "9" * 6_000, "@@big@@": "1e999", "@@nan@@": "NaN",
}  # fmt: skip
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def spoil_bytes(data: bytes, rng: random.Random, donor: bytes = b"") -> bytes:
    """Flip bits, cut, double, splice with `donor`, or write extreme numbers, once to four times."""
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(spoilt) + 1), rng.choice((1, 2, 4, 8, 64, 512))
        match rng.randrange(7):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    if spoilt:
                        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
            case 1:
                del spoilt[at:]
            case 2:
                del spoilt[at : at + length]
            case 3:
                spoilt[at:at] = spoilt[at : at + length]
            case 4:
                start = rng.randrange(len(donor) + 1)
                spoilt[at : at + length] = donor[start : start + length]
            case 5:
                number = struct.pack("<Q", rng.choice(_EXTREMES))[: rng.choice((1, 2, 4, 8))]
                spoilt[at : at + len(number)] = number
            case _:
                spoilt[at : at + length] = rng.randbytes(min(length, 64))
    return bytes(spoilt)


def spoil_tree(value: Any, rng: random.Random, edits: int = 0) -> Any:
    """Edit what JSON can say: replace, remove, double, wrap, nest, or bring in a part from elsewhere."""
    spoilt = copy.deepcopy(value)
    for _ in range(edits or rng.randint(1, 3)):
        places = list(_places(spoilt))
        if not places:
            return rng.choice(NASTY)
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1:
                other, name = rng.choice(places)
                holder[key] = copy.deepcopy(other[name])
            case 2:
                holder[key] = [holder[key]]
            case 3:
                holder[key] = rng.choice((*_SPELLINGS,))
            case 4 if isinstance(holder, dict):
                holder[rng.choice(("extra", "", "uid", "schema_version", 'a"b'))] = rng.choice(NASTY)
            case 5 if isinstance(holder[key], list):
                holder[key] = holder[key] * rng.choice((0, 2, 300))
            case _:
                holder[key] = copy.deepcopy(rng.choice(NASTY))
    return spoilt


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def spelled(text: str) -> bytes:
    """Put what no serialiser would write where `spoil_tree` asked for it."""
    for word, spelling in _SPELLINGS.items():
        text = text.replace(f'"{word}"', spelling)
    return text.encode("utf-8", "surrogatepass")


def spoil_json(value: Any, rng: random.Random) -> bytes:
    """Spoil a JSON document, as a tree or as text."""
    if rng.random() < 0.25:
        return spoil_bytes(json.dumps(value).encode(), rng, json.dumps(NASTY).encode())
    return spelled(json.dumps(spoil_tree(value, rng)))


def spoil_toml(value: Any, rng: random.Random) -> bytes:
    """Spoil a TOML document given as its values; a table may come as an inline one."""
    text = "\n".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items())
    if rng.random() < 0.25:
        return spoil_bytes(text.encode(), rng, b'[a]\n[[a.b]]\nc = """\n= 1979-05-27T07:32:00Z')
    spoilt = spoil_tree(value, rng)
    return spelled("\n".join(f"{json.dumps(str(key))} = {_inline(item)}" for key, item in spoilt.items()))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return '""' if value is None else json.dumps(value)


def spoil_zip(data: bytes, rng: random.Random, spoilers: Mapping[str, Spoil]) -> bytes:
    """Spoil a zip: as bytes, or what is in it with all sums right.

    Parameters
    ----------
    data : bytes
        A valid archive.
    rng : random.Random
    spoilers : mapping
        How to spoil entries whose name ends so; all others are spoilt as bytes.
    """
    if rng.random() < 0.25:
        return spoil_bytes(data, rng, data[::-1])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = rng.randrange(len(entries))
    out = io.BytesIO()
    way = rng.randrange(8)
    with zipfile.ZipFile(out, "w") as archive:
        for number, (name, content) in enumerate(entries):
            info = zipfile.ZipInfo(name)
            packing = (zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,) * 9 + (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
            info.compress_type = rng.choice(packing)
            if number == chosen:
                suffix = next((end for end in spoilers if name.endswith(end)), None)
                match way:
                    case 0:
                        continue
                    case 1:
                        info.filename = rng.choice(("../../etc/passwd", "/etc/passwd", "a/b/c/d", "", name + "\x00x"))
                    case 2:
                        info.external_attr = 0o120777 << 16  # a link
                    case 3:
                        content = bytes(rng.choice((10**4, 10**6)))
                    case _:
                        spoil = spoilers[suffix] if suffix else spoil_bytes
                        content = spoil(content, rng)
            archive.writestr(info, content)
            if number == chosen and way == 1 and rng.random() < 0.3:
                archive.writestr(zipfile.ZipInfo(name), content)
    packed = out.getvalue()
    return _lying(packed, rng) if rng.random() < 0.15 else packed


def _lying(packed: bytes, rng: random.Random) -> bytes:
    """Change sizes, flags or methods in the directory alone."""
    spoilt = bytearray(packed)
    at = packed.rfind(b"PK\x01\x02")
    field, width = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)))
    spoilt[at + field : at + field + width] = struct.pack("<Q", rng.choice(_EXTREMES))[:width]
    return bytes(spoilt)


def spoil_npy(data: bytes, rng: random.Random) -> bytes:
    """Spoil a ``.npy``: its header's shape and type, or its bytes."""
    if rng.random() < 0.4:
        return spoil_bytes(data, rng)
    size = int.from_bytes(data[8:10], "little")
    shape = rng.choice(((), (0,), (10**12,), (1 << 62, 4), (-1,), (2, 2, 2), (1,) * 40, ("x",), [3], None, 10**9))
    kind = rng.choice(("<c8", "<c16", "|O", "<U4", "<f4", "<M8[s]", "<c32", "|V8", "nonsense", [("a", "<c8")], "<U0"))
    fields = {"descr": kind, "fortran_order": rng.choice((True, False, 0)), "shape": shape}
    if rng.random() < 0.5:
        fields = {**_header(data[10 : 10 + size]), rng.choice(list(fields)): rng.choice((kind, shape))}
    text = repr(fields) if rng.random() < 0.9 else "(" * rng.choice((90, 3_000)) + repr(fields)
    header = text.encode() + b"\n"
    return data[:8] + struct.pack("<H", min(len(header), 65_535)) + header + data[10 + size :]


def _header(text: bytes) -> dict[str, Any]:
    import ast

    return dict(ast.literal_eval(text.decode()))


def spoil_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Spoil safetensors: its header's names, types, shapes and offsets, or its bytes."""
    if rng.random() < 0.3:
        return spoil_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = spelled(json.dumps(spoil_tree(header, rng)))
    length = len(text) if rng.random() < 0.9 else rng.choice(_EXTREMES)
    return struct.pack("<Q", length) + text + data[8 + size :]
