"""`worker_context=` with the contexts that models are used in: autocast, devices, adapters."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from anyio import CancelScope, Event, create_task_group, fail_after, from_thread

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import PROMPT, finished
from ..helpers.tiny_models import (
    decoded,
    generated,
    llama,
    new_llama,
    steps_of,
    tokenizer,
)

pytestmark = pytest.mark.torch


def in_force() -> tuple[bool, str]:
    """What a context manager may have set for this thread: autocast, and the default device."""
    return torch.is_autocast_enabled("cpu"), torch.empty(0).device.type


def in_a_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


CONTEXTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "autocast": (lambda: torch.autocast("cpu", dtype=torch.bfloat16), (True, "cpu")),
    "default device": (lambda: torch.device("meta"), (False, "meta")),
}


@pytest.mark.parametrize("kind", CONTEXTS)
async def test_a_context_holds_in_the_worker_thread_and_nowhere_else(kind: str) -> None:
    """While the model is in a forward pass, the loop and a third thread are as they were."""
    context, inside = CONTEXTS[kind]
    outside = (False, "cpu")
    seen: dict[str, Any] = {}

    def look() -> None:
        seen["worker"] = in_force()
        seen["loop"] = from_thread.run_sync(in_force)
        seen["other"] = in_a_thread(in_force)

    with steps_of(llama(), {3: look}):
        await finished(
            stream_text(llama(), tokenizer(), PROMPT, max_new_tokens=5, worker_context=context)
        )
    assert seen == {"worker": inside, "loop": outside, "other": outside}
    assert in_force() == outside
    with steps_of(llama(), {1: look}):  # threads are used again
        await finished(stream_text(llama(), tokenizer(), PROMPT, max_new_tokens=1))
    assert seen["worker"] == outside


async def test_autocast_changes_what_the_forward_pass_computes_in() -> None:
    dtypes: list[Any] = []

    def look(module: Any, args: Any, output: Any) -> None:
        dtypes.append(output.dtype)

    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    with autocast():
        expected = generated(llama(), PROMPT, max_new_tokens=6)
    handle = llama().lm_head.register_forward_hook(look)
    try:
        kwargs: dict[str, Any] = {"max_new_tokens": 6}
        context = stream_text(llama(), tokenizer(), PROMPT, worker_context=autocast, **kwargs)
        stream = await finished(context)
        assert dtypes == [torch.bfloat16] * 6
        assert stream.token_ids == expected
        dtypes.clear()
        stream = await finished(stream_text(llama(), tokenizer(), PROMPT, **kwargs))
        assert dtypes == [torch.float32] * 6
        assert stream.token_ids == generated(llama(), PROMPT, **kwargs)
    finally:
        handle.remove()
    assert llama().lm_head.weight.dtype is torch.float32


async def test_nothing_of_ours_is_made_on_the_default_device() -> None:
    """One without memory shows it: what is read back from there is an error."""
    kwargs: dict[str, Any] = {"max_new_tokens": 8, "logprobs": True, "stop": "never said"}
    criteria = [lambda input_ids, scores, **kwargs: False]
    expected = await finished(stream_text(llama(), tokenizer(), PROMPT, **kwargs))
    async with stream_text(
        llama(),
        tokenizer(),
        PROMPT,
        **kwargs,
        stopping_criteria=criteria,
        worker_context=lambda: torch.device("meta"),
    ) as stream:
        logprobs = [each async for chunk in stream for each in chunk.logprobs or ()]
    assert stream.token_ids == expected.token_ids == generated(llama(), PROMPT, max_new_tokens=8)
    assert len(logprobs) == 8
    assert stream.finish_reason is FinishReason.LENGTH


class Adapters:
    """Low-rank changes to the weights of a model, of which one at a time can be put on."""

    def __init__(self, model: Any, names: str) -> None:
        self.model = model
        self.on: str | None = None
        self._plain = model.lm_head.weight.data
        self._changes = {}
        for seed, name in enumerate(names):
            noise = torch.Generator().manual_seed(seed)
            rows, columns = self._plain.shape
            down = torch.randn(2, columns, generator=noise)
            self._changes[name] = 0.02 * torch.randn(rows, 2, generator=noise) @ down

    @contextlib.contextmanager
    def put_on(self, name: str) -> Iterator[None]:
        assert self.on is None, f"{name} on top of {self.on}"
        self.on = name
        self.model.lm_head.weight.data = self._plain + self._changes[name]
        try:
            yield
        finally:
            self.model.lm_head.weight.data = self._plain
            self.on = None

    def alone(self, name: str, **kwargs: Any) -> list[int]:
        with self.put_on(name):
            return generated(self.model, PROMPT, **kwargs)

    def stream(self, name: str | None, **kwargs: Any) -> Any:
        if name is not None:
            kwargs["worker_context"] = partial(self.put_on, name)
        return stream_text(self.model, tokenizer(), PROMPT, **kwargs)


async def test_each_of_the_streams_of_a_model_has_its_own_adapter() -> None:
    """They are called while another one generates, and take turns."""
    adapters = Adapters(new_llama(seed=5), "abc")
    names = "abcab"
    kwargs: dict[str, Any] = {"max_new_tokens": 20}
    expected = {name: adapters.alone(name, **kwargs) for name in "abc"}
    assert len({tuple(ids) for ids in expected.values()}) == 3
    all_called = Event()
    waiting = threading.Event()
    called: list[str] = []
    streams: list[tuple[str, Any]] = []

    async def one(name: str) -> None:
        async with adapters.stream(name, **kwargs) as stream:
            called.append(name)
            if len(called) == len(names):
                all_called.set()
            await stream.read()
        streams.append((name, stream))

    with steps_of(adapters.model, {3: lambda: waiting.wait(30)}):
        async with create_task_group() as tasks:
            try:
                for name in names:
                    tasks.start_soon(one, name)
                with fail_after(30):
                    await all_called.wait()
            finally:
                waiting.set()
    assert len(streams) == len(names)
    for name, stream in streams:
        assert stream.token_ids == expected[name]
        assert stream.text == decoded(expected[name])


@pytest.mark.parametrize("how", ["end", "leave", "stop", "cancel", "error"])
async def test_an_adapter_is_taken_off_however_a_stream_ends(how: str) -> None:
    adapters = Adapters(new_llama(seed=5), "a")
    plain = generated(adapters.model, PROMPT, max_new_tokens=20)

    def fail() -> None:
        raise OSError("broken")

    actions: dict[str, Callable[[], object]] = {
        "stop": lambda: stream.stop(),
        "cancel": lambda: from_thread.run_sync(scope.cancel),
        "error": fail,
    }
    tokens = 5 if how == "end" else 900
    with steps_of(adapters.model, {3: actions[how]} if how in actions else {}):
        with CancelScope() as scope:
            is_error = how == "error"
            with pytest.raises(OSError, match="broken") if is_error else contextlib.nullcontext():
                async with adapters.stream("a", max_new_tokens=tokens) as stream:
                    await stream.receive()
                    if how != "leave":
                        await stream.read()
    assert adapters.on is None
    stream = await finished(adapters.stream(None, max_new_tokens=20))
    assert stream.token_ids == plain
