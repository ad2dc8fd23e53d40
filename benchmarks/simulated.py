"""Many streams of one engine on a simulated accelerator: what the event loop takes from the model.

In place of transformers' manager there is one whose step sleeps, as a thread does that waits for a
GPU. All else is real. So what is measured is the interpreter that the model's thread and the event
loop share.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import anyio
import torch
from anyio import to_thread
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

import anystreamer
from anystreamer._engine import continuous
from anystreamer.demo import load_demo

from .method import (
    ALL_LOOPS,
    Parts,
    Table,
    busy_half_the_time,
    compare,
    note_lateness,
    on_loops,
    run_anew,
    summary,
)

SECONDS = 3.0
TOKEN = 20  # an id of the embedded model that is text
LIMIT = "manager, results dropped (no loop)"


class Manager:
    """As much of transformers' manager as an engine uses, with a model that sleeps."""

    def __init__(self) -> None:
        self.steps = 0
        # By prompt, and by request: when each token was handed out.
        self.made: dict[tuple[int, ...], list[float]] = {}
        self._made: dict[str, list[float]] = {}
        self.continuous_batching_config = SimpleNamespace(
            page_size=16,
            cuda_graph_booleans=(False,),
            varlen_compile_config=None,
            decode_compile_config=None,
            use_async_batching=False,
        )
        self.batch_processor = SimpleNamespace(cache=SimpleNamespace(num_blocks=10**9))
        self.background_thread_status = SimpleNamespace(fatal_error=None, local_status=0)
        self.output_queue = queue.SimpleQueue[GenerationOutput]()  # as an engine's manager has
        self.is_over = threading.Event()

    def is_running(self) -> bool:
        return not self.is_over.is_set()

    def add_request(self, ids: list[int], *, request_id: str, **settings: Any) -> None:
        self.made[tuple(ids)] = self._made[request_id] = []

    def cancel_request(self, request_id: str) -> None:
        self._made.pop(request_id, None)

    def get_result(self, timeout: float) -> GenerationOutput | None:
        try:
            return self.output_queue.get(block=timeout > 0, timeout=timeout)
        except queue.Empty:
            return None

    def run(self, step: float) -> None:
        due = time.perf_counter()
        while self.is_running():
            due = max(due + step, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
            self.steps += 1
            now = time.perf_counter()
            for request_id, made in list(self._made.items()):
                made.append(now)
                tokens, status = [TOKEN] * len(made), RequestStatus.DECODING
                self.output_queue.put(
                    GenerationOutput(request_id, generated_tokens=tokens, status=status)
                )


@contextmanager
def simulated(step: float) -> Iterator[Manager]:
    """A manager that runs. In the block, engines get it."""
    manager = Manager()
    thread = threading.Thread(target=manager.run, args=(step,), daemon=True)
    thread.start()
    with patch.object(continuous, "open_manager", lambda *_: nullcontext(manager)):
        yield manager
    manager.is_over.set()
    thread.join()


async def engine(step: float, count: int, is_busy: bool) -> Table:
    """So many streams of an engine, for some seconds, beside work of the application's own."""
    late: dict[str, list[float]] = {"token_late_ms": [], "loop_late_ms": []}
    demo = load_demo()
    gc.collect()
    gc.freeze()  # as `anystreamer serve` does
    with simulated(step) as manager:
        async with (
            anystreamer.open_engine(*demo, batching="continuous", max_running=count) as opened,
            anyio.create_task_group() as tasks,
        ):

            async def read(number: int) -> None:
                prompt, received = [1 + number // 100, 1 + number % 100], 0
                async with opened.stream_text(
                    {"input_ids": torch.tensor([prompt])}, max_new_tokens=10**6
                ) as stream:
                    async for chunk in stream:
                        now, new = time.perf_counter(), len(chunk.token_ids)
                        made = manager.made[tuple(prompt)][received : received + new]
                        late["token_late_ms"] += [1e3 * (now - each) for each in made]
                        received += new

            for number in range(count):
                tasks.start_soon(read, number)
            while len(manager.made) < count:
                await anyio.sleep(0.1)
            if is_busy:
                tasks.start_soon(busy_half_the_time)
            tasks.start_soon(note_lateness, late["loop_late_ms"])
            await anyio.sleep(1.0)
            for values in late.values():
                values.clear()
            result = await counted(manager)
            tasks.cancel_scope.cancel()
    return result | summary([late])


async def limit(step: float, count: int, _: bool) -> Table:
    """The manager alone: a thread takes its results, and drops them."""

    def drop() -> None:
        while manager.is_running():
            time.sleep(continuous.DRAIN_INTERVAL)
            while manager.get_result(timeout=0) is not None:
                pass

    with simulated(step) as manager:
        for number in range(count):
            manager.add_request([number], request_id=str(number))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, drop)
            await anyio.sleep(1.0)
            result = await counted(manager)
            manager.is_over.set()
    return result


async def counted(manager: Manager) -> Table:
    steps, cpu, started = manager.steps, time.process_time(), time.perf_counter()
    await anyio.sleep(SECONDS)
    seconds = time.perf_counter() - started
    return {
        "steps_per_second": (manager.steps - steps) / seconds,
        "percent_of_a_core": 100 * (time.process_time() - cpu) / seconds,
    }


def compared_on_loops(step: float, count: int, is_busy: bool, rounds: int) -> Table:
    def anew(loop: str, way: Any) -> Any:
        return run_anew(loop, way, step, count, is_busy)

    engines = on_loops({"open_engine": (engine, ALL_LOOPS)}, anew)
    ways = {LIMIT: partial(anew, "asyncio", limit)} | engines
    return compare(ways, rounds, "steps_per_second", limit=LIMIT)


def measure(is_quick: bool) -> Parts:
    rounds = 1 if is_quick else 3
    for step, counts in ((15, (64, 256)), (33, (250, 500, 1_000))):
        for count in counts:
            for is_busy in (False, True) if step == 15 else (False,):
                beside = ", application busy half the time" if is_busy else ""
                name = f"step of {step} ms, {count} streams{beside}"
                yield "streams", name, compared_on_loops(step / 1e3, count, is_busy, rounds)
