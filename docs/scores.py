"""Draws docs/scores.png: scores that gradients push, and scores that noise moves, towards the threshold.

python docs/scores.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from piggyback.masks.rule import MARGIN, lr_factor, mask_lr

THRESHOLD = 5e-3


def walk(steps: int, mean: float, count: int, seed: int) -> np.ndarray:
    """Scores of ``count`` weights, (steps + 1, count): a mean gradient in standard deviations of its noise."""
    rng = np.random.default_rng(seed)
    peak = mask_lr(steps)
    rates = np.array([peak * lr_factor("cosine", t, steps, 0.3) for t in range(steps)])
    moves = rates[:, None] * rng.normal(mean, 1.0, (steps, count))
    start = np.full((1, count), THRESHOLD + MARGIN)
    return np.concatenate([start, start - moves.cumsum(0)])


def main() -> None:
    """Write the picture beside this file."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, steps in zip(panels, (120, 960), strict=True):
        for mean, colour, label in (
            (0.0, "0.6", "noise alone"),
            (0.15, "tab:blue", "a signal of 0.15"),
        ):
            scores = walk(steps, mean, 4000, seed=0)
            axes.plot(scores[:, :12], color=colour, linewidth=0.7, alpha=0.8)
            dropped = 100 * (scores[-1] <= THRESHOLD).mean()
            axes.plot([], color=colour, label=f"{label}: {dropped:.0f} % dropped")
        axes.axhline(THRESHOLD, color="tab:red", linewidth=1.2)
        axes.text(0.01 * steps, THRESHOLD - 6e-4, "threshold", color="tab:red", va="top")
        axes.set_title(f"{steps} steps at {mask_lr(steps):.1e}")
        axes.set_xlabel("step")
        axes.legend(loc="lower left", frameon=False)
    panels[0].set_ylabel("score")
    panels[0].set_ylim(-0.04, 0.03)
    figure.savefig(Path(__file__).with_name("scores.png"), dpi=110)


if __name__ == "__main__":
    main()
