"""Whatever an image holds comes out as upright 8-bit RGB, from a file and from bytes alike, or as one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError
from piggyback.images.decode import (
    check_image,
    draft_side,
    fit,
    in_threads,
    load_fitted,
    normalise,
    orientation,
    read_image,
    to_rgb,
    upright_size,
)
from piggyback.images.preprocessing import Preprocessing
from support.encoded_pictures import KINDS, encoded, turned

RED = (200, 30, 40)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def first_pixel(path: Path) -> tuple[int, ...]:
    """Of the image in a file; its bytes have the same pixels."""
    image = read_image(path)
    assert torch.equal(read_image(path.read_bytes()), image)
    return tuple(image[:, 0, 0].tolist())


# -- modes and bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_bytes_and_a_file_of_every_kind_are_the_same_pixels(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KINDS[name])
    expected = read_image(tmp_path / name)
    assert torch.equal(read_image(KINDS[name]), expected)
    assert expected.dtype == torch.uint8


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", RED, RED),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (255, 255, 255)),
        ("LA", (10, 0), (255, 255, 255)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: object, expected: tuple[int, ...]) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    assert first_pixel(tmp_path / "a.png") == expected


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png")
    assert first_pixel(tmp_path / "a.png") == RED
    image.save(tmp_path / "b.png", transparency=image.getpixel((0, 0)))
    assert first_pixel(tmp_path / "b.png") == (255, 255, 255)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.subtract(first_pixel(tmp_path / "a.jpg"), RED)).max() < 6


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}")[0, 0].tolist() == [0, 1, 128, 255]


def test_float_pixels_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=r"depth\.tif.*float pixels"):
        read_image(tmp_path / "depth.tif")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_a_moving_picture(kind: str) -> None:
    red, blue = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    moving = read_image(encoded(red, kind, save_all=True, append_images=[blue]))
    assert (moving[:, 4, 4] - torch.tensor([255, 0, 0])).abs().max() < 6


# -- EXIF ------------------------------------------------------------------------------------------


def with_orientation(value: object) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "the maker of a camera, a tag that comes before"
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation_is_undone_as_pillow_does(value: int) -> None:
    pixels = noise(5, 7, seed=value)
    image = Image.fromarray(pixels)
    image.info["exif"] = with_orientation(value)
    expected = np.array(ImageOps.exif_transpose(image))
    assert orientation(image.info["exif"]) == value
    found = to_rgb(Image.fromarray(pixels), "x", value)
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_camera_held_sideways(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 16, 16))
    image.save(path, exif=turned(6))  # to be turned clockwise by a quarter
    for upright in [read_image(path)] + (
        [] if suffix == "tif" else [read_image(path.read_bytes())]
    ):
        assert upright.shape == (3, 32, 16)
        assert (upright[:, 4, 8] - torch.tensor(RED)).abs().max() < 12
        assert upright[:, 28, 8].min() > 243
    assert upright_size(path) == (16, 32)


def test_exif_of_either_byte_order_odd_and_absent() -> None:
    little = with_orientation(8)
    big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
    assert [orientation(e) for e in (little, little[6:], big, b"Exif\0\0" + big)] == [8] * 4
    absent = (None, b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff")
    assert {orientation(e) for e in (*absent, *map(with_orientation, (0, 9, 400)))} == {1}


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 90), change=st.binary(max_size=12), at=st.integers(0, 90))
def test_damaged_exif_never_raises(cut: int, change: bytes, at: int) -> None:
    whole = bytearray(with_orientation(6))
    whole[at : at + len(change)] = change
    assert orientation(bytes(whole[:cut])) in range(1, 9)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_truncated_files_are_named_without_decoding_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    check_image(path)
    whole = path.read_bytes()
    for part in (0, 3, len(whole) // 2, len(whole) - len(whole) // 5):
        path.write_bytes(whole[:part])
        with pytest.raises(DataError, match=rf"photo\.{suffix}"):
            check_image(path)


def test_damage_in_the_middle_is_found_by_the_thorough_check(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    broken = bytearray(encoded(Image.fromarray(noise(64, 64)), "PNG"))
    broken[len(broken) // 2 : len(broken) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(broken))
    check_image(path)
    with pytest.raises(DataError, match=r"a\.png"):
        check_image(path, thorough=True)


def test_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a\.png.*cannot be decoded"):
        read_image(tmp_path / "a.png")
    for read in (read_image, upright_size, check_image):
        with pytest.raises(DataError, match=r"b\.png.*no such file"):
            read(tmp_path / "b.png")


def test_a_large_jpeg_is_read_small_and_looks_the_same(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (1024, 1))] * 3, axis=-1)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", at_least=100).shape == (3, 128, 128)
    preprocessing = Preprocessing(32)
    quick = load_fitted(tmp_path / "a.jpg", preprocessing).float()
    slow = fit(read_image(tmp_path / "a.jpg"), preprocessing).float()
    assert (quick - slow).abs().max() <= 3
    assert draft_side(Preprocessing(64)) == 128
    assert draft_side(Preprocessing(64, crop_pct=0.5)) == 256


# -- the network's input ---------------------------------------------------------------------------


def test_fit_resizes_as_torchvision_does_and_cuts_the_centre() -> None:
    image = torch.randint(0, 255, (3, 30, 50), dtype=torch.uint8)
    expected = F.resize(image, [16, 16], antialias=True)
    assert torch.equal(fit(image, Preprocessing(16)), expected)
    middle = F.resize(F.center_crop(image, [15, 15]), [16, 16], antialias=True)
    assert torch.equal(fit(image, Preprocessing(16, crop_pct=0.5)), middle)


def test_normalise_is_the_usual_formula() -> None:
    preprocessing = Preprocessing(4)
    images = torch.randint(0, 255, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (list(v) for v in (preprocessing.mean, preprocessing.std))
    expected = F.normalize(images.float() / 255, mean, std)
    torch.testing.assert_close(normalise(images, preprocessing), expected)


def test_many_rows_come_back_in_order_and_a_fault_is_raised() -> None:
    rows = range(10_000)
    assert list(in_threads(max, rows, reversed(rows))) == [max(i, 9999 - i) for i in rows]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (7000 - i), rows))
