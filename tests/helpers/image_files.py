"""Image files that common writers do not write, byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

Tag = int | Sequence[int]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, bits: int, colour: int = 0, rows: Sequence[bytes] = (), more: bytes = b"") -> bytes:
    """A PNG file; ``colour`` is its colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (png_chunk(b"IHDR", header), more, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b""))
    )


def tiff(
    width: int, height: int, pixels: bytes, *, bits: Tag = 8, order: str = "<", tags: Mapping[int, Tag] | None = None
) -> bytes:
    """A TIFF file of one strip; ``tags`` of 16 bits come on top, or in place, of the usual ones."""
    samples = 1 if isinstance(bits, int) else len(bits)
    wanted: dict[int, Tag] = {
        256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: samples, 278: height, 279: len(pixels),
    }  # fmt: skip
    wanted |= tags or {}
    beyond = 8 + 2 + 12 * len(wanted) + 4
    lists = {tag: (value,) if isinstance(value, int) else tuple(value) for tag, value in wanted.items()}
    lists[273] = (beyond + sum(2 * len(numbers) for numbers in lists.values() if len(numbers) > 2),)
    entries, values = b"", b""
    for tag, numbers in sorted(lists.items()):
        content = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(content) > 4:
            content, values = struct.pack(f"{order}I", beyond + len(values)), values + content
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + content.ljust(4, b"\0")
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return start + struct.pack(f"{order}H", len(wanted)) + entries + bytes(4) + values + pixels


def bmp(width: int, height: int, pixels: bytes, *, bits: int, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """A BMP file with a palette; rows of ``pixels`` fill multiples of four bytes, the lowest one first."""
    colours = b"".join(bytes((blue, green, red, 0)) for red, green, blue in palette)
    start = 54 + len(colours)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(pixels), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + colours + pixels
