"""What an image goes through before the backbone sees it; travels with every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from piggyback.errors import BackboneMismatchError, InputError, check_number

if TYPE_CHECKING:
    from torch import Tensor  # a file's header is read without it

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise an RGB image to a square: call it with one."""

    image_size: int = 224
    """Side of the square the network sees, in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of values in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    """1.0 resizes straight to the square; below, the short side is resized to image_size / crop_pct
    and the centre is cut out."""

    def __post_init__(self) -> None:
        if not (type(self.image_size) is int and 1 <= self.image_size <= 4096):
            raise InputError(f"image size {self.image_size!r}: expected 1 to 4096 pixels")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
            )
        check_number("crop_pct", self.crop_pct, lambda x: 0 < x <= 1, "a number in (0, 1]")
        for name, triple in (("mean", self.mean), ("std", self.std)):
            if len(triple) != 3:
                raise InputError(f"{name} {triple!r}: expected three finite numbers")
            for value in triple:
                check_number(name, value, math.isfinite, "three finite numbers")
        if not all(value > 0 for value in self.std):
            raise InputError(f"std {self.std!r}: expected three positive numbers")

    def __call__(self, image: Any) -> Tensor:
        """Return one image as the network takes it: float32 (3, s, s), the same for training, evaluation and serving.

        ``image`` is a path, encoded bytes, a PIL image, or a uint8 tensor (3, h, w). Raises DataError for a file that
        cannot be read, InputError for anything else.

        >>> import torch
        >>> Preprocessing(8)(torch.zeros(3, 20, 30, dtype=torch.uint8)).shape
        torch.Size([3, 8, 8])
        """
        from piggyback.images.decode import prepare

        return prepare(image, self)

    def network_input(self, pixels: Tensor) -> Tensor:
        """Return a batch of a loader, uint8 (n, 3, s, s), as the network takes it, float32."""
        from piggyback.images.decode import normalise

        return normalise(pixels, self)

    def collate(self, rows: Sequence[Tensor]) -> Tensor:
        """Return images, float32 (3, s, s) each, as a batch (n, 3, s, s)."""
        import torch

        return torch.stack(list(rows))

    def example(self) -> Tensor:
        """Return an empty image to try a network on, float32 (1, 3, s, s)."""
        import torch

        return torch.zeros(1, 3, self.image_size, self.image_size)

    def whole(self) -> Preprocessing:
        """Return how tasks see images: whole, without the border that a publisher cuts off for its own classes."""
        return replace(self, crop_pct=1.0)

    def bound(self, own: object, task: str, source: str = "") -> Preprocessing:
        """Return this; BackboneMismatchError where ``own``, the backbone's preprocessing, is one of texts."""
        if own is not None and not isinstance(own, Preprocessing):
            raise BackboneMismatchError(
                f"task {task!r} is on images, the backbone reads texts: load {source or 'the one it was learned on'}"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` reads them back."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Preprocessing:
        """Return the object that ``to_json`` wrote; raises InputError for anything else."""
        try:
            return Preprocessing(
                image_size=values["image_size"],
                mean=tuple(values["mean"]),
                std=tuple(values["std"]),
                interpolation=values["interpolation"],
                crop_pct=values["crop_pct"],
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"preprocessing: {error!r} in {dict(values)!r}") from error
