"""Values that are kept for a model or a tokenizer: as long as it lives, and no longer."""

from __future__ import annotations

import gc
import threading
import weakref

import anyio
import pytest

from anystreamer import stream_text
from anystreamer._generation import model_limiter
from anystreamer._weak_cache import WeakCache
from anystreamer.testing import ScriptedModel


class Key:
    """Has no hash, as some tokenizers."""

    __hash__ = None  # type: ignore[assignment]


class Value:
    """Can be referred to weakly."""


def test_a_value_lives_as_long_as_its_object() -> None:
    cache: WeakCache[Value] = WeakCache()
    key, other = Key(), Key()
    kept = weakref.ref(cache.get(key, Value))
    assert cache.get(key, Value) is kept()
    assert cache.get(other, Value) is not kept()
    del key
    assert kept() is None


def test_an_object_keeps_no_cache_alive() -> None:
    key, cache = Key(), WeakCache[Value]()
    kept = weakref.ref(cache.get(key, Value))
    del cache
    gc.collect()
    assert kept() is None
    del key


def test_what_takes_no_weak_reference_keeps_its_value() -> None:
    cache: WeakCache[Value] = WeakCache()
    assert cache.get(1, Value) is cache.get(1, Value)
    cache.clear()


def test_what_takes_no_weak_reference_does_not_leave_its_value_to_another() -> None:
    """A new object often has the address of one that was collected just before."""

    class Slotted:
        __slots__ = ()

    cache: WeakCache[Value] = WeakCache()
    values = [cache.get(Slotted(), Value) for _ in range(100)]
    assert len(set(map(id, values))) == 100
    cache.clear()


def test_all_threads_get_the_same_value() -> None:
    """The slowest to make one gets that of another thread."""
    cache: WeakCache[Value] = WeakCache()
    key, both = Key(), threading.Barrier(2)
    found: list[Value] = []

    def new() -> Value:
        both.wait()
        return Value()

    threads = [threading.Thread(target=lambda: found.append(cache.get(key, new))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_model_keeps_nothing_of_loops_that_have_ended(backend: str) -> None:
    """As many applications call ``anyio.run`` again and again, with the same model."""
    model = ScriptedModel(["one ", "two"])
    limiters: list[weakref.ref[anyio.CapacityLimiter]] = []

    async def main() -> None:
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()
        limiters.append(weakref.ref(model_limiter(model)))

    for _ in range(4):
        anyio.run(main, backend=backend)
    gc.collect()
    assert [each() for each in limiters[:2]] == [None, None]  # asyncio keeps the latest loop
