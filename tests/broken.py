"""Broken input by the seed: images, JSON and binary data that are wrong in the ways in which real and hostile clients are.

Everything is made from something good by small damage, so that each check of the service is reached and not only the first.
"""

import copy
import gzip
import io
import json
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

Random = np.random.Generator

_INTEGERS = [-(2**63), -(2**31), -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400]
_VALUES: list[Any] = [
    *_INTEGERS,
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *(None, True, False, "", "1", "\0", "\ud800", "\udc00x", "a" * 10_000, "\U0010ffff", "\u202e", "BYTES", "INT64", "FP32"),
    *([], {}, [[]], [None], [1, "a"], {"a": {}}, [0] * 1000, {"": None}),
]
_DEPTHS = (3, 200, 255, 400, 900, 980, 990, 1000, 1020, 1024, 1025, 5000, 100_000)
_DEEP = "@deep@"  # stands for a nested array, which the encoder could not write
_TOKENS = [
    b"1e999",
    b"-1e999",
    b"NaN",
    b"-Infinity",
    b"01",
    b"+1",
    b".5",
    b"1.",
    b"0x10",
    b"1" * 5000,
    b"'a'",
    b"nul",
    b"\xff",
    b"\0",
    b"//",
]
_TOKENS += [
    b'"\\u12"',
    b'"\\ud800"',
    b'"\xed\xa0\x80"',
    b'"\xc0\x80"',
    b'"a',
    b"[" * 50,
    b"}",
    b",,",
    b'{"inputs":',
    b"\xef\xbb\xbf",
]


def _pick(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def flipped(random: Random, data: bytes, times: int = 4) -> bytes:
    """The data with a few bytes changed."""
    changed = bytearray(data)
    for position in random.integers(len(changed), size=int(random.integers(1, times + 1))) if changed else ():
        changed[position] ^= int(random.integers(1, 256))
    return bytes(changed)


def damaged(random: Random, data: bytes) -> bytes:
    """The data cut, with something cut out of it, put into it, doubled or changed."""
    start, end = sorted(int(each) for each in random.integers(len(data) + 1, size=2))
    ways = [
        data[:start],
        data[:start] + data[end:],
        data[:end] + data[start:],
        data[:start] + random.bytes(int(random.integers(1, 50))) + data[start:],
        data[:start] + bytes(end - start) + data[end:],
        flipped(random, data),
        flipped(random, data, 50),
    ]
    return ways[int(random.integers(len(ways)))]


@cache
def photos() -> list[bytes]:
    """A photo in every format that is read, and in some of their kinds."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 60, 3), np.uint8)
    photo = Image.fromarray(pixels)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (photo, "JPEG", {}),
        (photo, "JPEG", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        (photo.convert("CMYK"), "JPEG", {}),
        (photo, "PNG", {}),
        (photo.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (photo, "WEBP", {}),
        (photo.convert("RGBA"), "WEBP", {"lossless": True}),
        (photo, "GIF", {"save_all": True, "append_images": [photo.rotate(90)]}),
        (photo, "BMP", {}),
        (photo.convert("1"), "BMP", {}),
    ]
    return [_encoded(*kind) for kind in kinds]


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def no_images() -> dict[str, bytes]:
    """Files that can never be answered: nothing, another kind, or far more pixels than is allowed."""
    side = 2**31 - 1
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    small = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    bomb = zlib.compress(bytes(5_000_000))
    jpeg, _, _, png, *_ = photos()
    frame = jpeg.index(b"\xff\xc0") + 5
    tiff = _encoded(Image.new("RGB", (4, 4)), "TIFF", {})
    return {
        "nothing": b"",
        "text": b"hello",
        "zeros": bytes(1000),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "PDF": b"%PDF-1.7\n",
        "TIFF": tiff,
        "JPEG with the start of a PNG": png[:8] + jpeg[8:],
        "start of a JPEG": jpeg[:4],
        "PNG of 2^62 pixels": _png((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
        "PNG without pixels": _png((b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)), (b"IEND", b"")),
        "PNG with a bomb of text": _png((b"IHDR", small), (b"zTXt", b"a\0\0" + bomb), (b"IDAT", b""), (b"IEND", b"")),
        "PNG with a bomb of colours": _png((b"IHDR", small), (b"iCCP", b"a\0\0" + bomb), (b"IDAT", b""), (b"IEND", b"")),
        "JPEG of 65535 x 65535": jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :],
        "GIF of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;",
        "BMP of 2^62 pixels": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "BMP upside down": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 10**5, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "WebP of 2^28 pixels": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0" * 2,
    }


def spoilt(random: Random, content: Any) -> bytes:
    """JSON in which one to three values, names or places are not what they should be."""
    tree = copy.deepcopy(content)
    for _ in range(int(random.integers(1, 4))):
        tree = _spoil(random, tree)
    text = json.dumps(tree).encode()
    depth = int(_pick(random, _DEPTHS))
    text = text.replace(f'"{_DEEP}"'.encode(), b"[" * depth + b"]" * depth)
    if random.random() < 0.3:
        position = int(random.integers(len(text) + 1))
        text = text[:position] + _pick(random, _TOKENS) + text[position + int(random.integers(3)) :]
    if random.random() < 0.1:
        text = damaged(random, text)
    return text.decode().encode("utf-16") if random.random() < 0.02 and text.isascii() else text


def _spoil(random: Random, tree: Any) -> Any:
    """The tree with one node changed, found by walking down from the root."""
    if not isinstance(tree, (dict, list)) or not tree or random.random() < 0.1:
        return copy.deepcopy(_pick(random, [*_VALUES, _DEEP, _DEEP, _DEEP]))
    key = _pick(random, list(tree) if isinstance(tree, dict) else range(len(tree)))
    action = random.random()
    if action < 0.7:
        tree[key] = _spoil(random, tree[key])
    elif action < 0.8:
        del tree[key]
    elif isinstance(tree, list):
        tree.insert(key, copy.deepcopy(tree[key]))
    else:
        name = _pick(random, ["", "id", "x" * 300, "parameters", "shape", "\0", "binary_data_size"])
        tree[name] = copy.deepcopy(tree[key])
    return tree


def compressed(random: Random, data: bytes) -> tuple[bytes, str]:
    """A broken Content-Encoding: a bomb, a lie, something cut or changed; and its name."""
    squeezed, name = _pick(random, [(gzip.compress(data), "gzip"), (zlib.compress(data), "deflate")])
    ways = [
        (squeezed[:-1], name),
        (damaged(random, squeezed), name),
        (squeezed * 2, name),
        (gzip.compress(squeezed), "gzip, gzip"),
        (squeezed, _pick(random, ["br", "zstd", "gzip, deflate", "deflate" if name == "gzip" else "gzip", "chunked", "\x01"])),
        (data, name),
        (_BOMBS[name], name),
        (b"", name),
    ]
    return ways[int(random.integers(len(ways)))]


_BOMBS = {"gzip": gzip.compress(bytes(5_000_000)), "deflate": zlib.compress(bytes(5_000_000))}


def lying_length(random: Random, length: int) -> str:
    """A value of the header that tells the length of the JSON."""
    lies = [
        0,
        1,
        length - 1,
        length + 1,
        10 * length,
        -length,
        2**31,
        2**63,
        2**64,
        "",
        "x",
        "1e3",
        "0x10",
        "+5",
        "\xb2",
        "9" * 400,
    ]
    return str(_pick(random, lies))


def integers(random: Random, count: int) -> list[int]:
    """Numbers from the edges of what types hold."""
    return [int(_pick(random, _INTEGERS[:-2])) for _ in range(count)]
