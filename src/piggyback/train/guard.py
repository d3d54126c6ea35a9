"""A guard over masks while they learn: they should not fall behind the head that learns alone.

    first        the frozen network's features of the training images are computed, once
                 they tell how far the task is from the backbone, and with that the masks' rate
                 a head is trained on them alone
    marks        twenty in a run: the mean training loss since the last is compared with that head's
    collapse     two marks in a row too far from the head, towards guessing: the run starts over with half
                 the rate, or the derived one if that is less, in the steps that are left; in its second
                 half it goes back to the last good mark instead; at most twice
    end          masks of the kept epoch that are too far from the head, and worse on val, give way to it

Masks collapse when many scores cross the threshold within a few steps, so that the network forgets what it knew. This
happens while the rate is high, and the marks before it are already heading there, which is why an early collapse goes
back to the start. A good state is live tensors and scores; the inner optimizer begins anew, without the momentum that
led there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from piggyback.masks.rule import lr_factor
from piggyback.model.distance import feature_skill, head_inputs, one_each
from piggyback.model.summary import masks_verdict
from piggyback.network.norm import is_transformer
from piggyback.train.checkpoint import by_part, learner_tensors, load_learner
from piggyback.train.data.batches import EvalBatches, serve
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import Split
from piggyback.train.device import agree_
from piggyback.train.events import EpochRow
from piggyback.train.hashing import balanced, shuffled
from piggyback.train.methods import Learner
from piggyback.train.mixing import mix_of, shared

if TYPE_CHECKING:
    from piggyback.train.loop import Run  # which uses a guard

MARKS = 20
FIRST = 3
"""The first mark that counts: before it, nothing has been learned that could be lost."""
IN_A_ROW = 2
TRIES = 2
MOST_IMAGES = 4096
"""Training images whose features are cached for the head; of more, so many drawn by the seed."""
MOST_ROWS = 1 << 16
"""Labels whose features are cached, where a sample has several."""
MOST_STEPS = 2000
"""Steps of the head alone; in a longer run they stand for all, since a head gains nothing by more."""
FEW = 0.01
"""Masks that drop a smaller share of the weights cannot be what a high loss comes from."""


@dataclass
class Guard:
    """Watches one run; everything but ``good`` is plain JSON."""

    head_loss: list[float]
    """Mean training loss of the head alone up to each mark, from the one before."""
    guess: float
    """Loss of guessing: of a classification the log of the number of classes."""
    skill: float = 0.0
    """How well the features tell the classes apart, see ``feature_skill``."""
    rate: float = 1.0
    """Factor of the masks' rate that follows from it."""
    derived: float = 0.0
    """The masks' peak rate that follows from the run and the task, whichever is used."""
    slack: float = 0.5
    """See ``Kind.slack``."""
    loss: float = 0.0
    """Sum over the labels since the last mark."""
    seen: int = 0
    last: float = 0.0
    """Mean loss at the last mark."""
    mark: int = 0
    """Marks passed."""
    behind: int = 0
    """Marks in a row that were collapsed."""
    stepped_back: int = 0
    """Times that the run stepped back or started over."""
    eased: float = 1.0
    """Factor of the masks' rate that came of that."""
    began: int = 0
    """The step at which the run last started over, and its mark."""
    began_mark: int = 0
    later: bool = False
    """Whether ``good`` is of the second half of the steps since then."""
    kept: float = 0.0
    """Mean loss at the last mark before the best epoch ended; 0: before the first."""
    alone: dict[str, float] = field(default_factory=dict)
    """The head alone on val: ``val_loss`` and ``val_accuracy``; empty where an older version began the run."""
    good: dict[str, Tensor] = field(default_factory=dict)
    """The start, or what a later mark left that was not collapsed."""

    @staticmethod
    def from_json(values: Mapping[str, Any], good: dict[str, Tensor]) -> Guard:
        """Return what ``to_json`` wrote, of an older version too, with its tensors."""
        values = dict(values)
        if (halved := values.pop("halved", None)) is not None:
            # An older version kept the last good mark, and halved the rate.
            values |= {"stepped_back": halved, "eased": 0.5**halved, "later": True}
        return Guard(**values, good=good)

    def to_json(self) -> dict[str, Any]:
        """Return all but the tensors as plain JSON."""
        return {key: value for key, value in vars(self).items() if key != "good"}

    @property
    def collapsed(self) -> bool:
        """Whether the last mark was too far from the head alone, towards guessing."""
        return self._judged and self._far(self.last, self.head_loss[self._own - 1])

    @property
    def waiting(self) -> bool:
        """Whether the masks are behind, or nobody knows yet, and may be taken back."""
        return (self.behind > 0 or not self._judged) and self.stepped_back < TRIES

    @property
    def _judged(self) -> bool:
        """Whether enough marks have passed for the last one to mean anything."""
        # Starting over, the rates rise in fewer steps, and the loss stays high for longer.
        return self._own >= (2 * FIRST if self.began_mark else FIRST)

    def _far(self, loss: float, alone: float) -> bool:
        """Whether ``loss`` is nearer to guessing than to the loss of the head alone."""
        head = min(alone, self.guess)
        # A head that is no better than guessing yet is no measure: then masks are behind it, or they are not.
        return loss > max(alone, head + self.slack * (self.guess - head))

    @property
    def _own(self) -> int:
        """Marks passed since the run last started over."""
        return self.mark - self.began_mark

    def watch(self, learner: Learner, loss: float, seen: int, step: int, steps: int) -> str | None:
        """Count steps whose losses add up to ``loss`` over ``seen`` labels; ``step`` of ``steps`` are made.

        Returns a line for people where it stepped back.
        """
        self.loss += loss
        self.seen += seen
        if (mark := MARKS * step // steps) <= self.mark or not self.seen:
            return None
        self.mark = mark
        self.last, self.loss, self.seen = self.loss / self.seen, 0.0, 0
        if not self.collapsed or _masked_out(learner) < FEW:
            self.behind = 0
            self.later = self._judged and self._own > (MARKS - self.began_mark) // 2
            if self.later:
                self.good = _state(learner)
            return None
        self.behind += 1
        if self.behind < IN_A_ROW or self.stepped_back == TRIES:
            return None
        # Too few steps may be left to start over in; a checkpoint of an older version may have no state to go back to.
        if not self.good or (not self.later and self.mark > MARKS - 2 * FIRST):
            return None
        head = self.head_loss[self._own - 1]
        self.behind = 0
        self.stepped_back += 1
        load_learner(learner, by_part(self.good))
        groups = learner.optimizer.param_groups
        peak = next(group["peak_lr"] for group in groups if group.get("masked"))
        factor = min(0.5, self.derived / peak) if self.derived else 0.5
        self.eased *= factor
        _scale_rate(learner, factor)
        if not self.later:
            self.began, self.began_mark = step, self.mark
        what = "back to the last good state" if self.later else "starting over"
        return (
            f"masks collapsed (training loss {self.last:.2f}, the head alone {head:.2f}): {what} with rate "
            f"{factor * peak:.2g} ({self.stepped_back} of at most {TRIES} times)"
        )

    def resume(self, learner: Learner) -> None:
        """Give a fresh learner the masks' rate that this guard's has."""
        _scale_rate(learner, self.rate * self.eased)

    def lost(self, val_loss: float) -> bool:
        """Return whether the best epoch, with this loss on val, is behind the head alone, which has had all steps."""
        far = self._far(self.kept or math.inf, self.head_loss[-1])
        return bool(self.alone) and far and val_loss > self.alone["val_loss"]

    def verdict(self, best: EpochRow) -> str:
        """Return what a run has to say of the masks of its best epoch: empty where they learned."""
        kept, lost = best.density or 0.0, self.lost(best.val_loss)
        if lost and (self.stepped_back or 1 - kept >= FEW):
            return (
                f"collapsed (val loss {best.val_loss:.2f}, the head alone {self.alone['val_loss']:.2f}): this is the "
                "head alone; train for more steps or at a lower mask rate"
            )
        return masks_verdict(1.0 if lost else kept)


def guard_of(run: Run) -> Guard | None:
    """Return the guard of a run that has not begun; None where there are no masks, or no head to hold them to."""
    learner, images, recipe, kind = run.learner, run.data.train, run.recipe, run.kind
    masked = any(group.get("masked") for group in learner.optimizer.param_groups)
    if not masked or learner.head is None or not isinstance(images, LabelledSet):
        return None
    if len(images) > MOST_IMAGES:
        chosen = shuffled(recipe.seed, 0, len(images))[:MOST_IMAGES]
        images = images.subset(chosen.sort().values)
    learner.mode(training=False)
    found = _features(run, learner.head, images)
    if found is None:
        return None
    features, labels, each = found
    steps = run.epochs * run.steps
    made = min(steps, MOST_STEPS)
    size = round(recipe.batch_size * each)
    alone, losses = _head_alone(run, learner.head, features, labels, made, size)
    wanted = kind.skill_targets(labels)
    skill = torch.tensor(
        feature_skill(features, labels if wanted is None else wanted), device=losses.device
    )
    agree_([losses, skill, *alone.parameters()])
    fresh = copy.deepcopy(learner.head.state_dict())
    learner.head.load_state_dict(alone.state_dict())
    run.alone = learner.capture()
    val = run.measure(learner.network, run.data.val, speed=run.speed)
    learner.head.load_state_dict(fresh)
    transformer = is_transformer(learner.network, "")
    derived, unknown = (
        recipe.derived_mask_lr(steps, at, transformer) for at in (float(skill), None)
    )
    rate = derived / unknown if recipe.mask_lr is None else 1.0
    _scale_rate(learner, rate)
    ends = [-(-made * (mark + 1) // MARKS) for mark in range(MARKS)]
    parts = [losses[max(end - max(made // MARKS, 1), 0) : end] for end in ends]
    means = [float(part.mean()) for part in parts]
    good = _state(learner)
    guard = Guard(means, kind.guess(labels), float(skill), rate, derived, kind.slack, good=good)
    guard.alone = {"val_loss": val.loss, "val_accuracy": val.accuracy}
    return guard


@torch.no_grad()
def _features(run: Run, head: nn.Module, images: Split) -> tuple[Tensor, Tensor, float] | None:
    """What reaches ``head`` for each label, float32 (n, ...), targets, and how many of them a sample has.

    They are on the head's device. None where the head is not called once a batch with a tensor of that batch.
    """
    rows: list[tuple[Tensor, Tensor]] = []
    samples = labels = 0
    network, kind = run.learner.network, run.kind
    device = next(network.parameters()).device
    batches = EvalBatches(images, run.preprocessing, batch_size=run.recipe.batch_size)
    with head_inputs(head) as seen:
        for pixels, truth in serve(batches, workers=run.recipe.workers):
            x = run.speed.laid_out(run.preprocessing.network_input(pixels.to(device)))
            with run.speed.autocast(device):
                network(x)
            if not one_each(seen, [truth]):
                return None
            rows.append(kind.rows(seen.pop().float(), kind.targets(truth.to(device))))
            samples, labels = samples + len(truth), labels + len(rows[-1][1])
            if labels >= MOST_ROWS:
                break
    features, targets = (torch.cat(part) for part in zip(*rows, strict=True))
    return features, targets, labels / samples


def _head_alone(
    run: Run, head: nn.Module, features: Tensor, labels: Tensor, steps: int, size: int
) -> tuple[nn.Module, Tensor]:
    """A copy of ``head``, trained as a run trains its own, on ``size`` labels, and its training loss at each step."""
    recipe, size = run.recipe, min(size, len(labels))
    alone = copy.deepcopy(head).float().train()
    optimizer = torch.optim.AdamW(alone.parameters(), weight_decay=recipe.weight_decay)
    losses = torch.zeros(steps, device=features.device)
    per_epoch = max(len(labels) // size, 1)
    for step in range(steps):
        epoch, batch = divmod(step, per_epoch)
        if not batch:
            order = (
                shuffled(recipe.seed, epoch, len(labels))
                if recipe.sampling is None
                else balanced(recipe.seed, epoch, labels.cpu()) % len(labels)
            ).to(labels.device)
        chosen = order[batch * size : (batch + 1) * size]
        rate = recipe.head_lr * lr_factor(recipe.schedule, step, steps, recipe.warmup)
        optimizer.param_groups[0]["lr"] = rate
        mix, y = mix_of(recipe, step), labels[chosen]  # features stand for the images
        logits = alone(mix.blended(features[chosen])).flatten(1)
        of = partial(run.kind.training_losses, logits, how=run.how)
        loss = shared(of, y, y.flip(0), mix.share) / size
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses[step] = loss.detach()
    return alone, losses


def _scale_rate(learner: Learner, factor: float) -> None:
    for group in learner.optimizer.param_groups:
        if group.get("masked"):
            group["peak_lr"] *= factor


def _masked_out(learner: Learner) -> float:
    """The share of masked weights whose live weight is 0."""
    held = [p for g in learner.optimizer.param_groups if g.get("masked") for p in g["params"]]
    dropped = sum(int((p == 0).sum()) for p in held)
    return dropped / max(sum(int(p.numel()) for p in held), 1)


def _state(learner: Learner) -> dict[str, Tensor]:
    """Copies of what a learner trains and of its scores."""
    return {
        name: tensor.detach().clone()
        for name, tensor in learner_tensors(learner).items()
        if name.startswith("live/") or name.endswith("/scores")
    }
