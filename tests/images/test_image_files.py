"""Whatever a file holds comes out as upright 8-bit RGB, or as one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.errors import DataError
from piggyback.images.decode import (
    check_image,
    fit,
    is_image_name,
    load_fitted,
    read_image,
    upright_size,
)
from piggyback.images.preprocessing import Preprocessing

RED = (200, 30, 40)


def first_pixel(path: Path) -> tuple[int, ...]:
    return tuple(read_image(path)[:, 0, 0].tolist())


def test_rgb_comes_out_as_it_went_in(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
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


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_is_undone(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    upright = read_image(tmp_path / f"a.{suffix}")
    assert upright.shape == (3, 32, 16)
    assert (upright[:, 4, 8] - torch.tensor(RED)).abs().max() < 12
    assert upright[:, 28, 8].min() > 243
    assert upright_size(tmp_path / f"a.{suffix}") == (16, 32)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*float pixels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_truncated_files_are_named_without_decoding_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    check_image(path)
    whole = path.read_bytes()
    for part in (0, 3, len(whole) // 2, len(whole) - len(whole) // 5):
        path.write_bytes(whole[:part])
        with pytest.raises(DataError, match=rf"photo\.{suffix}"):
            check_image(path)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"a\.png.*cannot be decoded"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png.*no such file"):
        read_image(tmp_path / "b.png")


def test_damage_in_the_middle_is_found_by_the_thorough_check(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match=r"a\.png"):
        check_image(path, thorough=True)


def test_a_large_jpeg_is_read_small_and_looks_the_same(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (1024, 1))] * 3, axis=-1)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", at_least=100).shape == (3, 128, 128)
    preprocessing = Preprocessing(32)
    quick = load_fitted(tmp_path / "a.jpg", preprocessing).float()
    slow = fit(read_image(tmp_path / "a.jpg"), preprocessing).float()
    assert (quick - slow).abs().max() <= 3


def test_names() -> None:
    names = ("a.JPEG", "b.webp", "c.txt", ".d.png", "e")
    assert [is_image_name(Path(name)) for name in names] == [True, True, False, False, False]
