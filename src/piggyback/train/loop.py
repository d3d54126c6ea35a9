"""The training loop: ``fit`` runs the epochs, ``_epoch`` its steps, ``one_step`` one of them.

``Run`` is a training under way and ``Progress`` where it stands; ``save`` and ``restore`` take both through a
checkpoint, at any step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from piggyback.errors import TrainingError
from piggyback.kinds import score_name
from piggyback.kinds.base import Kind, Loss, Score
from piggyback.masks.rule import lr_factor
from piggyback.texts.preprocessing import Prepares
from piggyback.train import checkpoint
from piggyback.train.checkpoint import CHECKPOINT, Checkpoint
from piggyback.train.data.batches import Batch, TrainBatches, serve
from piggyback.train.data.sets import ImageData, Split
from piggyback.train.data.size import size_of
from piggyback.train.device import Speed, agree_, processes, summed
from piggyback.train.evaluation import measure
from piggyback.train.events import EpochRow, Listener, Plan, Step
from piggyback.train.guard import Guard, guard_of
from piggyback.train.hashing import seed_of
from piggyback.train.logs import Curves, write_history
from piggyback.train.methods import Learned, Learner
from piggyback.train.mixing import mix_of, shared
from piggyback.train.recipe import Recipe

SAVES = 30
"""Checkpoints that a run writes at ends of epochs, at least where it has so many: epochs of tiny sets are one step."""
READ_EVERY = 10
"""Steps between two looks at the loss on an accelerator, where each look waits for it."""


@dataclass
class Progress:
    """Where a run is: everything that changes besides tensors."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch that runs."""
    loss: float = 0.0
    """Sum over the labels of the epoch that runs."""
    right: float = 0
    seen: int = 0
    """Labels: one per image, or one at each pixel that is not void."""
    images: int = 0
    train_seconds: float = 0.0
    """Spent in steps, over all resumes; of the epoch that runs, in ``epoch_seconds``."""
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    """Since the run began, over all resumes."""
    stopped: bool = False
    """Out of patience."""
    history: list[EpochRow] = field(default_factory=list)

    @property
    def best(self) -> EpochRow | None:
        """The best epoch so far: the last that was one when it ended."""
        return next((row for row in reversed(self.history) if row.best), None)

    @property
    def images_per_second(self) -> float:
        """Of the epoch that runs."""
        return self.images / max(self.epoch_seconds, 1e-9)

    def is_best(self, accuracy: float, count: int) -> bool:
        """Return whether an epoch with this val accuracy (percent) on ``count`` labels is the best so far.

        It is unless an earlier one was better by more than two standard errors of their difference: few val images
        tell epochs apart by chance, and the last ones, at the lowest rates, are the better ones otherwise.
        """
        top = max((row.val_accuracy for row in self.history), default=accuracy) / 100
        # All images right is no proof of certainty; an R2 may be below 0.
        share = (max(top, 0.0) * count + 1) / (count + 2)
        error = math.sqrt(2 * share * (1 - share) / max(count, 1))
        return accuracy / 100 >= top - 2 * error

    def end_epoch(self, row: EpochRow, patience: int | None, since: int = 0) -> None:
        """Move to the next epoch; patience counts from epoch ``since`` on, where the run last started over."""
        self.history.append(row)
        self.epoch, self.step = row.epoch, 0
        self.loss, self.right, self.seen = 0.0, 0, 0
        self.images, self.epoch_seconds = 0, 0.0
        recent = [past for past in self.history if past.epoch > since] or [row]
        top = max(past.val_accuracy for past in recent)
        reached = next(past.epoch for past in recent if past.val_accuracy == top)
        self.stopped = patience is not None and row.epoch - reached >= patience

    @staticmethod
    def from_json(values: dict[str, Any]) -> Progress:
        """Return what ``asdict`` made of one."""
        return Progress(**{**values, "history": [EpochRow(**row) for row in values["history"]]})


