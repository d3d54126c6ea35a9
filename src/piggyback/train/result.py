"""What a run ends in: the task or the weights, the scores, and the files that keep them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from piggyback.errors import CheckpointError
from piggyback.model.summary import masks_verdict
from piggyback.taskfile import container
from piggyback.taskfile.file import load, save
from piggyback.taskfile.header import MASKS
from piggyback.taskfile.task import Task
from piggyback.train import checkpoint
from piggyback.train.evaluation import measure
from piggyback.train.events import EpochRow
from piggyback.train.logs import write_text
from piggyback.train.processes import processes
from piggyback.train.run import Run
from piggyback.train.speed import Speed

RESULT = "result.json"
_SUFFIX = {"lora": ".lora"}
"""Stands before ``.safetensors`` in files that are no task; ``.finetuned`` for a whole network."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What ``train`` returns."""

    name: str
    method: str
    seed: int
    accuracy: float
    """Percent, on test, of the best epoch's result; measured once, in float32."""
    val_accuracy: float
    """Percent, on val, by which the epoch was chosen."""
    seconds: float
    """From the start to the last epoch's end, over all resumes; without the test."""
    bytes: int
    """Of the task file, or of the file with the fine-tuned weights or the adapters."""
    bits_per_weight: float | None
    """Bytes of masks in the task file * 8 / masked weights; None for methods without masks."""
    verdict: str = ""
    """Of masks that masked nothing or collapsed: a line that says so and what to do."""
    images_per_second: float = 0.0
    """Trained, evaluation and checkpoints not counted."""
    task: Task | None = None
    """For the methods masks and head."""
    state: Mapping[str, Tensor] | None = None
    """The whole state dict for the method finetune; adapters, head and trained normalisation for lora."""
    history: tuple[EpochRow, ...] = ()
    path: Path | None = None
    """The file that was written, if any."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the result as a row of the comparison tables, plain JSON."""
        return {
            "task": self.name,
            "method": self.method,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "val_accuracy": self.val_accuracy,
            "bits_per_weight": self.bits_per_weight,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "verdict": self.verdict,
        }


def finish(run: Run) -> TrainResult:
    """Return the result of a trained run: its best epoch, measured on test and written out."""
    product, best = run.best, run.progress.best
    if product is None or best is None:
        raise CheckpointError(f"{run.name}: no epoch has ended; expected one or more")
    network = run.learner.deploy(product)
    test = measure(
        network,
        run.data.test,
        run.preprocessing,
        device=run.device,
        batch_size=run.recipe.batch_size,
        workers=run.recipe.workers,
        speed=Speed(channels_last=run.speed.channels_last),
    )
    provenance = _provenance(run, test.accuracy)
    verdict = ""
    if run.guard is not None:
        provenance["feature_skill"] = round(run.guard.skill, 4)
    if run.guard is not None and isinstance(product, Task):
        verdict = run.guard.verdict(product.density)
    elif isinstance(product, Task) and product.masks:
        verdict = masks_verdict(product.density)
    if verdict:
        provenance["verdict"] = verdict
        run.listener.on_notice(verdict)
    progress = run.progress
    result = TrainResult(
        name=run.name,
        method=run.recipe.method,
        seed=run.recipe.seed,
        accuracy=test.accuracy,
        val_accuracy=best.val_accuracy,
        seconds=progress.history[-1].seconds,
        bytes=0,
        bits_per_weight=None,
        verdict=verdict,
        images_per_second=provenance["images_per_second"],
        history=tuple(progress.history),
        provenance=provenance,
    )
    result, data = _packed(product, result, run.learner.notes)
    if run.folder is not None:
        result = replace(result, path=run.folder / _file_name(result))
        if processes().is_main_process:
            _keep(run, result, data)
    processes().wait_for_everyone()
    return result


