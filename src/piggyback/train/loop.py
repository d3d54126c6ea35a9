"""The training loop: ``fit`` runs the epochs, ``_epoch`` its steps, ``one_step`` one of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from piggyback.images.decode import normalise
from piggyback.masks.rule import lr_factor
from piggyback.train.data.batches import Batch, serve
from piggyback.train.evaluation import class_of_each, logits_of, measure
from piggyback.train.events import EpochRow, Plan, Step
from piggyback.train.guard import guard_of
from piggyback.train.hashing import seed_of
from piggyback.train.processes import agree_, processes, summed
from piggyback.train.recipe import Recipe
from piggyback.train.run import Run, diverged, save

READ_EVERY = 10
"""Steps between two looks at the loss on an accelerator, where each look waits for it."""


def fit(run: Run) -> None:
    """Train from where the run stands to its end; ``run.best`` then holds the best epoch's result.

    Raises TrainingError when the loss is no longer a number; the last checkpoint is from before
    that.
    """
    recipe, progress = run.recipe, run.progress
    steps = len(run.batches(0))
    if not (progress.epoch or progress.step):
        run.listener.on_stage("training the head alone")
        run.guard = guard_of(
            run.learner, run.data.train, run.preprocessing, recipe, run.epochs * steps, run.speed
        )
    network = _wrapped(run.learner.network, recipe)
    run.listener.on_start(_plan(run, steps))
    if run.guard is not None and recipe.mask_lr is None and not (progress.epoch or progress.step):
        run.listener.on_notice(
            f"the backbone's features tell the classes apart by {100 * run.guard.skill:.0f} of 100: "
            f"mask rate {run.learner.optimizer.param_groups[0]['peak_lr']:.2g}"
        )
    for epoch in range(progress.epoch, run.epochs):
        if progress.stopped:
            break
        _epoch(run, network, epoch, steps)
        row = _end_epoch(run, epoch, steps)
        save(run)
        run.listener.on_epoch(row)


def _epoch(run: Run, network: Callable[[Tensor], Any], epoch: int, steps: int) -> None:
    """Make the epoch's remaining steps."""
    recipe, progress, optimizer = run.recipe, run.progress, run.learner.optimizer
    run.learner.mode(training=True)
    read_every = 1 if run.device.type == "cpu" else READ_EVERY
    unread: list[Tensor] = []
    served = serve(
        run.batches(epoch),
        start=progress.step,
        workers=recipe.workers,
        pin=run.device.type == "cuda",
    )
    clock = time.perf_counter()
    for batch in served:
        at = epoch * steps + progress.step
        factor = lr_factor(recipe.schedule, at, run.epochs * steps, recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        # Dropout's random numbers are a function of the step too, so none have to be saved.
        torch.manual_seed(seed_of(recipe.seed, at, processes().process_index))
        unread.append(summed(one_step(run, network, batch)))
        progress.step += 1
        if progress.step % read_every and progress.step < steps:
            continue
        before = progress.loss, progress.seen
        loss = _read(run, unread, epoch)
        if run.guard is not None:
            news = run.guard.watch(
                run.learner,
                progress.loss - before[0],
                progress.seen - before[1],
                (epoch * steps + progress.step) / (run.epochs * steps),
            )
            if news is not None:
                run.listener.on_notice(news)
        now = time.perf_counter()
        progress.train_seconds += now - clock
        progress.epoch_seconds += now - clock
        run.listener.on_step(_told(run, epoch, steps, loss))
        if now - run.saved_at >= 60 * recipe.checkpoint_minutes and progress.step < steps:
            save(run)
        clock = time.perf_counter()


def one_step(run: Run, network: Callable[[Tensor], Any], batch: Batch) -> Tensor:
    """Make one optimizer step; return this process's (sum of losses, labels right, labels, images).

    An image has one label, or one at each pixel that is not void.
    """
    recipe, optimizer, classes = run.recipe, run.learner.optimizer, len(run.data.classes)
    pixels, labels = (part.to(run.device, non_blocking=True) for part in batch)
    labels = class_of_each(labels)
    counted = (labels >= 0).sum()
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(4, device=run.device)
    pieces = zip(pixels.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True)
    for x_piece, y in pieces:
        x = normalise(x_piece, run.preprocessing)
        if run.speed.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(run.device.type, run.speed.dtype, enabled=run.speed.amp != "no"):
            logits = logits_of(network(x), classes, y.shape[1:]).float()
            losses = F.cross_entropy(
                logits, y, reduction="sum", label_smoothing=recipe.label_smoothing
            )
        (losses / counted.clamp_min(1)).backward()  # type: ignore[no-untyped-call]
        right = (logits.detach().argmax(1) == y).sum()
        total[:2] += torch.stack([losses.detach(), right])
    total[2:] = torch.stack([counted, counted.new_tensor(len(labels))])
    if recipe.clip is not None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, recipe.clip)
    optimizer.step()
    return total


