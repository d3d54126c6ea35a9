"""Where tasks are, under one budget of bytes: live copies of the network, packed bits, files on disk.

    dense    a live copy of the network holds the task: it answers at once
    packed   its bits are in memory: writing them into a live copy takes about as long as copying the weights
    disk     its file has to be read and decoded

What was not used for longest goes first. Packed bits are a thirtieth of a live copy and dearer to get
back, so room for them is made by giving up live copies, down to a share of the budget; below it
packed bits go. A copy in use, and bits that nobody has used since they were loaded, stay.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Generic, Literal, Protocol, TypeVar

from piggyback.errors import InputError
from piggyback.serving.answers import Tier

DENSE_SHARE = 0.25
"""Of the budget, which live copies need not give up for packed bits."""


class Sized(Protocol):
    """Something that takes memory."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""


Key = TypeVar("Key", bound=Hashable)
Packed = TypeVar("Packed", bound=Sized)
Copy = TypeVar("Copy", bound=Hashable)


class Tiers(Generic[Key, Packed, Copy]):
    """The tasks in memory, least recently used first; not safe for threads, the caller holds a lock.

    ``copies`` are the live copies at the start, one a worker at least; each takes ``copy_bytes``.
    Raises InputError where the budget has no room for them.
    """

    def __init__(self, budget: int, copies: Collection[Copy], copy_bytes: int) -> None:
        if budget < len(copies) * copy_bytes:
            raise InputError(
                f"memory {budget} bytes: expected at least {len(copies) * copy_bytes}, for {len(copies)} live "
                f"copies of {copy_bytes} bytes, one a worker; give more memory or fewer workers"
            )
        self.budget, self._copy_bytes = budget, copy_bytes
        self._least = len(copies)
        self._floor = max(self._least, int(DENSE_SHARE * budget) // max(copy_bytes, 1))
        self._packed: OrderedDict[Key, Packed] = OrderedDict()
        self._packed_bytes = 0
        self._unused: set[Key] = set()
        self._dense: OrderedDict[Key, Copy] = OrderedDict()
        self._free: list[Copy] = list(copies)
        self._pins: Counter[Copy] = Counter()
        self._copies = len(copies)
        self.evictions: Counter[Literal["dense", "packed"]] = Counter()

    # -- looking -------------------------------------------------------------------------------

    def tier(self, key: Key) -> Tier:
        """Return where a task is; a lookup or two, so it may be asked without the lock."""
        return "dense" if key in self._dense else "packed" if key in self._packed else "disk"

    def is_dense(self, key: Key) -> bool:
        """Return whether a live copy holds the task."""
        return key in self._dense

    def memory(self, key: Key) -> int:
        """Return the bytes that a task's packed form takes; 0 on disk."""
        packed = self._packed.get(key)
        return 0 if packed is None else packed.nbytes

    @property
    def nbytes(self) -> dict[Literal["dense", "packed"], int]:
        """Bytes of live copies and of packed tasks."""
        return {"dense": self._copies * self._copy_bytes, "packed": self._packed_bytes}

    @property
    def has_room_for_copy(self) -> bool:
        """Whether one more live copy fits beside what is in memory."""
        return (self._copies + 1) * self._copy_bytes + self._packed_bytes <= self.budget

    # -- packed tasks --------------------------------------------------------------------------

    def make_room(self, nbytes: int, wanted: Callable[[Key], bool]) -> bool | None:
        """Give up what was used least until ``nbytes`` more fit; True once they do.

        Bits that are ``wanted`` and were not used since they were loaded stay. False: all that could go is still to be
        used, so ask again later. None: there will never be room.
        """
        if self._least * self._copy_bytes + nbytes > self.budget:
            return None
        while self._copies * self._copy_bytes + self._packed_bytes + nbytes > self.budget:
            gone = self._drop_copy(self._floor) or self._drop_packed(wanted)
            if not (gone or self._drop_copy(self._least)):
                return False
        return True

    def put(self, key: Key, packed: Packed) -> None:
        """Hold a packed task, for which room was made; it stays until it was used once."""
        self.forget(key)
        self._packed[key] = packed
        self._packed_bytes += packed.nbytes
        self._unused.add(key)

    def forget(self, key: Key) -> None:
        """Drop a task's bits, and what a live copy holds of it unless that is in use."""
        packed = self._packed.pop(key, None)
        self._packed_bytes -= 0 if packed is None else packed.nbytes
        self._unused.discard(key)
        copy = self._dense.get(key)
        if copy is not None and not self._pins[copy]:
            self._free.append(self._dense.pop(key))

    # -- live copies ---------------------------------------------------------------------------

    def acquire(self, key: Key) -> tuple[Copy, Tier, Packed | None] | None:
        """Return a live copy to run the task on, where the task was, and what to write into the copy first.

        Nothing is to be written where the copy holds the task. The copy is the caller's to read until ``release``;
        others may read it too. None where the task is on disk.
        """
        copy = self._dense.get(key)
        fresh = key in self._unused
        self._unused.discard(key)
        if key in self._packed:
            self._packed.move_to_end(key)
        if copy is not None:
            self._dense.move_to_end(key)
            self._pins[copy] += 1
            return copy, "dense", None
        packed = self._packed.get(key)
        if packed is None:
            return None
        copy = self._free.pop() if self._free else self._dense.pop(self._idle())
        self._pins[copy] += 1
        return copy, "disk" if fresh else "packed", packed

    def wrote(self, key: Key, copy: Copy) -> None:
        """Note that ``copy`` holds the task now, for others to use as well."""
        self._dense.setdefault(key, copy)

    def release(self, key: Key, copy: Copy) -> None:
        """Give a live copy back; what it holds is kept if ``wrote`` was called for it."""
        self._pins[copy] -= 1
        if not self._pins[copy]:
            del self._pins[copy]
            if self._dense.get(key) is not copy:
                self._free.append(copy)

    def add_copy(self, copy: Copy) -> None:
        """Take one more live copy, for which there is room."""
        self._copies += 1
        self._free.append(copy)

    def counts(self) -> tuple[int, int]:
        """Return the number of tasks in live copies, and of those that are packed only."""
        return len(self._dense), sum(key not in self._dense for key in self._packed)

    def _idle(self) -> Key:
        """The task used longest ago among those whose copy nobody runs: there are more copies than workers."""
        return next(key for key, copy in self._dense.items() if not self._pins[copy])

    def _drop_copy(self, least: int) -> bool:
        if self._copies <= least:
            return False
        if self._free:
            self._free.pop()
        else:
            key = next((k for k, copy in self._dense.items() if not self._pins[copy]), None)
            if key is None:
                return False
            del self._dense[key]
            self.evictions["dense"] += 1
        self._copies -= 1
        return True

    def _drop_packed(self, wanted: Callable[[Key], bool]) -> bool:
        going = (key for key in self._packed if key not in self._unused or not wanted(key))
        key = next(going, None)
        if key is None:
            return False
        self._unused.discard(key)
        self._packed_bytes -= self._packed.pop(key).nbytes
        self.evictions["packed"] += 1
        return True
