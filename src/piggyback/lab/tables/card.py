"""Model cards: what a task file is, in Markdown, with the metadata by which the Hugging Face Hub lists it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from piggyback.taskfile.header import TaskHeader
from piggyback.taskfile.task import TaskInfo

_CLASSES = 50  # a card that lists a thousand is no card


def task_card(header: TaskHeader) -> str:
    """Return a card for a task file: what it does, what it needs, how it was made, how to run it.

    >>> from piggyback.taskfile.task import TaskInfo
    >>> print(task_card(TaskHeader("signs", TaskInfo(classes=("stop", "go")), ())))  # doctest: +ELLIPSIS
    ---
    library_name: torch-piggyback
    pipeline_tag: image-classification
    tags:
    - piggyback
    ---
    <BLANKLINE>
    # signs
    <BLANKLINE>
    A classification task for the frozen backbone `(not named)`: a head alone, 0 bytes.
    ...
    """
    info = header.info
    backbone = info.backbone.source or "(not named)"
    parts = [
        f"---\n{_metadata(header).to_yaml()}\n---",
        f"# {header.name}",
        f"A {info.kind} task for the frozen backbone `{backbone}`: {_size(header)}",
        _table(
            "Scores",
            {f"{split} {_measure(info)}": f"{v:.2f}%" for split, v in _scores(info).items()},
        ),
        _table("Needs", _needs(header)),
        _table("Made by", _made(info.provenance)),
        f"## Classes\n\n{_classes(info.classes)}",
        f"## Use\n\n```python\n{_code(header.name, info.backbone.source)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(header: TaskHeader) -> ModelCardData:
    """What the Hub reads: the library, the backbone where it is one of timm's there, the scores."""
    info, (prefix, _, name) = header.info, header.info.backbone.source.partition(":")
    task = "image-segmentation" if info.kind == "segmentation" else "image-classification"
    results = [
        EvalResult(
            task, header.name, header.name, _measure(info), round(value, 2), dataset_split=split
        )
        for split, value in _scores(info).items()
    ]
    return ModelCardData(
        base_model=f"timm/{name}" if prefix == "timm" else None,
        eval_results=results or None,
        library_name="torch-piggyback",
        model_name=header.name if results else None,
        pipeline_tag=task,
        tags=["piggyback"],
    )


def _size(header: TaskHeader) -> str:
    if not header.layers:
        return f"a head alone, {header.bytes_total:,} bytes."
    return (
        f"{header.weights:,} weights masked at {header.bits_per_weight:.3f} bits each, "
        f"{100 * header.density:.2f}% kept, {header.bytes_total:,} bytes in all."
    )


def _measure(info: TaskInfo) -> str:
    return "mean IoU" if info.kind == "segmentation" else "accuracy"


def _scores(info: TaskInfo) -> dict[str, float]:
    """Percent by split, as the file says."""
    found = {split: info.provenance.get(f"{split}_accuracy") for split in ("test", "val")}
    return {split: value for split, value in found.items() if isinstance(value, (int, float))}


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
