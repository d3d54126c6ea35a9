"""Where tasks are: the budget holds, what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from piggyback.errors import InputError
from piggyback.serve.scheduler.tiers import Tiers

COPY = 100


@dataclass(frozen=True)
class Packed:
    nbytes: int = 10


def tiers_with(budget: int, copies: int = 1) -> Tiers[str, Packed, str]:
    return Tiers(budget, [f"copy {i}" for i in range(copies)], COPY)


def put(tiers: Tiers[str, Packed, str], *keys: str, nbytes: int = 10) -> None:
    for key in keys:
        assert tiers.make_room(nbytes, lambda key: False)
        tiers.put(key, Packed(nbytes))


def run(tiers: Tiers[str, Packed, str], key: str) -> str:
    copy, tier, packed = tiers.acquire(key)
    if packed is not None:
        tiers.wrote(key, copy)
    tiers.release(key, copy)
    return tier


def test_a_task_is_on_disk_then_packed_then_dense():
    tiers = tiers_with(1000)
    assert tiers.tier("a") == "disk"
    with pytest.raises(KeyError):
        tiers.acquire("a")
    put(tiers, "a")
    assert tiers.tier("a") == "packed"
    assert run(tiers, "a") == "disk"  # for whoever waited for it, it was
    assert tiers.tier("a") == "dense"
    assert run(tiers, "a") == "dense"
    assert tiers.nbytes == {"dense": 100, "packed": 10}


def test_the_copy_that_was_used_longest_ago_is_written_over():
    tiers = tiers_with(1000, copies=2)
    put(tiers, "a", "b", "c")
    for key in ("a", "b", "a", "c"):
        run(tiers, key)
    assert [tiers.tier(key) for key in "abc"] == ["dense", "packed", "dense"]


def test_a_copy_in_use_is_not_written_over():
    tiers = tiers_with(1000, copies=2)
    put(tiers, "a", "b", "c")
    copy, _, _ = tiers.acquire("a")
    tiers.wrote("a", copy)
    run(tiers, "b")
    run(tiers, "c")
    assert [tiers.tier(key) for key in "abc"] == ["dense", "packed", "dense"]
    assert tiers.acquire("a")[0] == copy


def test_two_may_read_one_copy():
    tiers = tiers_with(1000, copies=2)
    put(tiers, "a", "b")
    run(tiers, "a")
    first, second = tiers.acquire("a"), tiers.acquire("a")
    assert first == second == (first[0], "dense", None)
    tiers.release("a", first[0])
    other = tiers.acquire("b")[0]
    assert other != first[0]


def test_a_copy_whose_writing_failed_holds_nothing():
    tiers = tiers_with(1000)
    put(tiers, "a", "b")
    run(tiers, "a")
    copy, _, _ = tiers.acquire("b")
    tiers.release("b", copy)
    assert [tiers.tier(key) for key in "ab"] == ["packed", "packed"]
    assert run(tiers, "a") == "packed"


class Clock:
    """Tells the seconds that a test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def two_copies_and_bits(clock: Clock, *, bits_used: float, copy_used: float) -> Tiers:
    """A full budget: ``a`` has bits that were used at one moment, ``b`` a copy of 100 bytes, used at another."""
    tiers = Tiers(240, ["copy"], COPY, clock)
    clock.now = bits_used
    put(tiers, "a", nbytes=10)
    run(tiers, "a")
    clock.now = copy_used
    put(tiers, "b", nbytes=10)
    tiers.add_copy("more")
    run(tiers, "b")
    put(tiers, "c", nbytes=20)
    return tiers


def test_a_live_copy_goes_before_bits_that_were_used_nearly_as_lately():
    clock = Clock()
    tiers = two_copies_and_bits(clock, bits_used=41.0, copy_used=99.0)
    clock.now = 100.0  # 59 s x 10 bytes against 6 x 1 s x 100 bytes
    assert tiers.make_room(20, lambda key: False)
    assert tiers.evictions == {"dense": 1}
    assert tiers.memory("a") > 0


def test_bits_that_nobody_asked_for_in_long_go_before_a_live_copy():
    clock = Clock()
    tiers = two_copies_and_bits(clock, bits_used=39.0, copy_used=99.0)
    clock.now = 100.0
    run(tiers, "c")
    assert tiers.make_room(10, lambda key: False)
    assert tiers.evictions == {"packed": 1}
    assert (tiers.memory("a"), tiers.tier("b")) == (0, "dense")


def test_the_first_copies_stay_whatever_is_asked_for():
    tiers = tiers_with(200, copies=1)
    put(tiers, *(str(i) for i in range(30)))
    assert tiers.nbytes == {"dense": 100, "packed": 100}
    assert tiers.evictions == {"packed": 20}


def test_bits_that_wait_for_their_first_use_stay():
    tiers = tiers_with(130, copies=1)
    put(tiers, "a", "b", "c")
    assert tiers.make_room(10, lambda key: key in "abc") is False
    run(tiers, "b")
    assert tiers.make_room(10, lambda key: key in "abc") is True
    assert [tiers.tier(key) for key in "ac"] == ["packed", "packed"]


def test_what_a_task_takes_in_its_copy_counts_too():
    tiers = tiers_with(400, copies=1)
    tiers.add_copy("more")
    put(tiers, "a", "b", nbytes=50)
    for key, extra in (("a", 40), ("b", 120)):
        copy, _, _ = tiers.acquire(key)
        tiers.wrote(key, copy, extra)
        tiers.release(key, copy)
    assert tiers.nbytes["dense"] == 360
    assert tiers.make_room(0, lambda key: False)
    assert sum(tiers.nbytes.values()) <= 400
    assert tiers.evictions["dense"] == 1


def test_what_can_never_fit_is_told_at_once():
    tiers = tiers_with(150, copies=1)
    put(tiers, "a")
    assert tiers.make_room(51, lambda key: False) is None
    assert tiers.tier("a") == "packed"


def test_too_little_memory_for_the_workers_is_an_error():
    with pytest.raises(InputError, match="expected at least 200"):
        tiers_with(199, copies=2)


def test_a_forgotten_task_is_nowhere_and_its_memory_is_free():
    tiers = tiers_with(1000)
    put(tiers, "a")
    run(tiers, "a")
    tiers.forget("a")
    tiers.forget("a")
    assert tiers.tier("a") == "disk"
    assert tiers.nbytes["packed"] == 0


def test_the_budget_holds_whatever_happens():
    rng = random.Random(7)
    tiers = tiers_with(1000, copies=2)
    sizes = {str(i): rng.randrange(1, 120) for i in range(60)}
    leased: list[tuple[str, str]] = []
    for step in range(20_000):
        key = rng.choice(list(sizes))
        if leased and (len(leased) == 2 or rng.random() < 0.5):
            tiers.release(*leased.pop(rng.randrange(len(leased))))
        elif tiers.tier(key) == "disk":
            if tiers.make_room(sizes[key], lambda key: False):
                tiers.put(key, Packed(sizes[key]))
        elif rng.random() < 0.02:
            tiers.forget(key)
        else:
            copy, _, packed = tiers.acquire(key)
            assert sum(copy == other for _, other in leased) == 0 or packed is None
            if packed is not None and rng.random() < 0.9:
                tiers.wrote(key, copy)
            leased.append((key, copy))
        if tiers.has_room_for_copy:
            tiers.add_copy(f"more {step}")
        assert sum(tiers.nbytes.values()) <= 1000
        held = sum(tiers.memory(key) for key in sizes)
        assert tiers.nbytes["packed"] == held
