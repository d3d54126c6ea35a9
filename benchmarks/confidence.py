"""What confidence is worth: calibration before and after, and foreign pictures refused, of task files on one backbone.

    python -m benchmarks.confidence limits=runs/limits.safetensors=small/limits/test ... --alike limits,signs

Each task is asked about its own test images (600 at most) and 200 of every other's. On one half of its own a
temperature is fitted and the confidence found that keeps 95 %; the other half is measured. Tasks that are ``alike``
share classes: their pictures are not foreign to each other. Two tables in Markdown go to standard output.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.networks import logits_of
from piggyback import MultiTaskModel, load_backbone
from piggyback.images.find import list_images
from piggyback.kinds.calibration import AbstainAt, fit_temperature, threshold_for
from piggyback.kinds.classification import confidence
from piggyback.kinds.metrics import calibration
from piggyback.taskfile.header import read_header

OWN, FOREIGN, KEPT = 600, 200, 0.95


def ask(places: Mapping[str, tuple[Path, Path]]) -> dict[str, NDArray[np.float32]]:
    """Return logits by TASK/SET, and each task's own labels as TASK/labels."""
    first = read_header(next(iter(places.values()))[0]).info
    model = MultiTaskModel(
        load_backbone(first.backbone.source, image_size=first.preprocessing.image_size)
    )
    model.eval()
    files, generator = {}, np.random.default_rng(0)
    for name, (file, folder) in places.items():
        model.load_task(file, name=name)
        found = list_images(folder)
        files[name] = [found[i] for i in generator.permutation(len(found))[:OWN]]
    logits = {}
    for name, (_, folder) in places.items():
        info = model.get_task(name).info
        for other, chosen in files.items():
            asked = chosen if other == name else chosen[:FOREIGN]
            logits[f"{name}/{other}"] = logits_of(model, name, asked).numpy()
        labels = [info.classes.index(f.relative_to(folder).parts[0]) for f in files[name]]
        logits[f"{name}/labels"] = np.array(labels)
    return logits


def tables(logits: Mapping[str, NDArray], names: Sequence[str], alike: set[frozenset[str]]) -> str:
    """Return both tables in Markdown."""
    first = ["| task | accuracy | T | error at T = 1 | error at T |", "|---|--:|--:|--:|--:|"]
    second = [
        f"| task | own kept | {' | '.join(names)} | mean |",
        "|---|" + "--:|" * (len(names) + 2),
    ]
    sums: list[tuple[float, float, float]] = []
    refused_all: list[tuple[float, float]] = []
    for name in names:
        z, labels = (
            torch.from_numpy(logits[f"{name}/{name}"]),
            torch.from_numpy(logits[f"{name}/labels"]),
        )
        half = len(z) // 2
        heat = fit_temperature(z[:half], labels[:half])
        right = (z[half:].argmax(1) == labels[half:]).numpy()
        before, after = (calibration(_chances(z[half:], t).max(1), right).ece for t in (1.0, heat))
        sums.append((before, after, float(right.mean())))
        first.append(
            f"| {name} | {_of(right.mean())} | {heat:.2f} | {_of(before)} | {_of(after)} |"
        )
        sure = confidence(z / heat).numpy()
        own = torch.from_numpy(sure[:half])
        least = threshold_for(own, own > 0, AbstainAt("coverage", KEPT))
        kept, cells = float((sure[half:] >= least).mean()), {}
        for other in names:
            if other != name and frozenset((name, other)) not in alike:
                foreign = torch.from_numpy(logits[f"{name}/{other}"])
                cells[other] = float((confidence(foreign / heat).numpy() < least).mean())
        mean = float(np.mean(list(cells.values())))
        refused_all.append((kept, mean))
        row = " | ".join(f"{100 * cells[o]:.0f}" if o in cells else "" for o in names)
        second.append(f"| {name} | {100 * kept:.0f} | {row} | {100 * mean:.0f} |")
    before, after, accuracy = np.mean(sums, 0)
    first.append(f"| mean | {_of(accuracy)} | | {_of(before)} | {_of(after)} |")
    kept, mean = np.mean(refused_all, 0)
    second.append(
        f"| mean | {100 * kept:.0f} | {' | '.join('' for _ in names)} | {100 * mean:.0f} |"
    )
    return "\n".join([*first, "", *second])


def _chances(logits: Tensor, temperature: float) -> NDArray[np.float64]:
    return np.asarray((logits.double() / temperature).softmax(1).numpy())


def _of(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", metavar="NAME=FILE=FOLDER")
    parser.add_argument("--alike", action="append", default=[], metavar="NAME,NAME")
    given = parser.parse_args()
    parts = [each.split("=") for each in given.tasks]
    places = {name: (Path(file), Path(folder)) for name, file, folder in parts}
    alike = {frozenset(pair.split(",")) for pair in given.alike}
    print(tables(ask(places), list(places), alike))


if __name__ == "__main__":
    main()