@dataclass
class Run:
    """One training under way."""

    name: str
    recipe: Recipe
    data: ImageData
    preprocessing: Prepares
    size_reason: str
    """Why images or texts have the size that ``preprocessing`` gives them."""
    learner: Learner
    speed: Speed
    device: torch.device
    identity: dict[str, Any]
    listener: Listener
    folder: Path | None = None
    progress: Progress = field(default_factory=Progress)
    best: Learned | None = None
    """What the best epoch left."""
    alone: Learned | None = None
    """The head that the guard trained, with the masks that the run began with."""
    guard: Guard | None = None
    """Of masks; None for other methods."""
    kind: Kind = field(kw_only=True)
    """What the outputs mean."""
    how: Loss = field(kw_only=True)
    """How the loss is computed."""
    resumed_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    saved_at: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.steps = len(self.batches(0))
        """Steps of one epoch."""

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return self.recipe.epochs_for(len(self.data.train))

    @property
    def at(self) -> int:
        """Steps made, of ``epochs * steps``."""
        return self.progress.epoch * self.steps + self.progress.step

    @property
    def checkpoint(self) -> Path | None:
        """Where checkpoints go."""
        return None if self.folder is None else self.folder / CHECKPOINT

    def batches(self, epoch: int) -> TrainBatches:
        """Return the batches of an epoch (from 0), this process's part."""
        state = processes()
        return TrainBatches(
            self.data.train,
            self.preprocessing,
            self.recipe.augment,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            epoch=epoch,
            sampling=self.recipe.sampling,
            rank=state.process_index,
            world=state.num_processes,
        )

    def measure(
        self, network: nn.Module, images: Split, kind: Kind | None = None, **options: Any
    ) -> Score:
        """Return how ``network`` does on ``images``, prepared and batched as in training; options of ``measure``."""
        return measure(
            network,
            images,
            self.preprocessing,
            kind or self.kind,
            device=self.device,
            batch_size=self.recipe.batch_size,
            workers=self.recipe.workers,
            **options,
        )

    def elapsed(self) -> float:
        """Return the seconds since the run began, over all resumes."""
        return self.resumed_seconds + time.perf_counter() - self.started

    def plan(self) -> Plan:
        """Return what a listener is told before the first step."""
        return Plan(
            name=self.name,
            method=self.recipe.method,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.recipe.batch_size,
            done_epochs=self.progress.epoch,
            done_steps=self.progress.step,
            amp=self.speed.amp,
            channels_last=self.speed.channels_last,
            size=size_of(self.preprocessing),
            size_reason=self.size_reason,
            what=self.data.train.what,
            counts={split: len(images) for split, images in self.data.splits().items()},
            classes=len(self.data.classes),
            cut=tuple(each.split for each in self.data.cut),
            score=score_name(self.kind.name),
            noun=self.kind.noun,
        )


