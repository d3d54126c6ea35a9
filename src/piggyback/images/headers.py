"""The header of an encoded image from a stranger, read before Pillow sees the file.

Why own code, when Pillow reads headers too: Pillow allocates the canvas of a WebP when it opens it,
goes over every scan of a progressive JPEG, inflates texts and profiles, keeps every comment, and
warns about what it finds odd, which cannot be held back in one thread only. Here the size is known
before anything is allocated, the number of parts and scans is bounded, and what is not part of the
picture (profiles, texts, thumbnails, later frames) is cut out.

A function for each format takes the whole file and returns an ``ImageHeader``; a header that makes
no sense is a ValueError, a struct.error or an IndexError.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an encoded image says."""

    format: str
    """JPEG, PNG, WEBP, BMP or GIF."""
    size: tuple[int, int]
    """Width and height as stored, in pixels."""
    data: bytes
    """The file, or the parts of it that the first picture needs."""
    exif: bytes = b""
    """The EXIF block, which says how the camera was held."""


_PARTS = 50_000
"""A file may have so many parts; 400 MB of an ordinary PNG have as many."""
_SCANS = 100
"""Every scan of a progressive JPEG goes over the whole picture; encoders make about ten."""
_RLE_BYTES = 1 << 20
"""Pillow reads run-length coded BMPs in Python, at about a megabyte per second."""
_EXIF_BYTES = 1 << 16

# A marker cannot stand among coded pixels: those hold only FF 00 and FF D0 to FF D7.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Beside the frame: tables, JFIF and Adobe, which give the colours their meaning.
_JPEG_KEPT = _SOF | frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE))
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def read_header(data: bytes) -> ImageHeader:
    """Return what the header of an encoded image says; ValueError, one line, if it is not one.

    >>> read_header(b"GIF89a" + bytes([9, 0, 7, 0, 0, 0, 0]) + b"," + bytes([0, 0, 0, 0, 9, 0, 7, 0, 0, 2])).size
    (9, 7)
    """
    if not data:
        raise ValueError("it is empty")
    for start, read in _READERS:
        if start.match(data):
            try:
                return read(data)
            except (struct.error, IndexError):
                raise ValueError("its header is cut short") from None
    raise ValueError("it is not one of JPEG, PNG, WebP, BMP, GIF")


def _jpeg(data: bytes) -> ImageHeader:
    kept, exif, size, code, at = [data[:2]], b"", None, 0, 2
    components, several = 0, False
    for _ in range(_PARTS):
        found = _MARKER.search(data, at)
        if found is None:
            raise ValueError("it ends before its pixels")
        start, code = found.start(), data[found.start() + 1]
        if code == _SOI:
            at = start + 2
            continue
        if code == _EOI:
            raise ValueError("it ends before its pixels")
        (length,) = struct.unpack_from(">H", data, start + 2)
        at = start + 2 + length
        if length < 2 or at > len(data):
            raise ValueError("its header is cut short")
        if code in _SOF:
            if size is not None:
                raise ValueError("it gives its size twice")
            height, width = struct.unpack_from(">HH", data, start + 5)
            size, components, several = (width, height), data[start + 9], code in _PROGRESSIVE
        elif code == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : at]
        elif code == _SOS:
            break
        if code in _JPEG_KEPT:
            kept.append(data[start:at])
    if code != _SOS or size is None:
        raise ValueError("no pixels follow its header")
    if several or data[start + 4] < components:
        _check_scans(data, at)
    head = b"".join(kept)
    clean = data if len(head) == start else b"".join((head, memoryview(data)[start:]))
    return ImageHeader("JPEG", size, clean, exif)


def _check_scans(data: bytes, at: int) -> None:
    """Raise ValueError if more scans than a picture needs follow the first, which starts at ``at``."""
    scans = 1
    for _ in range(_PARTS):
        found = _MARKER.search(data, at)
        if found is None or found.start() + 4 > len(data):
            return
        code = data[found.start() + 1]
        if code == _EOI:
            return
        scans += code == _SOS
        if scans > _SCANS:
            break
        (length,) = struct.unpack_from(">H", data, found.start() + 2)
        at = found.start() + 2 + length
    raise ValueError(f"it is cut into more than {_SCANS} scans")


