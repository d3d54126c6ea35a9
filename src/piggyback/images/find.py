"""Which files are images: by name alone, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from piggyback.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that count as images; other files are passed over."""
_GLOB = frozenset("*?[")


def is_image_name(path: Path) -> bool:
    """Return whether ``path`` is named like an image and is not hidden.

    >>> is_image_name(Path("a/photo.JPG")), is_image_name(Path("a/._photo.jpg"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Return all images under ``folder``, at any depth, sorted by path."""
    return sorted(p for p in folder.rglob("*") if is_image_name(p) and p.is_file())


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the image files that ``inputs`` name, each once: files, folders, glob patterns.

    Raises InputError for one that names none.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            here = list_images(path)
        elif path.exists() or not _GLOB.intersection(str(given)):
            here = [path] if path.is_file() else []
        else:
            pattern = str(path.relative_to(path.anchor))
            here = sorted(match for match in Path(path.anchor).glob(pattern) if match.is_file())
        if not here:
            raise InputError(
                f"input {str(given)!r}: expected an image file, a folder with images, or a glob "
                "pattern that matches some; found none"
            )
        found.update(dict.fromkeys(here))
    if not found:
        raise InputError("no inputs: expected image files, folders or glob patterns")
    return list(found)