def fit(run: Run) -> None:
    """Train from where the run stands to its end; ``run.best`` then holds the best epoch's result.

    Raises TrainingError when the loss is no longer a number; the last checkpoint is from before that.
    """
    recipe, progress = run.recipe, run.progress
    begins = run.at == 0
    if begins:
        if any(group.get("masked") for group in run.learner.optimizer.param_groups):
            run.listener.on_stage("training the head alone")
        run.guard = guard_of(run)
    network = _wrapped(run.learner.network, recipe)
    plan = run.plan()
    run.listener.on_start(plan)
    if run.guard is not None and begins and (told := _rate_line(run.guard, recipe)):
        run.listener.on_notice(told)
    folder = run.folder if processes().is_main_process else None
    curves = Curves(recipe, run.name, folder, plan)
    try:
        while progress.epoch < run.epochs and not progress.stopped:
            _epoch(run, network, curves)
            row = _end_epoch(run)
            share = [SAVES * epoch // run.epochs for epoch in (row.epoch - 1, row.epoch)]
            if share[0] < share[1] or progress.stopped or _due(run):
                save(run)
            curves.epoch(row)
            run.listener.on_epoch(row)
    finally:
        curves.close()


def _due(run: Run) -> bool:
    """Whether the last checkpoint is so old that the next does not wait for its turn."""
    return time.perf_counter() - run.saved_at >= 60 * run.recipe.checkpoint_minutes


def _rate_line(guard: Guard, recipe: Recipe) -> str:
    """What is said of the masks' rate: the derived one, or how far from it one that was given is."""
    given, factor = recipe.mask_lr, recipe.mask_rate
    if given is None:
        apart = f"the backbone's features alone score {100 * guard.skill:.0f} of 100"
        more = "" if factor == 1 else f", {factor:g} times the derived one"
        return f"{apart}: mask rate {factor * guard.derived:.2g}{more}"
    times = given / guard.derived
    if 0.5 < times < 2:
        return ""
    ratio = max(times, 1 / times)
    number = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"
    off = f"{number} times" if times > 1 else f"1/{number} of"
    return f"mask rate {given:.2g}: {off} the derived one, {guard.derived:.2g}"


def _epoch(run: Run, network: Callable[[Tensor], Any], curves: Curves) -> None:
    """Make the epoch's remaining steps."""
    recipe, progress, optimizer = run.recipe, run.progress, run.learner.optimizer
    run.learner.mode(training=True)
    total = run.epochs * run.steps
    read_every = 1 if run.device.type == "cpu" else READ_EVERY
    unread: list[Tensor] = []
    served = serve(
        run.batches(progress.epoch),
        start=progress.step,
        workers=recipe.workers,
        pin=run.device.type == "cuda",
    )
    clock = time.perf_counter()
    for batch in served:
        began = 0 if run.guard is None else run.guard.began
        factor = lr_factor(recipe.schedule, run.at - began, total - began, recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        # Dropout's random numbers are a function of the step too, so none have to be saved.
        torch.manual_seed(seed_of(recipe.seed, run.at, processes().process_index))
        unread.append(summed(one_step(run, network, batch)))
        progress.step += 1
        if progress.step % read_every and progress.step < run.steps:
            continue
        before = progress.loss, progress.seen
        loss = _read(run, unread)
        if run.guard is not None:
            news = run.guard.watch(
                run.learner, progress.loss - before[0], progress.seen - before[1], run.at, total
            )
            if news is not None:
                run.listener.on_notice(news)
        now = time.perf_counter()
        progress.train_seconds += now - clock
        progress.epoch_seconds += now - clock
        made = Step(
            epoch=progress.epoch + 1,
            step=progress.step,
            loss=loss,
            lr=optimizer.param_groups[0]["lr"],
            images_per_second=progress.images_per_second,
            seconds_left=progress.train_seconds / run.at * (total - run.at),
        )
        curves.step(made)
        run.listener.on_step(made)
        if progress.step < run.steps and _due(run):
            save(run)
        clock = time.perf_counter()


def one_step(run: Run, network: Callable[[Tensor], Any], batch: Batch) -> Tensor:
    """Make one optimizer step; return this process's (sum of losses, labels right, labels, images).

    An image has one label, or one at each pixel that is not void.
    """
    recipe, optimizer, kind = run.recipe, run.learner.optimizer, run.kind
    pixels, labels = (part.to(run.device, non_blocking=True) for part in batch)
    mix = mix_of(recipe, run.at, processes().process_index)
    (pixels, share), labels = mix.images(pixels), kind.targets(labels)
    others = labels.flip(0) if share < 1 else labels
    counted = kind.count(labels)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(4, device=run.device)
    parts = (part.chunk(recipe.accumulate) for part in (pixels, labels, others))
    for x_piece, y, other in zip(*parts, strict=True):
        x = run.speed.laid_out(run.preprocessing.network_input(x_piece))
        with run.speed.autocast(run.device):
            outputs = kind.outputs(network(x), y)
            of = partial(kind.training_losses, outputs, how=run.how)
            losses = shared(of, y, other, share)
        (losses / counted.clamp_min(1)).backward()  # type: ignore[no-untyped-call]
        right = shared(partial(kind.right, outputs.detach()), y, other, share)
        total[:2] += torch.stack([losses.detach(), right])
    total[2:] = torch.stack([counted, counted.new_tensor(len(labels))])
    if recipe.clip is not None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, recipe.clip)
    try:
        optimizer.step()
    except TrainingError as error:  # of gradients that are not finite, as those of such a loss
        run.progress.step += 1
        loss = float(total[0])
        why = str(error).partition(":")[0] if math.isfinite(loss) else f"the loss is {loss}"
        raise _diverged(run, why) from error
    return total


def _end_epoch(run: Run) -> EpochRow:
    """Measure on val, keep the result if it is the best, and move progress to the next epoch."""
    recipe, progress = run.recipe, run.progress
    run.learner.mode(training=False)
    agree_(run.learner.network.buffers())
    val = run.measure(run.learner.network, run.data.val, speed=run.speed)
    captured = run.learner.capture()
    better, best = progress.is_best(val.accuracy, val.count), progress.best
    if run.guard is not None and run.guard.behind and best is not None:
        better = better and val.loss <= best.val_loss  # few val images may not see a collapse
    if better:
        run.best = captured
        if run.guard is not None:
            run.guard.kept = run.guard.last
    row = EpochRow(
        epoch=progress.epoch + 1,
        train_loss=progress.loss / max(progress.seen, 1),
        train_accuracy=100 * progress.right / max(progress.seen, 1),
        val_loss=val.loss,
        val_accuracy=val.accuracy,
        density=captured.density,
        lr=run.learner.optimizer.param_groups[0]["lr"],
        images_per_second=progress.images_per_second,
        seconds=run.elapsed(),
        best=better,
    )
    since = 0 if run.guard is None else -(-run.guard.began // run.steps)
    waiting = run.guard is not None and run.guard.waiting
    progress.end_epoch(row, None if waiting else recipe.patience, since)
    return row


def _read(run: Run, unread: list[Tensor]) -> float:
    """Add what steps measured to progress; return the last loss, or raise if it is not finite."""
    progress = run.progress
    for loss, right, seen, images in torch.stack(unread).tolist():
        if not math.isfinite(loss):
            raise _diverged(run, f"the loss is {loss}")
        progress.loss += loss
        progress.right += right
        progress.seen += int(seen)
        progress.images += int(images)
        last = loss / max(seen, 1)
    unread.clear()
    return float(last)


def _wrapped(network: nn.Module, recipe: Recipe) -> Callable[[Tensor], Any]:
    if processes().num_processes > 1:
        network = DistributedDataParallel(network)
    return torch.compile(network) if recipe.compile else network


def save(run: Run) -> None:
    """Write checkpoint and logs, from the main process; TrainingError rather than keep NaN."""
    run.saved_at = time.perf_counter()
    place = run.checkpoint
    if place is None or not processes().is_main_process:
        return
    tensors = checkpoint.learner_tensors(run.learner)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _diverged(run, f"{name} is no longer finite")
    for part, learned in (("best", run.best), ("alone", run.alone)):
        if learned is not None:
            tensors |= {f"{part}/{name}": t for name, t in learned.flatten().items()}
    run.progress.seconds = run.elapsed()
    values = {**asdict(run.progress), "speed": asdict(run.speed)}
    if run.guard is not None:
        values["guard"] = run.guard.to_json()
        tensors |= {f"good/{name}": tensor for name, tensor in run.guard.good.items()}
    checkpoint.write(place, Checkpoint(run.identity, values, tensors))
    if not run.progress.step:
        write_history(place.parent, run.progress.history)


def restore(run: Run, saved: Checkpoint) -> None:
    """Put a run where ``saved`` was made; raises CheckpointError where tensors do not fit."""
    parts = checkpoint.by_part(saved.tensors)
    checkpoint.load_learner(run.learner, parts)
    values = {k: v for k, v in saved.progress.items() if k not in ("speed", "guard")}
    run.progress = Progress.from_json(values)
    if (guard := saved.progress.get("guard")) is not None:
        run.guard = Guard.from_json(guard, parts["good"])
        run.guard.resume(run.learner)
    run.resumed_seconds = run.progress.seconds
    if parts["best"]:
        run.best = run.learner.unflatten(parts["best"])
    if parts["alone"]:
        run.alone = run.learner.unflatten(parts["alone"])


def _diverged(run: Run, what: str) -> TrainingError:
    """Return the error that says what is no longer a number, since when, and what to try."""
    place = run.checkpoint
    kept = place if place is not None and place.exists() else "none"
    rates = ", ".join(f"{group['peak_lr']:g}" for group in run.learner.optimizer.param_groups)
    return TrainingError(
        f"{run.name}: {what} at epoch {run.progress.epoch + 1}, step {run.progress.step}; try lower "
        f"learning rates (peaks now {rates}) or clip; last good checkpoint: {kept}"
    )
