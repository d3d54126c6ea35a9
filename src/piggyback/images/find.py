"""Which files are images: by name alone, without torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from piggyback.errors import InputError

SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp",
        ".avif", ".jp2", ".j2k",
    }
)  # fmt: skip
"""File name endings, in lower case, that count as images; other files are passed over."""
_GLOB = frozenset("*?[")
_JUNK = frozenset(
    {
        "__macosx", "$recycle.bin", "lost+found", "thumb", "thumbs", "_thumbs", "thumbnails", "_gsdata_",
        "system volume information",
    }
)  # fmt: skip
"""Folders, in lower case, that programs leave behind; those that begin with ., @ or # are passed over, too."""
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})


def is_image_name(path: Path) -> bool:
    """Return whether ``path`` is named like an image and is not hidden.

    >>> is_image_name(Path("a/photo.JPG")), is_image_name(Path("a/._photo.jpg"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_images(
    folder: Path, left_out: Counter[str] | None = None, others: Iterable[str] = ()
) -> list[Path]:
    """Return all images under ``folder``, at any depth, sorted by path; ``left_out`` counts what else is there.

    Links are followed; of folders that are linked to each other each is read once, and those above ``folder`` and the
    real paths ``others`` are not.
    """
    left_out = Counter() if left_out is None else left_out
    found: list[Path] = []
    seen, top = set(others), os.path.realpath(folder)
    for here, inner, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in seen or (place != top and Path(top).is_relative_to(place)):
            left_out["link to a folder that is read elsewhere"] += 1
            inner.clear()
            continue
        seen.add(place)
        left_out.update(f"folder {name!r}" for name in inner if _is_junk(name))
        inner[:] = sorted(name for name in inner if not _is_junk(name))
        for name in files:
            file = Path(here, name)
            if is_image_name(file) and file.is_file():
                found.append(file)
            elif is_image_name(file):
                left_out["link that leads nowhere or no regular file"] += 1
            elif not name.startswith(".") and name.lower() not in _JUNK_FILES:
                kind = f"{file.suffix.lower()!r} file" if file.suffix else "file without a suffix"
                left_out[kind] += 1
    return sorted(found)


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly in one, by name, without those that programs leave behind."""
    return sorted(path for path in folder.iterdir() if not _is_junk(path.name) and path.is_dir())


def _is_junk(name: str) -> bool:
    return name.startswith((".", "@", "#")) or name.lower() in _JUNK


def find_images(inputs: Iterable[str | Path], *, missing: bool = False) -> list[Path]:
    """Return the image files that ``inputs`` name, each once: files, folders, glob patterns.

    Raises InputError for one that names none; with ``missing`` a file that is not there is returned, too.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            here = list_images(path)
        elif path.exists() or not _GLOB.intersection(str(given)):
            here = [path] if path.is_file() or (missing and not path.exists()) else []
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
