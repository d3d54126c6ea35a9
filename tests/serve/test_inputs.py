"""What a server makes of an image is what training made of it; what is none is one clear error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from piggyback.errors import DataError, InputError, TooLargeError
from piggyback.images.decode import load_fitted, normalise
from piggyback.images.preprocessing import Preprocessing
from piggyback.model.multitask import MultiTaskModel
from piggyback.serve.inputs import prepare, samples
from piggyback.train.evaluation import predict
from support.encoded_pictures import KINDS, encoded, photo
from support.nets import Convolutions, learn, seeded

VIEW = Preprocessing(16)


def ready(source: Any, view: Preprocessing | None = VIEW, max_pixels: int = 10**6) -> torch.Tensor:
    return prepare(source, view, max_pixels=max_pixels)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_what_training_saw(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    for view in (VIEW, Preprocessing(24, interpolation="bicubic", crop_pct=0.875)):
        expected = normalise(load_fitted(path, view)[None], view)[0]
        for source in (KINDS[name], bytearray(KINDS[name]), memoryview(KINDS[name]), path):
            found = ready(source, view)
            assert torch.equal(found, expected)
            assert found.dtype == torch.float32
            assert found.is_contiguous()


def test_a_network_gets_the_numbers_that_predict_gives_it(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    model = MultiTaskModel(seeded(Convolutions))
    learn(model, "a", torch.randn(4, 3, 8, 8), preprocessing=VIEW)
    path = tmp_path / "a.jpg"
    path.write_bytes(KINDS["turned.jpg"])
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if isinstance(module, Convolutions) else None
    )
    predict(model, "a", [path])
    handle.remove()
    assert torch.equal(seen[0][0], ready(path.read_bytes()))


def test_normalising_differs_in_no_bit_for_any_value() -> None:
    view = Preprocessing(16, mean=(0.481, 0.4578, 0.4082), std=(0.2686, 0.2613, 0.2758))
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    expected = normalise(every[None], view)[0]
    assert torch.equal(ready(every, view), expected)


def test_a_picture_its_pixels_and_its_lossless_file_are_one_thing() -> None:
    image = photo()
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = ready(encoded(image, "PNG"))
    for source in (image, array, array.copy(), tensor, tensor.contiguous()):
        assert torch.equal(ready(source), expected)
    assert torch.equal(ready(array[:, ::-1]), ready(tensor.flip(2)))


def test_grey_pixels_are_rgb_with_three_equal_channels() -> None:
    grey = photo().convert("L")
    assert torch.equal(ready(np.asarray(grey)), ready(grey))
    assert torch.equal(ready(grey), ready(grey.convert("RGB")))


def test_floats_are_the_networks_input_as_they_are() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    assert torch.equal(ready(x), x)
    assert not ready(x).requires_grad
    for source in (x.detach().double().numpy(), x.detach().double()):
        found = ready(source, None)
        assert found.dtype == torch.float32
        assert torch.equal(found, x)


@pytest.mark.parametrize("source", [KINDS["rgb.png"], photo(), np.zeros((4, 4), np.uint8)])
def test_without_preprocessing_only_floats_will_do(source: Any) -> None:
    with pytest.raises(InputError, match="names no preprocessing: expected the network's input"):
        ready(source, None)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"Tensor torch.uint8 \(4, 5, 3\)"),
        (torch.zeros(3, 0, 3, dtype=torch.uint8), r"Tensor torch.uint8 \(3, 0, 3\)"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), r"Tensor torch.int64 \(3, 4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"ndarray uint8 \(3, 4, 5\)"),
        (np.zeros((4, 5, 3), np.int32), r"ndarray int32 \(4, 5, 3\)"),
        (np.zeros((4, 5), object), r"ndarray object \(4, 5\)"),
        (np.zeros((4, 5, 3), np.float32), r"ndarray float32 \(4, 5, 3\)"),
        (torch.zeros(3, 0, 3), r"Tensor torch.float32 \(3, 0, 3\)"),
        (12, "int"),
        (None, "NoneType"),
    ],
)
def test_other_things_are_refused_by_what_they_are(source: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"image (of type )?{found}: expected"):
        ready(source)


def test_samples_and_batches() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    assert samples(b"x") == ([b"x"], False)
    assert samples(("a.png", b"x")) == (["a.png", b"x"], True)
    assert samples([]) == ([], True)
    assert [len(samples(batch)[0]) for batch in (pixels, torch.from_numpy(pixels))] == [2, 2]
    assert samples(pixels)[1]
    assert not samples(pixels[0])[1]


@pytest.mark.parametrize("name", [name for name in KINDS if "moving" not in name])
def test_a_part_of_a_file_is_an_error_and_never_half_a_picture(name: str) -> None:
    whole = KINDS[name]
    for part in (0, 1, 12, len(whole) // 4, len(whole) // 2):
        with pytest.raises(DataError, match=r"^image of \d+ bytes cannot be decoded: [^\n]+$"):
            ready(whole[:part])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_for_files_of_ones_own(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(photo(16, 16), kind))
    with pytest.raises(DataError, match="not one of JPEG, PNG, WebP, BMP, GIF"):
        ready(path.read_bytes())
    assert torch.equal(ready(path), ready(photo(16, 16)))


@pytest.mark.parametrize("name", ["rgb.jpg", "rgb.png", "lossy.webp", "rgb.bmp", "still.gif"])
def test_pixels_are_counted_as_they_are_stored(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    for source in (KINDS[name], path, Image.open(path)):
        assert ready(source, max_pixels=960).shape == (3, 16, 16)
        with pytest.raises(TooLargeError, match="of 40 x 24 pixels: expected at most 959"):
            ready(source, max_pixels=959)


def test_very_long_pictures_are_too_large_however_narrow() -> None:
    with pytest.raises(TooLargeError, match="65535 a side"):
        ready(encoded(Image.new("1", (1, 65_536)), "PNG"))


def test_a_picture_that_is_not_read_yet_may_be_given_to_many_threads() -> None:
    expected = ready(Image.open(BytesIO(KINDS["rgb.png"])))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            lazy = Image.open(BytesIO(KINDS["rgb.png"]))
            assert all(torch.equal(x, expected) for x in pool.map(ready, [lazy] * 8))


@pytest.mark.skipif(
    sys.platform != "linux" or "AVX" not in torch.backends.cpu.get_cpu_capability(),
    reason="torch resizes in one thread only where it has its fast kernel",
)
def test_torch_starts_no_threads_for_an_image() -> None:
    image = np.zeros((900, 900, 3), np.uint8)
    usual, started = torch.get_num_threads(), []

    def count(work: Callable[[], object]) -> None:
        torch.set_num_threads(3)  # of this thread, and of threads to come
        before = len([*Path("/proc/self/task").iterdir()])
        work()
        started.append(len([*Path("/proc/self/task").iterdir()]) - before)

    try:
        for work in (
            lambda: ready(image, Preprocessing(400)),
            lambda: torch.zeros(4_000_000).div_(255),
        ):
            thread = threading.Thread(target=count, args=(work,))
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(usual)
    assert started[0] <= 0
    assert started[1] > 0, "counts no threads, so it could not fail"