def _end_epoch(run: Run, epoch: int, steps: int) -> EpochRow:
    """Measure on val, keep the result if it is the best, and move progress to the next epoch."""
    recipe, progress = run.recipe, run.progress
    run.learner.mode(training=False)
    agree_(run.learner.network.buffers())
    val = measure(
        run.learner.network,
        run.data.val,
        run.preprocessing,
        device=run.device,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        speed=run.speed,
    )
    better = progress.is_best(val.accuracy, val.count)
    captured = run.learner.capture()
    if better:
        run.best = captured
    row = EpochRow(
        epoch=epoch + 1,
        train_loss=progress.loss / max(progress.seen, 1),
        train_accuracy=100 * progress.right / max(progress.seen, 1),
        val_loss=val.loss,
        val_accuracy=val.accuracy,
        density=None if isinstance(captured, dict) or not captured.masks else captured.density,
        lr=run.learner.optimizer.param_groups[0]["lr"],
        images_per_second=progress.images / max(progress.epoch_seconds, 1e-9),
        seconds=run.elapsed(),
        best=better,
    )
    progress.history.append(row)
    progress.epoch, progress.step = epoch + 1, 0
    progress.loss, progress.right, progress.seen = 0.0, 0, 0
    progress.images, progress.epoch_seconds = 0, 0.0
    top = max(row.val_accuracy for row in progress.history)
    reached = next(row.epoch for row in progress.history if row.val_accuracy == top)
    progress.stopped = recipe.patience is not None and epoch + 1 - reached >= recipe.patience
    return row


def _read(run: Run, unread: list[Tensor], epoch: int) -> float:
    """Add what steps measured to progress; return the last loss, or raise if it is not finite."""
    progress = run.progress
    for loss, right, seen, images in torch.stack(unread).tolist():
        if not math.isfinite(loss):
            raise diverged(run, f"the loss is {loss}", epoch)
        progress.loss += loss
        progress.right += int(right)
        progress.seen += int(seen)
        progress.images += int(images)
        last = loss / max(seen, 1)
    unread.clear()
    return float(last)


def _wrapped(network: nn.Module, recipe: Recipe) -> Callable[[Tensor], Any]:
    if processes().num_processes > 1:
        network = DistributedDataParallel(network)
    return torch.compile(network) if recipe.compile else network


def _told(run: Run, epoch: int, steps: int, loss: float) -> Step:
    progress = run.progress
    done = epoch * steps + progress.step
    per_step = progress.train_seconds / done
    return Step(
        epoch=epoch + 1,
        step=progress.step,
        loss=loss,
        lr=run.learner.optimizer.param_groups[0]["lr"],
        images_per_second=progress.images / max(progress.epoch_seconds, 1e-9),
        seconds_left=per_step * (run.epochs * steps - done),
    )


def _plan(run: Run, steps: int) -> Plan:
    return Plan(
        name=run.name,
        method=run.recipe.method,
        epochs=run.epochs,
        steps=steps,
        batch_size=run.recipe.batch_size,
        done_epochs=run.progress.epoch,
        done_steps=run.progress.step,
        amp=run.speed.amp,
        channels_last=run.speed.channels_last,
        image_size=run.preprocessing.image_size,
        size_reason=run.size_reason,
        counts={split: len(images) for split, images in run.data.splits().items()},
    )
