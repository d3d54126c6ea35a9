"""How often the surest task is the right one, and what a threshold does: a Markdown table.

    python -m benchmarks.infer_task signs.safetensors=photos/signs dogs.safetensors=photos/dogs

Each pair is a task file and its images, whose folder ``test`` is taken if there is one. Every image is asked of all
tasks, and once more of all but its own, which is how often "none of these" would be the right answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.networks import logits_of
from piggyback.cli.loading import load_tasks
from piggyback.images.find import list_images
from piggyback.model.multitask import MultiTaskModel
from piggyback.model.routing import confidence

THRESHOLDS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="FILE=FOLDER")
    parser.add_argument("--images", type=int, default=300, help="of each task")
    args = parser.parse_args()
    files, folders = zip(*(pair.split("=", 1) for pair in args.pairs), strict=True)
    model = load_tasks([Path(file) for file in files], None, None, None)
    names = model.task_names
    sure = torch.cat([_confidences(model, Path(folder), args.images) for folder in folders])
    truth = torch.arange(len(names)).repeat_interleave(torch.tensor([args.images] * len(names)))
    _report(names, sure, truth)


def _confidences(model: MultiTaskModel, folder: Path, count: int) -> torch.Tensor:
    """(count, tasks): of evenly spaced images of one task."""
    images = list_images(folder / "test" if (folder / "test").is_dir() else folder)
    chosen = [images[at] for at in torch.linspace(0, len(images) - 1, count).long().tolist()]
    return torch.stack([confidence(logits_of(model, n, chosen)) for n in model.task_names], 1)


def _report(names: tuple[str, ...], sure: torch.Tensor, truth: torch.Tensor) -> None:
    best, which = sure.max(1)
    others = sure.scatter(1, truth[:, None], -1.0).max(1).values
    titles = (
        "at_least",
        "right task",
        "wrong task",
        "none",
        "right of those answered",
        "none, its task left out",
    )
    print(f"| {' | '.join(titles)} |\n|{'--:|' * len(titles)}")
    for threshold in THRESHOLDS:
        said, right = best >= threshold, which == truth
        shares = [
            (said & right).float().mean(),
            (said & ~right).float().mean(),
            (~said).float().mean(),
            (said & right).sum() / said.sum(),
            (others < threshold).float().mean(),
        ]
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        print(f"| {threshold:.1f} | {cells} |")
    for at, name in enumerate(names):
        print(f"{name}: {100 * (which[truth == at] == at).float().mean():.1f} % right")


if __name__ == "__main__":
    main()
