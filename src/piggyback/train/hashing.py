"""Random numbers that are a pure function of their place: (seed, epoch, index) -> u in [0, 1).

Nothing is drawn from a stream, so nothing has to be saved: workers, the number of processes and a resume in mid-epoch
cannot change what a sample gets. The mixing function is SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BALANCED = 1 << 34  # keeps the order of classes apart from the samples'


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output for each state in ``values``; same shape.

    >>> hex(int(mix(np.array([0], dtype=np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def uniforms(
    seed: int, epoch: int, indices: npt.NDArray[np.int64] | npt.NDArray[np.uint64], count: int
) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1) for each index: float64 (len(indices), count).

    >>> a, b = uniforms(0, 3, np.arange(10), 2), uniforms(0, 3, np.array([7]), 2)
    >>> bool((a[7] == b[0]).all())
    True
    """
    key = mix(mix(_state(seed)) ^ _state(epoch))
    rows = mix(key ^ indices.astype(np.uint64))
    cells = mix(rows[:, None] ^ np.arange(count, dtype=np.uint64)[None, :])
    numbers: npt.NDArray[np.float64] = (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def seed_of(*parts: int) -> int:
    """Return one 63-bit seed made of several integers, for a generator that needs one.

    >>> seed_of(1, 2) == seed_of(2, 1)
    False
    """
    state = _state(0)
    for part in parts:
        state = mix(state ^ _state(part))
    return int(state[0] >> np.uint64(1))


def shuffled(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of ``n`` samples in an epoch, int64 (n,)."""
    order = np.argsort(uniforms(seed, epoch, np.arange(n), 1)[:, 0], kind="stable")
    return torch.from_numpy(order)


def balanced(seed: int, epoch: int, labels: Tensor) -> Tensor:
    """Return an order of n samples in which all classes of ``labels``, int64 (n,), come equally often, int64 (n,).

    The number v stands for sample v % n; v // n counts how often it came before, in an epoch.

    >>> labels = torch.tensor([0] * 9 + [1])
    >>> labels[balanced(0, 0, labels) % 10].bincount()
    tensor([5, 5])
    """
    n, order = len(labels), shuffled(seed, epoch, len(labels))
    counts = [count for count in torch.bincount(labels).tolist() if count]
    each = torch.arange(-(-n // len(counts)))
    parts = torch.split(order[labels[order].argsort(stable=True)], counts)
    pool = torch.cat([part[each % len(part)] + n * (each // len(part)) for part in parts])
    return pool[shuffled(seed, epoch + _BALANCED, len(pool))][:n]


def _state(value: int) -> npt.NDArray[np.uint64]:
    return np.array([value % 2**64], dtype=np.uint64)