def _png(data: bytes) -> ImageHeader:
    at, exif, view = 8, b"", memoryview(data)
    if data[12:16] != b"IHDR":
        raise ValueError("its header does not come first")
    size: tuple[int, int] = struct.unpack_from(">II", data, 16)
    runs = [[0, 8]]  # of the bytes that are kept: starts and ends
    for _ in range(_PARTS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        end = min(at + 12 + length, len(data))
        if kind in _PNG_KEPT:
            if runs[-1][1] == at:
                runs[-1][1] = end
            else:
                runs.append([at, end])
        elif kind == b"eXIf":
            exif = data[at + 8 : at + 8 + min(length, _EXIF_BYTES)]
        at = end
        if kind == b"IEND":
            break
    else:
        raise ValueError(f"it has more than {_PARTS} chunks")
    clean = data if runs == [[0, len(data)]] else b"".join(view[a:b] for a, b in runs)
    return ImageHeader("PNG", size, clean, exif)


def _webp(data: bytes) -> ImageHeader:
    kind, bits = data[12:16], data[20:30]
    if kind == b"VP8X":
        flags, width, height = bits[0], bits[4:7], bits[7:10]
        size = tuple(int.from_bytes(side, "little") + 1 for side in (width, height))
        exif = _riff_exif(data) if flags & 8 else b""
        return ImageHeader("WEBP", (size[0], size[1]), data, exif)
    if kind == b"VP8L" and bits[0] == 0x2F:
        (packed,) = struct.unpack_from("<I", bits, 1)
        return ImageHeader("WEBP", ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1), data)
    if kind == b"VP8 " and bits[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", bits, 6)
        return ImageHeader("WEBP", (width & 0x3FFF, height & 0x3FFF), data)
    raise ValueError("no picture follows its header")


def _riff_exif(data: bytes) -> bytes:
    at = 12
    for _ in range(_PARTS):
        if at + 8 > len(data):
            return b""
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + min(length, _EXIF_BYTES)]
        at += 8 + length + (length & 1)
    raise ValueError(f"it has more than {_PARTS} chunks")


def _bmp(data: bytes) -> ImageHeader:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return ImageHeader("BMP", (width, height), data)
    width, height = struct.unpack_from("<Ii", data, 18)  # negative: rows from the top down
    (coding,) = struct.unpack_from("<I", data, 30)
    if coding in (1, 2) and len(data) > _RLE_BYTES:
        raise ValueError(f"it is run-length coded and over {_RLE_BYTES} bytes; save it as PNG")
    return ImageHeader("BMP", (width, abs(height)), data)


def _gif(data: bytes) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    palette = data[13 : 13 + (3 << (flags & 7) + 1)] if flags & 0x80 else b""
    at, transparent, inside = 13 + len(palette), -1, False
    for _ in range(_PARTS):
        mark = data[at]
        if inside:  # an extension, whose blocks each begin with their length; the last one is empty
            inside, at = mark > 0, at + 1 + mark
        elif mark == 0x2C:
            break
        elif mark == 0x21:
            if data[at + 1] == 0xF9 and data[at + 3] & 1:
                transparent = data[at + 6]
            inside, at = True, at + 2
        else:
            at += 1
    else:
        raise ValueError(f"no picture is among its first {_PARTS} parts")
    left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
    size = max(width, left + across), max(height, top + down)
    if max(size) > 0xFFFF:
        raise ValueError("its picture lies outside its canvas")
    # The canvas is grown here, as Pillow would, which would warn; how frames follow is left out.
    head = [data[:6], struct.pack("<HH", *size), data[10:13], palette]
    if transparent >= 0:
        head.append(bytes([0x21, 0xF9, 4, 1, 0, 0, transparent, 0]))
    return ImageHeader("GIF", size, b"".join((*head, memoryview(data)[at:])))


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], ImageHeader]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _webp),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"GIF8[79]a"), _gif),
)
