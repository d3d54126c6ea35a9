"""Task cards: what a task file is, in Markdown, for the page or the mail it is sent with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piggyback.taskfile.header import TaskHeader
from piggyback.taskfile.task import TaskInfo

_CLASSES = 50  # a card that lists a thousand is no card


def task_card(header: TaskHeader) -> str:
    """Return a card for a task file: what it does, what it needs, how it was made, how to run it.

    >>> from piggyback.taskfile.task import TaskInfo
    >>> task_card(TaskHeader("signs", TaskInfo(classes=("stop", "go")), ())).splitlines()[0]
    '# signs'
    """
    info = header.info
    backbone = info.backbone.source or "(not named)"
    parts = [
        f"# {header.name}",
        f"A {info.kind} task for the frozen backbone `{backbone}`: {_size(header)}",
        _table("Scores", _scores(info)),
        _table("Needs", _needs(header)),
        _table("Made by", _made(info.provenance)),
        f"## Classes\n\n{_classes(info.classes)}",
        f"## Use\n\n```python\n{_code(header.name, info.backbone.source)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _size(header: TaskHeader) -> str:
    if not header.layers:
        return f"a head alone, {header.bytes_total:,} bytes."
    return (
        f"{header.weights:,} weights masked at {header.bits_per_weight:.3f} bits each, "
        f"{100 * header.density:.2f}% kept, {header.bytes_total:,} bytes in all."
    )


def _scores(info: TaskInfo) -> dict[str, str]:
    found = {}
    measure = "mean IoU" if info.kind == "segmentation" else "accuracy"
    for split in ("test", "val"):
        if isinstance(value := info.provenance.get(f"{split}_accuracy"), (int, float)):
            found[f"{split} {measure}"] = f"{value:.2f}%"
    return found


def _needs(header: TaskHeader) -> dict[str, str]:
    info = header.info
    needs = {
        "backbone": f"`{info.backbone.source or '(not named)'}`",
        "fingerprint": f"`{info.backbone.fingerprint or 'none'}`",
        "head": info.head_kind,
    }
    if info.preprocessing is not None:
        values = info.preprocessing
        needs["images"] = f"{values.image_size} x {values.image_size}, {values.interpolation}"
        needs["mean, std"] = f"{values.mean}, {values.std}"
    return needs


def _made(provenance: Mapping[str, Any]) -> dict[str, str]:
    recipe, data = provenance.get("recipe"), provenance.get("data")
    made: dict[str, str] = {}
    if isinstance(data, Mapping) and isinstance(data.get("counts"), Mapping):
        made["images"] = ", ".join(f"{split} {n}" for split, n in data["counts"].items())
    if isinstance(recipe, Mapping):
        names = ("method", "epochs", "batch_size", "seed")
        made |= {name: str(recipe[name]) for name in names if name in recipe}
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        made["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return made


def _classes(classes: tuple[str, ...]) -> str:
    listed = ", ".join(_plain(name) for name in classes[:_CLASSES])
    more = len(classes) - _CLASSES
    return f"{len(classes)}: {listed}" + (f" and {more} more" if more > 0 else "")


def _table(title: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in values.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}"


def _plain(text: str) -> str:
    """A value from the file, which must not break the table or become markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(name: str, source: str) -> str:
    return (
        "from piggyback import MultiTaskModel, load_backbone\n\n"
        f"model = MultiTaskModel(load_backbone({source or '...'!r})).eval()\n"
        f"model.load_task({name + '.safetensors'!r})\n"
        f"logits = model(images, task={name!r})"
    )
