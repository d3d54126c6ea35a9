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
from safetensors import SafetensorError
from safetensors.torch import load_file as load_tensors
from torch import Tensor, nn

from piggyback.errors import CheckpointError, first_line
from piggyback.kinds import kind_of
from piggyback.kinds.base import Collected
from piggyback.kinds.calibration import AbstainAt
from piggyback.model.summary import masks_verdict
from piggyback.strict_json import strict_json
from piggyback.taskfile.disk import write_file
from piggyback.taskfile.file import load
from piggyback.taskfile.task import Task, TaskInfo
from piggyback.train.checkpoint import check_identity
from piggyback.train.data.sets import merged_sketch
from piggyback.train.device import Speed, processes
from piggyback.train.events import EpochRow
from piggyback.train.loop import Run

RESULT = "result.json"
FITTED = ("thresholds", "calibration")
"""Fields of ``TaskInfo`` that are found on val at the end of a run."""
_IN_THE_FILE = ("task", "state", "path")
"""Fields that ``result.json`` leaves to the file beside it."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What ``train`` returns."""

    name: str
    method: str
    seed: int
    accuracy: float
    """The kind's score in percent, on test, of the best epoch's result; measured once, in float32."""
    val_accuracy: float
    """Percent, on val, by which the epoch was chosen."""
    seconds: float
    """From the start to the last epoch's end, over all resumes; without the test."""
    bytes: int
    """Of the task file, or of the file with the fine-tuned weights or the adapters."""
    bits_per_weight: float | None
    """Bytes of masks in the task file * 8 / masked weights; None for methods without masks."""
    verdict: str = ""
    """Of masks that masked nothing or collapsed, and gave way to the head alone: a line that says so and what to do."""
    images_per_second: float = 0.0
    """Trained, evaluation and checkpoints not counted."""
    task: Task | None = None
    """For the methods masks and head."""
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    """The whole state dict for the method finetune; adapters, head and trained normalisation for lora."""
    history: tuple[EpochRow, ...] = field(default=(), repr=False)
    path: Path | None = None
    """The file that was written, if any."""
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kind: str = "classification"
    """Of the task; ``score_name`` says what its accuracy is."""


def finish(run: Run) -> TrainResult:
    """Return the result of a trained run: its best epoch, measured on test and written out."""
    learned, best, progress = run.best, run.progress.best, run.progress
    if learned is None or best is None:
        raise CheckpointError(f"{run.name}: no epoch has ended; expected one or more")
    verdict = ""
    if learned.density is not None:
        verdict = run.guard.verdict(best) if run.guard else masks_verdict(learned.density)
    if run.guard is not None and run.alone is not None and run.guard.lost(best.val_loss):
        learned, best = (
            run.alone,
            replace(
                best,
                epoch=0,
                val_loss=run.guard.alone["val_loss"],
                val_accuracy=run.guard.alone["val_accuracy"],
            ),
        )
    network = learned.deploy()
    found, note = fitted(run, network)
    if note:
        run.listener.on_notice(note)
    exact = Speed(channels_last=run.speed.channels_last)
    test = run.measure(network, run.data.test, kind_of(found), speed=exact)
    provenance = _provenance(run, best, test.accuracy)
    if run.guard is not None:
        provenance["feature_skill"] = round(run.guard.skill, 4)
    if verdict:
        provenance["verdict"] = verdict
        run.listener.on_notice(verdict)
    if note:
        provenance["fitted"] = note
    named = {name: getattr(found, name) for name in FITTED if getattr(found, name)}
    file = learned.to_file(provenance, **named)
    path = None if run.folder is None else run.folder / f"{run.name}{file.suffix}.safetensors"
    result = TrainResult(
        name=run.name,
        method=run.recipe.method,
        seed=run.recipe.seed,
        accuracy=test.accuracy,
        val_accuracy=best.val_accuracy,
        seconds=progress.history[-1].seconds,
        bytes=len(file.data),
        bits_per_weight=file.bits_per_weight,
        verdict=verdict,
        images_per_second=provenance["images_per_second"],
        task=file.task,
        state=file.state,
        history=tuple(progress.history),
        path=path,
        provenance=provenance,
        kind=run.kind.name,
    )
    if path is not None and processes().is_main_process:
        _keep(run, result, path, file.data)
    processes().wait_for_everyone()
    return result


def fitted(run: Run, network: nn.Module) -> tuple[TaskInfo, str]:
    """Return what is known of the outputs once the best epoch is chosen, with what the kind fits on val, and a line."""
    info = replace(
        run.data.info(), scaling=run.kind.scaling
    )  # that of a task which it goes on from
    if not run.kind.fits:
        return info, ""
    at = None if run.recipe.abstain_at is None else AbstainAt.of(run.recipe.abstain_at)
    exact = Speed(channels_last=run.speed.channels_last)
    val = Collected(run.kind)
    run.measure(network, run.data.val, speed=exact, meter=val)
    return run.kind.fitted(info, val.outputs, val.targets, at)


def finished(folder: Path, identity: Mapping[str, Any] | None = None) -> TrainResult | None:
    """Return the result of a run that has ended in ``folder``, None where none has.

    Raises CheckpointError where it was another run than that of ``identity``, or its files are damaged.
    """
    place = folder / RESULT
    try:
        saved = strict_json(place.read_bytes())
        values, path = dict(saved["result"]), folder / saved["file"]
        values["history"] = tuple(EpochRow(**row) for row in values["history"])
        if identity is not None:
            recipe = saved["identity"]["recipe"]
            if recipe.get("image_size") is None:  # from before runs wrote down the size they took
                recipe["image_size"] = identity["recipe"]["image_size"]
            check_identity(place, saved["identity"], identity)
        if saved.get("state", values["method"] == "finetune"):  # absent in the first versions
            values["state"] = load_tensors(path)
        else:
            values["task"] = load(path.read_bytes())
        return TrainResult(**values, path=path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{str(place)!r} or the file it names is damaged: {first_line(error)}; delete it to train anew"
        ) from error


def _keep(run: Run, result: TrainResult, path: Path, data: bytes) -> None:
    """Write the file, then what says that the run has ended; then the checkpoint may go."""
    write_file(path, data)
    values = {name: value for name, value in vars(result).items() if name not in _IN_THE_FILE}
    values["history"] = [asdict(row) for row in result.history]
    text = {
        "result": values,
        "file": path.name,
        "state": result.state is not None,
        "identity": run.identity,
    }
    write_file(path.with_name(RESULT), json.dumps(text, indent=1))
    if run.checkpoint is not None:
        run.checkpoint.unlink(missing_ok=True)


def _provenance(run: Run, best: EpochRow, test_accuracy: float) -> dict[str, Any]:
    progress, batches = run.progress, run.batches(0)
    data, start = dict(run.identity["data"]), run.identity.get("from")
    if start is not None and start["learned_from"]:  # its images were learned from, too
        data["learned_from"] = merged_sketch(data["learned_from"], start["learned_from"])
    seen = len(progress.history) * len(batches) * batches.batch_size
    return {
        "data": data,
        **({} if start is None else {"from": {key: start[key] for key in ("name", "sha256")}}),
        "recipe": run.recipe.to_json(),
        "peak_lr": [group["peak_lr"] for group in run.learner.optimizer.param_groups],
        "steps_per_epoch": len(batches),
        "epochs": len(progress.history),
        "best_epoch": best.epoch,
        "val_accuracy": best.val_accuracy,
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
