"""A server sees of an image what an engine in the same process sees."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.client import Client
from piggyback.errors import DataError, InputError
from piggyback.images.preprocessing import Preprocessing
from piggyback.serve.inputs import prepare
from support.fake_server import FakeServer

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 4), dtype=np.uint8)


def seen(image: object) -> torch.Tensor:
    return prepare(image, Preprocessing(8), max_pixels=1000)


def picture(mode: str) -> Image.Image:
    rgba = Image.fromarray(PIXELS, "RGBA")
    if mode == "I;16":
        return Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(PIXELS[..., 0].astype(np.int32) * 200)
    if mode in ("LA", "RGBA", "RGBa"):
        return rgba.convert(mode)
    return rgba.convert("L" if mode == "PA" else "RGB").convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "I;16"],
)
def test_a_pil_image_of_any_mode(client: Client, server: FakeServer, mode: str) -> None:
    image = picture(mode)
    assert image.mode == mode
    client.predict(image, "signs")
    assert server.asked[-1].headers["content-type"] == "image/png"
    assert torch.equal(seen(server.asked[-1].body), seen(image))


def test_a_transparent_palette(client: Client, server: FakeServer) -> None:
    image = picture("P")
    image.info["transparency"] = 3
    client.predict(image, "signs")
    assert torch.equal(seen(server.asked[-1].body), seen(image))


@pytest.mark.parametrize("kind", ["jpeg", "gif"])
def test_a_pil_image_that_is_still_in_its_file(
    client: Client, server: FakeServer, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = BytesIO()
    extra = (
        {"exif": exif} if kind == "jpeg" else {"save_all": True, "append_images": [picture("L")]}
    )
    picture("RGB").save(data, kind, **extra)
    client.predict(Image.open(BytesIO(data.getvalue())), "signs")
    wanted = seen(Image.open(BytesIO(data.getvalue())))
    assert torch.equal(seen(server.asked[-1].body), wanted)
    if kind == "jpeg":  # it does lie on its side
        assert not torch.equal(seen(Image.open(data).transpose(Image.Transpose.ROTATE_90)), wanted)


@pytest.mark.parametrize(
    "image",
    [
        PIXELS[..., :3],
        PIXELS[::-1, ::-2, :3],
        PIXELS[..., 1],
        torch.from_numpy(PIXELS)[..., :3].permute(2, 0, 1),
        torch.from_numpy(PIXELS)[..., :3].permute(2, 0, 1).contiguous(),
        np.zeros((1, 1, 3), np.uint8),
    ],
)
def test_arrays_and_tensors(client: Client, server: FakeServer, image: object) -> None:
    client.predict(image, "signs")
    assert torch.equal(seen(server.asked[-1].body), seen(image))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (Image.new("F", (2, 2)), DataError),
        (Image.new("I", (2, 2), 70_000), DataError),
        (Image.open(BytesIO(b"P6 2 2 255 too short")), DataError),
        (Image.new("LA", (2, 2)).convert("La"), DataError),
        (torch.zeros(4, 4, dtype=torch.uint8), InputError),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), InputError),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), InputError),
        (torch.zeros(3, 4, 4, dtype=torch.int32), InputError),
        (np.zeros((3, 4, 4), np.uint8), InputError),
        (np.zeros((4, 4, 4), np.uint8), InputError),
        (np.zeros((0, 4, 3), np.uint8), InputError),
        (np.zeros(4, np.uint8), InputError),
        (np.zeros((4, 4), np.int64), InputError),
    ],
)
def test_what_an_engine_refuses_is_not_sent(
    client: Client, server: FakeServer, image: object, error: type[Exception]
) -> None:
    for use in (lambda: seen(image), lambda: client.predict(image, "signs")):
        with pytest.raises(error) as told:
            use()
        assert type(told.value) is error
    assert server.asked == []
