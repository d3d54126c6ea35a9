"""Model cards: what a task file is, in Markdown, with the metadata by which the Hugging Face Hub lists it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from piggyback.kinds import CARDS, score_name
from piggyback.names import plain
from piggyback.taskfile.header import TaskHeader
from piggyback.texts.preprocessing import TextPreprocessing

_CLASSES = 50  # listed; a thousand would bury the rest


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
    source = info.backbone.source
    measure = score_name(info.kind)
    found = {split: info.provenance.get(f"{split}_accuracy") for split in ("test", "val")}
    scores = {split: v for split, v in found.items() if isinstance(v, (int, float))}
    size = "a head alone"
    if header.layers:
        size = (
            f"{header.weights:,} weights masked at {header.bits_per_weight:.3f} bits each, "
            f"{100 * header.density:.2f}% kept"
        )
    needs = {
        "backbone": f"`{_plain(source) or '(not named)'}`",
        "fingerprint": f"`{info.backbone.fingerprint or 'none'}`",
        "head": info.head_kind,
    }
    seen = info.preprocessing
    if isinstance(seen, TextPreprocessing):
        needs["texts"] = f"at most {seen.max_length} tokens, {seen.family}"
        needs["tokenizer"] = f"`{seen.tokenizer}`"
    elif seen is not None:
        needs["images"] = f"{seen.image_size} x {seen.image_size}, {seen.interpolation}"
        needs["mean, std"] = f"{seen.mean}, {seen.std}"
    units = info.units or ("",) * len(info.classes)
    pairs = zip(info.classes[:_CLASSES], units, strict=False)
    named = ", ".join(_plain(f"{name} ({unit})" if unit else name) for name, unit in pairs)
    words = {"multilabel": "Labels", "regression": "Numbers", "tokens": "Tags"}.get(
        info.kind, "Classes"
    )
    more = len(info.classes) - _CLASSES
    parts = [
        f"---\n{_metadata(header, scores, measure).to_yaml()}\n---",
        f"# {header.name}",
        f"A {info.kind} task for the frozen backbone {needs['backbone']}: {size}, {header.bytes_total:,} bytes.",
        _table("Scores", {f"{split} {measure}": f"{v:.2f}%" for split, v in scores.items()}),
        _table("Needs", needs),
        _table("Made by", _made(info.provenance)),
        f"## {words}\n\n{len(info.classes)}: {named}" + (f" and {more} more" if more > 0 else ""),
        f"""## Use

```python
from piggyback import MultiTaskModel, load_backbone

model = MultiTaskModel(load_backbone({source or "..."!r})).eval()
model.load_task({header.name + ".safetensors"!r})
logits = model(images, task={header.name!r})
```""",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(header: TaskHeader, scores: Mapping[str, float], measure: str) -> ModelCardData:
    """What the Hub reads: the library, the backbone where it is one of timm's there, the scores."""
    prefix, _, name = header.info.backbone.source.partition(":")
    kind = CARDS.get(header.info.kind, "image-classification")
    results = [
        EvalResult(kind, header.name, header.name, measure, round(value, 2), dataset_split=split)
        for split, value in scores.items()
    ]
    return ModelCardData(
        base_model=f"timm/{name}" if prefix == "timm" else None,
        eval_results=results or None,
        library_name="torch-piggyback",
        model_name=header.name if results else None,
        pipeline_tag=kind,
        tags=["piggyback"],
    )


def _made(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of its training, which anybody may have written."""
    recipe, data, versions = (provenance.get(key) for key in ("recipe", "data", "versions"))
    made: dict[str, str] = {}
    if isinstance(data, Mapping) and isinstance(data.get("counts"), Mapping):
        made["images"] = ", ".join(f"{split} {n}" for split, n in data["counts"].items())
    if isinstance(recipe, Mapping):
        names = ("method", "epochs", "batch_size", "seed")
        made |= {name: str(recipe[name]) for name in names if name in recipe}
    if isinstance(versions, Mapping):
        made["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return made


def _table(title: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in values.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}"


def _plain(text: str) -> str:
    """A value from the file, which must not break the table or become markup."""
    return plain(" ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")
