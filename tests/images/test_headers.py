"""What strangers send: the size is known before any pixel, and nothing but the picture is decoded."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from piggyback.errors import DataError, TooLargeError
from piggyback.images.decode import orientation, read_image
from piggyback.images.headers import read_header
from support.encoded_pictures import KINDS, encoded, photo, turned

LIMIT = 50_000_000


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def gif(width: int, height: int, *parts: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"".join(parts)


def frame(left: int, top: int, width: int, height: int) -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\2\2\x44\1\0;"


def refused(data: bytes, error: type[DataError] = DataError) -> str:
    with pytest.raises(error) as caught:
        read_image(data, max_pixels=LIMIT)
    return str(caught.value)


def picture(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("name", KINDS)
def test_pillow_finds_the_same_size_and_pixels_in_what_is_left(name: str) -> None:
    found = read_header(KINDS[name])
    with picture(found.data) as left, picture(KINDS[name]) as whole:
        assert found.size == whole.size
        assert found.format == ("JPEG" if whole.format == "MPO" else whole.format)
        assert left.convert("RGBA").tobytes() == whole.convert("RGBA").tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_how_it_is_turned(kind: str) -> None:
    files = [encoded(photo(), kind, exif=turned(value)) for value in range(1, 9)]
    assert [orientation(read_header(file).exif) for file in files] == list(range(1, 9))
    assert read_header(encoded(photo(), kind)).exif == b""


def test_profiles_texts_thumbnails_and_later_frames_are_cut_out() -> None:
    for name in ("profiled.jpg", "profiled.png"):
        assert len(read_header(KINDS[name]).data) < len(KINDS[name]) - 50
        with picture(read_header(KINDS[name]).data) as image:
            assert "icc_profile" not in image.info
    with picture(read_header(KINDS["moving.png"]).data) as image:
        assert not image.is_animated
    with picture(read_header(KINDS["moving.gif"]).data) as image:
        assert "comment" not in image.info
    assert b"Exif" not in read_header(KINDS["turned.jpg"]).data
    inflating = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))
    body = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    assert read_header(png(4, 4, inflating, body, inflating)).data == png(4, 4, body)


def test_a_file_with_nothing_to_cut_out_is_not_copied() -> None:
    for name in ("rgb.jpg", "rgb.png", "lossy.webp", "rgb.bmp"):
        assert read_header(KINDS[name]).data is KINDS[name]
    plain = KINDS["rgb.jpg"]
    assert read_header(plain[:2] + b"\xff" * 100_000 + plain[2:]).data == plain  # padding


def test_a_png_of_a_kilobyte_with_billions_of_pixels() -> None:
    bomb = png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(1_000_000))))
    assert len(bomb) < 1_100
    assert refused(bomb, TooLargeError).startswith(
        "image of 50000 x 50000 pixels: expected at most 50000000 in all"
    )


def test_each_format_says_its_size_before_pillow_is_asked() -> None:
    jpeg = bytearray(KINDS["rgb.jpg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 50_000)
    canvas = bytearray(KINDS["moving.webp"])
    canvas[24:30] = b"\xff\xff\0\xff\xff\0"
    exact = bytearray(KINDS["exact.webp"])
    exact[21:25] = b"\xff\xff\xff\x0f"
    lossy = bytearray(KINDS["lossy.webp"])
    lossy[26:30] = b"\xff\x3f\xff\x3f"
    bmp = bytearray(KINDS["rgb.bmp"])
    bmp[18:26] = struct.pack("<ii", 50_000, -60_000)
    sizes = {
        bytes(jpeg): (50_000, 60_000),
        bytes(canvas): (65_536, 65_536),
        bytes(exact): (16_384, 16_384),
        bytes(lossy): (16_383, 16_383),
        bytes(bmp): (50_000, 60_000),
        gif(9, 9, frame(0, 0, 50_000, 60_000)): (50_000, 60_000),
    }
    for data, size in sizes.items():
        assert read_header(data).size == size
        assert refused(data, TooLargeError).startswith(f"image of {size[0]} x {size[1]} pixels")


def test_a_gif_frame_beyond_its_canvas_makes_it_grow_or_is_refused() -> None:
    for name in ("still.gif", "moving.gif"):
        grown = KINDS[name][:6] + struct.pack("<HH", 30, 9) + KINDS[name][10:]
        with picture(read_header(grown).data) as ours, picture(grown) as pillows:
            assert read_header(grown).size == pillows.size == ours.size == (40, 24)
            assert ours.convert("RGBA").tobytes() == pillows.convert("RGBA").tobytes()
    assert "its picture lies outside its canvas" in refused(gif(9, 9, frame(65_535, 0, 9, 9)))


def test_a_webp_frame_beyond_its_canvas_is_refused() -> None:
    for name in ("moving.webp", "alpha.webp"):
        data = bytearray(KINDS[name])
        data[24:30] = b"\3\0\0\3\0\0"  # a canvas of 4 x 4 around pictures of 40 x 24
        assert "cannot be decoded" in refused(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        png(0, 5, chunk(b"IDAT", zlib.compress(b""))),
        gif(0, 0, frame(0, 0, 0, 0)),
        KINDS["rgb.bmp"][:18] + bytes(8) + KINDS["rgb.bmp"][26:],
        KINDS["lossy.webp"][:26] + bytes(4) + KINDS["lossy.webp"][30:],
    ],
    ids=["png", "gif", "bmp", "webp"],
)
def test_a_picture_without_pixels(data: bytes) -> None:
    assert "pixels: expected one or more" in refused(data)


def test_many_small_parts_are_refused_before_they_cost_time() -> None:
    jpeg, many = KINDS["rgb.jpg"], 200_000
    pixels = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    comments = b"!\xfe" + b"\1a" * many + b"\0"
    webp = bytearray(KINDS["turned.webp"])
    webp[30:30] = b"junk\0\0\0\0" * many
    for data in (
        jpeg[:2] + b"\xff\xfe\0\2" * many + jpeg[2:],
        png(4, 4, chunk(b"IDAT", b"") * many, pixels),
        png(4, 4, pixels, chunk(b"teXt", b"") * many),
        gif(4, 4, comments, frame(0, 0, 4, 4)),
        gif(4, 4, b"\1" * many, frame(0, 0, 4, 4)),
        bytes(webp),
    ):
        with pytest.raises(ValueError, match=r"50000|no pixels follow its header"):
            read_header(data)


def test_a_progressive_jpeg_of_a_great_many_scans() -> None:
    plain = KINDS["progressive.jpg"]
    last = plain.rindex(b"\xff\xda")
    scan = plain[last:-2]
    read_header(plain[:-2] + scan * 50 + plain[-2:])
    read_header(plain * 30)  # a second picture's do not count
    for between in (b"", b"\xff\xfe\0\4\xff\xd9"):  # a comment that looks like the end
        many = plain[:-2] + (between + scan) * 120 + plain[-2:]
        assert "it is cut into more than 100 scans" in refused(many)


def test_run_lengths_in_a_bmp_are_read_up_to_a_megabyte() -> None:
    header = struct.pack("<IiiHHIIIIII", 40, 4, 2, 1, 8, 1, 0, 0, 0, 256, 0)
    file = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header
    file += bytes(range(256)) * 4 + b"\4\7\0\0\4\x09\0\0\0\1"
    assert read_image(file, max_pixels=LIMIT).shape == (3, 2, 4)
    assert "run-length coded and over 1048576 bytes; save it as PNG" in refused(
        file + bytes(1 << 20)
    )


def test_two_sizes_in_one_header() -> None:
    jpeg = KINDS["rgb.jpg"]
    at = jpeg.index(b"\xff\xc0")
    again = jpeg[at : at + 19]
    assert "it gives its size twice" in refused(jpeg[:at] + again + jpeg[at:])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    assert "its header gives two sizes" in refused(png(4, 4, header, body))


def test_what_is_not_an_image_at_all() -> None:
    for data, reason in (
        (b"", "it is empty"),
        (b"<svg/>", "it is not one of JPEG, PNG, WebP, BMP, GIF"),
        (b"RIFF\0\0\0\0WEBPjunk" + bytes(20), "no picture follows its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "its header does not come first"),
        (b"\xff\xd8\xff\xd9", "it ends before its pixels"),
    ):
        assert f"image of {len(data)} bytes cannot be decoded: {reason}" in refused(data)