def finished(folder: Path, identity: Mapping[str, Any]) -> TrainResult | None:
    """Return the result of a run that has ended in ``folder``, None where none has.

    Raises CheckpointError where it was another run, or its files are damaged.
    """
    place = folder / RESULT
    try:
        saved = json.loads(place.read_text(encoding="utf-8"))
        values = {**saved["result"], "path": folder / saved["file"]}
        values["history"] = tuple(EpochRow(**row) for row in values["history"])
        result = TrainResult(**values)
        recipe = saved["identity"]["recipe"]
        if recipe.get("image_size") is None:  # from before runs wrote down the size they took
            recipe["image_size"] = identity["recipe"]["image_size"]
        checkpoint.check_identity(place, saved["identity"], identity)
        if saved.get("state", result.method == "finetune"):  # absent before other methods had one
            return replace(result, state=load_tensors(folder / saved["file"]))
        return replace(result, task=load((folder / saved["file"]).read_bytes()))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{str(place)!r} is damaged: {error!r}; delete it to train anew"
        ) from error


def _packed(
    product: Task | dict[str, Tensor], result: TrainResult, notes: Mapping[str, Any]
) -> tuple[TrainResult, bytes]:
    """The result with what it holds and its sizes, and the bytes of its file."""
    if isinstance(product, dict):
        texts = {**notes, "provenance": result.provenance}
        metadata = {name: json.dumps(value) for name, value in texts.items()}
        data = tensor_bytes({name: t.contiguous().clone() for name, t in product.items()}, metadata)
        return replace(result, state=product, bytes=len(data)), data
    task = replace(product, info=replace(product.info, provenance=result.provenance)).to("cpu")
    data = save(task)
    bits = 8 * mask_bytes(data) / task.weights if task.weights else None
    return replace(result, task=task, bytes=len(data), bits_per_weight=bits), data


def _keep(run: Run, result: TrainResult, data: bytes) -> None:
    """Write the file, then what says that the run has ended; then the checkpoint may go."""
    if run.folder is None or result.path is None:
        return
    checkpoint.write_atomically(result.path, lambda temporary: _put(temporary, data))
    skip = ("task", "state", "history", "path")
    values = {k: v for k, v in vars(result).items() if k not in skip}
    values["history"] = [row.to_json() for row in result.history]
    text = {
        "result": values,
        "file": result.path.name,
        "state": result.state is not None,
        "identity": run.identity,
    }
    write_text(run.folder / RESULT, json.dumps(text, indent=1))
    if run.checkpoint is not None:
        run.checkpoint.unlink(missing_ok=True)


def mask_bytes(data: bytes) -> int:
    """Return the bytes of masks in the task file ``data``, with all that decodes them."""
    length = container.header_length(data[:8], len(data))
    entries = container.parse_header(data[8 : 8 + length], len(data))[1]
    return entries[MASKS].nbytes


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _file_name(result: TrainResult) -> str:
    suffix = _SUFFIX.get(result.method, ".finetuned") if result.state is not None else ""
    return f"{result.name}{suffix}.safetensors"


def _provenance(run: Run, test_accuracy: float) -> dict[str, Any]:
    progress, best = run.progress, run.progress.best
    seen = len(progress.history) * len(run.batches(0)) * run.batches(0).batch_size
    return {
        "data": run.identity["data"],
        "recipe": run.recipe.to_json(),
        "peak_lr": [group["peak_lr"] for group in run.learner.optimizer.param_groups],
        "steps_per_epoch": len(run.batches(0)),
        "epochs": len(progress.history),
        "best_epoch": None if best is None else best.epoch,
        "val_accuracy": None if best is None else best.val_accuracy,
        "test_accuracy": test_accuracy,
        "seconds": round(progress.history[-1].seconds, 1),
        "images_per_second": round(seen / max(progress.train_seconds, 1e-9), 1),
        "speed": asdict(run.speed),
        "machine": {
            "device": run.device.type,
            "processes": processes().num_processes,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "versions": {
            name: version(name) for name in ("torch-piggyback", "torch", "torchvision", "timm")
        },
    }
