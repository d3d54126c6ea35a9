"""From a decoded image to the network's input: the usual formulas, and EXIF read as Pillow reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError
from piggyback.images.decode import draft_side, fit, normalise, orientation, to_rgb
from piggyback.images.preprocessing import Preprocessing


def with_orientation(value: object) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "the maker of a camera, a tag that comes before"
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation_is_undone_as_pillow_does(value: int) -> None:
    pixels = np.random.default_rng(value).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.info["exif"] = with_orientation(value)
    expected = np.array(ImageOps.exif_transpose(image))
    assert orientation(image.info["exif"]) == value
    found = to_rgb(Image.fromarray(pixels), "x", value)
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))


def test_exif_of_either_byte_order_with_and_without_its_mark() -> None:
    little = with_orientation(8)
    big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
    assert [orientation(e) for e in (little, little[6:], big, b"Exif\0\0" + big)] == [8] * 4


@pytest.mark.parametrize("value", [0, 9, 400])
def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    assert orientation(with_orientation(value)) == 1


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 90), change=st.binary(max_size=12), at=st.integers(0, 90))
def test_damaged_exif_never_raises(cut: int, change: bytes, at: int) -> None:
    whole = bytearray(with_orientation(6))
    whole[at : at + len(change)] = change
    assert orientation(bytes(whole[:cut])) in range(1, 9)


def test_no_exif_is_upright() -> None:
    assert [orientation(e) for e in (None, b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff")] == [1] * 4


def test_float_pixels_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="depth map holds float pixels"):
        to_rgb(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "depth map")


def test_a_jpeg_keeps_twice_what_is_seen_of_it() -> None:
    assert draft_side(Preprocessing(64)) == 128
    assert draft_side(Preprocessing(64, crop_pct=0.5)) == 256


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
