"""Where tasks are, under one budget of bytes: live copies of the network, packed bits, files on disk.

    dense    a live copy of the network holds the task: it answers at once
    packed   its bits are in memory: writing them into a live copy takes about as long as copying the weights
    disk     its file has to be read and decoded

The least recently used goes first, weighted by bytes: of the live copy and of the packed bits that have waited longest,
the one that has taken more byte-seconds since its last use. A byte of bits counts for less, because bits are dearer to
get back. So forgotten tasks in memory make room for live copies, and live copies for tasks that are asked for now and
then. A copy in use stays, and so do bits that requests wait for and nobody has used since they were loaded.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from piggyback.errors import InputError
from piggyback.schemas import Tier
from piggyback.serve.replicas.copies import ModelCopy
from piggyback.serve.replicas.packed import PackedTask
from piggyback.serve.store.folder import Key

DEARER = 6.0
"""What loading a task takes, in writes into a live copy: 15 to 20 ms against 2 to 3 for EfficientNet-Lite0."""


@dataclass(eq=False)
class _Bits:
    packed: PackedTask
    unused: bool = True
    """Since they were loaded."""


class TaskCache:
    """The tasks in memory, least recently used first; not safe for threads, the caller holds a lock.

    ``copies`` are the live copies at the start, at least one per worker, which are never given up; each takes
    ``copy_bytes``. ``clock`` returns seconds. Raises InputError where the budget has no room for them.
    """

    def __init__(
        self,
        budget: int,
        copies: Collection[ModelCopy],
        copy_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if budget < len(copies) * copy_bytes:
            raise InputError(
                f"memory {budget} bytes: expected at least {len(copies) * copy_bytes}, for {len(copies)} live "
                f"copies of {copy_bytes} bytes, one per worker; give more memory or fewer workers"
            )
        self.budget, self._copy_bytes = budget, copy_bytes
        self._least, self._copies, self._clock = len(copies), len(copies), clock
        self._bits: OrderedDict[Key, _Bits] = OrderedDict()
        self._packed_bytes = 0
        self._dense: OrderedDict[Key, ModelCopy] = OrderedDict()
        self._used: dict[Key, float] = {}  # when, of every task in memory
        self._free: list[ModelCopy] = list(copies)
        self._pins: Counter[ModelCopy] = Counter()  # how many batches run on each copy
        self._extra: dict[ModelCopy, int] = {}  # bytes of each beyond ``copy_bytes``
        self.evictions: Counter[Literal["dense", "packed"]] = Counter()

    # -- state ---------------------------------------------------------------------------------

    def tier(self, key: Key) -> Tier:
        """Return where a task is; a lookup or two, so it may be asked without the lock."""
        return "dense" if key in self._dense else "packed" if key in self._bits else "disk"

    def is_dense(self, key: Key) -> bool:
        """Return whether a live copy holds the task."""
        return key in self._dense

    def memory(self, key: Key) -> int:
        """Return the bytes that a task's packed form takes; 0 on disk."""
        bits = self._bits.get(key)
        return 0 if bits is None else bits.packed.nbytes

    @property
    def nbytes(self) -> dict[Literal["dense", "packed"], int]:
        """Bytes of live copies and of packed tasks."""
        return {"dense": self._dense_bytes, "packed": self._packed_bytes}

    @property
    def has_room_for_copy(self) -> bool:
        """Whether one more live copy fits beside what is in memory."""
        return self._dense_bytes + self._copy_bytes + self._packed_bytes <= self.budget

    # -- packed tasks --------------------------------------------------------------------------

    def make_room(self, nbytes: int, wanted: Callable[[Key], bool]) -> bool | None:
        """Give up what is missed least until ``nbytes`` more fit; True once they do.

        Bits that are ``wanted`` and were not used since they were loaded stay. False: all that could go is still to be
        used, so ask again later. None: there will never be room.
        """
        if self._least * self._copy_bytes + nbytes > self.budget:
            return None
        while self._dense_bytes + self._packed_bytes + nbytes > self.budget:
            if not self._give_up(wanted):
                return False
        return True

    def put(self, key: Key, packed: PackedTask) -> None:
        """Hold a packed task, for which room was made."""
        self.forget(key)
        self._bits[key] = _Bits(packed)
        self._used[key] = self._clock()
        self._packed_bytes += packed.nbytes

    def forget(self, key: Key) -> bool:
        """Drop a task's bits, and what a live copy holds of it unless that is in use; True if nothing is left."""
        self._drop_bits(key)
        if key in self._dense and not self._pins[self._dense[key]]:
            self._free.append(self._dense.pop(key))
        self._tidy(key)
        return key not in self._dense

    # -- live copies ---------------------------------------------------------------------------

    def acquire(self, key: Key) -> tuple[ModelCopy, Tier, PackedTask | None]:
        """Return a live copy to run a task in memory on, where the task was, and what to write into the copy first.

        Nothing is to be written where the copy holds the task. The copy is the caller's to read until ``release``;
        others may read it too. Raises KeyError for a task on disk.
        """
        copy, bits = self._dense.get(key), self._bits.get(key)
        if copy is None and bits is None:
            raise KeyError(key)
        self._used[key] = self._clock()
        fresh = bits is not None and bits.unused
        if bits is not None:
            bits.unused = False
            self._bits.move_to_end(key)
        if copy is not None:
            self._dense.move_to_end(key)
            self._pins[copy] += 1
            return copy, "dense", None
        if self._free:
            copy = self._free.pop()
        else:
            last = next(self._idle())  # there is one: there are as many copies as workers
            copy = self._dense.pop(last)
            self._tidy(last)
        self._pins[copy] += 1
        return copy, "disk" if fresh else "packed", bits.packed if bits is not None else None

    def wrote(self, key: Key, copy: ModelCopy, extra: int = 0) -> None:
        """Note that ``copy`` holds the task now, for others to use as well; it takes ``extra`` bytes for that."""
        self._extra[copy] = extra
        self._dense.setdefault(key, copy)
        self._used.setdefault(key, self._clock())  # its bits may have gone meanwhile

    def release(self, key: Key, copy: ModelCopy) -> None:
        """Give a live copy back; what it holds is kept if ``wrote`` was called for it."""
        self._pins[copy] -= 1
        if not self._pins[copy]:
            del self._pins[copy]
            if self._dense.get(key) is not copy:
                self._free.append(copy)

    def add_copy(self, copy: ModelCopy) -> None:
        """Take one more live copy, for which there is room."""
        self._copies += 1
        self._free.append(copy)

    # -- inside --------------------------------------------------------------------------------

    def _give_up(self, wanted: Callable[[Key], bool]) -> bool:
        """Drop the copy or the bits that are missed least; False where none can go."""
        spare = self._copies > self._least
        if spare and self._free:
            self._drop_copy(self._free.pop())
            return True
        droppable = (key for key, bits in self._bits.items() if not (bits.unused and wanted(key)))
        packed, live = next(droppable, None), next(self._idle(), None) if spare else None
        if packed is not None and live is not None:
            now = self._clock()
            of_bits = (now - self._used[packed]) * self.memory(packed)
            of_copy = (now - self._used[live]) * self._copy_bytes
            if of_bits > DEARER * of_copy:
                live = None
        if live is not None:
            self._drop_copy(self._dense.pop(live))
            self.evictions["dense"] += 1
            self._tidy(live)
        elif packed is not None:
            self._drop_bits(packed)
            self.evictions["packed"] += 1
            self._tidy(packed)
        return live is not None or packed is not None

    @property
    def _dense_bytes(self) -> int:
        return self._copies * self._copy_bytes + sum(self._extra.values())

    def _drop_copy(self, copy: ModelCopy) -> None:
        self._copies -= 1
        self._extra.pop(copy, None)

    def _drop_bits(self, key: Key) -> None:
        if bits := self._bits.pop(key, None):
            self._packed_bytes -= bits.packed.nbytes

    def _idle(self) -> Iterator[Key]:
        """The tasks whose copy runs no batch, the one used longest ago first."""
        return (key for key, copy in self._dense.items() if not self._pins[copy])

    def _tidy(self, key: Key) -> None:
        if self.tier(key) == "disk":
            self._used.pop(key, None)
