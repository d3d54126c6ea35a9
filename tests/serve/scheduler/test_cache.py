"""Where tasks are: the budget holds, what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from piggyback.errors import InputError
from piggyback.serve.scheduler.cache import TaskCache

COPY = 100


@dataclass(frozen=True)
class Packed:
    nbytes: int = 10


def cache_with(budget: int, copies: int = 1) -> TaskCache:
    return TaskCache(budget, [f"copy {i}" for i in range(copies)], COPY)


def put(cache: TaskCache, *keys: str, nbytes: int = 10) -> None:
    for key in keys:
        assert cache.make_room(nbytes, lambda key: False)
        cache.put(key, Packed(nbytes))


def run(cache: TaskCache, key: str) -> str:
    copy, tier, packed = cache.acquire(key)
    if packed is not None:
        cache.wrote(key, copy)
    cache.release(key, copy)
    return tier


def test_a_task_is_on_disk_then_packed_then_dense():
    cache = cache_with(1000)
    assert cache.tier("a") == "disk"
    with pytest.raises(KeyError):
        cache.acquire("a")
    put(cache, "a")
    assert cache.tier("a") == "packed"
    assert run(cache, "a") == "disk"  # for whoever waited for it, it was
    assert cache.tier("a") == "dense"
    assert run(cache, "a") == "dense"
    assert cache.nbytes == {"dense": 100, "packed": 10}


def test_the_copy_that_was_used_longest_ago_is_written_over():
    cache = cache_with(1000, copies=2)
    put(cache, "a", "b", "c")
    for key in ("a", "b", "a", "c"):
        run(cache, key)
    assert [cache.tier(key) for key in "abc"] == ["dense", "packed", "dense"]


def test_a_copy_in_use_is_not_written_over():
    cache = cache_with(1000, copies=2)
    put(cache, "a", "b", "c")
    copy, _, _ = cache.acquire("a")
    cache.wrote("a", copy)
    run(cache, "b")
    run(cache, "c")
    assert [cache.tier(key) for key in "abc"] == ["dense", "packed", "dense"]
    assert cache.acquire("a")[0] == copy


def test_two_may_read_one_copy():
    cache = cache_with(1000, copies=2)
    put(cache, "a", "b")
    run(cache, "a")
    first, second = cache.acquire("a"), cache.acquire("a")
    assert first == second == (first[0], "dense", None)
    cache.release("a", first[0])
    other = cache.acquire("b")[0]
    assert other != first[0]


def test_a_copy_whose_writing_failed_holds_nothing():
    cache = cache_with(1000)
    put(cache, "a", "b")
    run(cache, "a")
    copy, _, _ = cache.acquire("b")
    cache.release("b", copy)
    assert [cache.tier(key) for key in "ab"] == ["packed", "packed"]
    assert run(cache, "a") == "packed"


class Clock:
    """Tells the seconds that a test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def two_copies_and_bits(clock: Clock, *, bits_used: float, copy_used: float) -> TaskCache:
    """A full budget: ``a`` has bits that were used at one moment, ``b`` a copy of 100 bytes, used at another."""
    cache = TaskCache(240, ["copy"], COPY, clock)
    clock.now = bits_used
    put(cache, "a", nbytes=10)
    run(cache, "a")
    clock.now = copy_used
    put(cache, "b", nbytes=10)
    cache.add_copy("more")
    run(cache, "b")
    put(cache, "c", nbytes=20)
    return cache


def test_a_live_copy_goes_before_bits_that_were_used_nearly_as_lately():
    clock = Clock()
    cache = two_copies_and_bits(clock, bits_used=41.0, copy_used=99.0)
    clock.now = 100.0  # 59 s x 10 bytes against 6 x 1 s x 100 bytes
    assert cache.make_room(20, lambda key: False)
    assert cache.evictions == {"dense": 1}
    assert cache.memory("a") > 0


def test_bits_that_nobody_asked_for_in_long_go_before_a_live_copy():
    clock = Clock()
    cache = two_copies_and_bits(clock, bits_used=39.0, copy_used=99.0)
    clock.now = 100.0
    run(cache, "c")
    assert cache.make_room(10, lambda key: False)
    assert cache.evictions == {"packed": 1}
    assert (cache.memory("a"), cache.tier("b")) == (0, "dense")


def test_the_first_copies_stay_whatever_is_asked_for():
    cache = cache_with(200, copies=1)
    put(cache, *(str(i) for i in range(30)))
    assert cache.nbytes == {"dense": 100, "packed": 100}
    assert cache.evictions == {"packed": 20}


def test_bits_that_wait_for_their_first_use_stay():
    cache = cache_with(130, copies=1)
    put(cache, "a", "b", "c")
    assert cache.make_room(10, lambda key: key in "abc") is False
    run(cache, "b")
    assert cache.make_room(10, lambda key: key in "abc") is True
    assert [cache.tier(key) for key in "ac"] == ["packed", "packed"]


def test_what_a_task_takes_in_its_copy_counts_too():
    cache = cache_with(400, copies=1)
    cache.add_copy("more")
    put(cache, "a", "b", nbytes=50)
    for key, extra in (("a", 40), ("b", 120)):
        copy, _, _ = cache.acquire(key)
        cache.wrote(key, copy, extra)
        cache.release(key, copy)
    assert cache.nbytes["dense"] == 360
    assert cache.make_room(0, lambda key: False)
    assert sum(cache.nbytes.values()) <= 400
    assert cache.evictions["dense"] == 1


def test_what_can_never_fit_is_told_at_once():
    cache = cache_with(150, copies=1)
    put(cache, "a")
    assert cache.make_room(51, lambda key: False) is None
    assert cache.tier("a") == "packed"


def test_too_little_memory_for_the_workers_is_an_error():
    with pytest.raises(InputError, match="expected at least 200"):
        cache_with(199, copies=2)


def test_a_forgotten_task_is_nowhere_and_its_memory_is_free():
    cache = cache_with(1000)
    put(cache, "a")
    run(cache, "a")
    cache.forget("a")
    cache.forget("a")
    assert cache.tier("a") == "disk"
    assert cache.nbytes["packed"] == 0


def test_the_budget_holds_whatever_happens():
    rng = random.Random(7)
    cache = cache_with(1000, copies=2)
    sizes = {str(i): rng.randrange(1, 120) for i in range(60)}
    leased: list[tuple[str, str]] = []
    for step in range(20_000):
        key = rng.choice(list(sizes))
        if leased and (len(leased) == 2 or rng.random() < 0.5):
            cache.release(*leased.pop(rng.randrange(len(leased))))
        elif cache.tier(key) == "disk":
            if cache.make_room(sizes[key], lambda key: False):
                cache.put(key, Packed(sizes[key]))
        elif rng.random() < 0.02:
            cache.forget(key)
        else:
            copy, _, packed = cache.acquire(key)
            assert sum(copy == other for _, other in leased) == 0 or packed is None
            if packed is not None and rng.random() < 0.9:
                cache.wrote(key, copy)
            leased.append((key, copy))
        if cache.has_room_for_copy:
            cache.add_copy(f"more {step}")
        assert sum(cache.nbytes.values()) <= 1000
        held = sum(cache.memory(key) for key in sizes)
        assert cache.nbytes["packed"] == held
