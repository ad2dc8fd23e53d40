"""The demo command: streams from the embedded model, and shows a cancellation."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import anyio

from .. import TextStream, stream_text
from .common import INSTALL, PROMPT, Backend, load_embedded, require_installed
from .terminal import Screen, exit_now, format_stats, pluralized

__all__ = ["run_demo"]

CANCEL_AFTER = 0.2  # seconds


def run_demo(prompt: str | None, backend: Backend | None, max_new_tokens: int) -> None:
    """Continue *prompt*. Without one, show a tour: both event loops, and a cancellation."""
    import typer

    if prompt == "":
        raise typer.BadParameter("the prompt is empty: there is nothing to continue")
    if prompt and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise typer.BadParameter(
            "the prompt is not valid text in this locale: use a UTF-8 locale, or set PYTHONUTF8=1"
        )
    if backend:
        require_installed(backend)
    model, tokenizer = load_embedded()
    room = model.config.max_position_embeddings
    tokens = len(tokenizer(prompt or PROMPT, verbose=False)["input_ids"])
    if tokens + 1 > room:
        raise typer.BadParameter(
            f"the prompt has {tokens} tokens; the model takes {room}, new ones included"
        )
    if tokens + max_new_tokens > room:
        raise typer.BadParameter(
            f"--max-new-tokens {max_new_tokens} is more than the {room - tokens} that fit: "
            f"the model takes {room}, and the prompt has {tokens}"
        )

    screen = Screen()
    if prompt:
        backend = backend or Backend.ASYNCIO
        anyio.run(_stream, screen, model, tokenizer, prompt, max_new_tokens, backend=backend)
    else:
        backends = [backend] if backend else list(Backend)
        for each in backends:
            screen.write(each, "bold", end="\n")
            if find_spec(each) is None:
                screen.write(f"not installed: {INSTALL}", "dim", end="\n")
            else:
                anyio.run(_stream, screen, model, tokenizer, PROMPT, max_new_tokens, backend=each)
            screen.write("\n")
        title = f"{backends[0]}, cancelled by move_on_after({CANCEL_AFTER})"
        screen.write(title, "bold", end="\n")
        anyio.run(_cancel, screen, model, tokenizer, room - tokens, backend=backends[0])
    screen.explain_replacements()


@asynccontextmanager
async def _open(model: Any, tokenizer: Any, prompt: str, limit: int) -> AsyncIterator[TextStream]:
    """Open a stream that Ctrl-C stops. The program then exits once the model's thread has ended."""
    interrupted = False
    handler = signal.getsignal(signal.SIGINT)
    try:
        async with stream_text(model, tokenizer, prompt, max_new_tokens=limit) as stream:

            def stop(*_: object) -> None:
                nonlocal interrupted
                interrupted = True
                signal.signal(signal.SIGINT, exit_now)  # a second one does not wait
                stream.stop()

            if handler is exit_now:
                signal.signal(signal.SIGINT, stop)
            yield stream
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupted:
            exit_now()


async def _stream(screen: Screen, model: Any, tokenizer: Any, prompt: str, limit: int) -> None:
    screen.write(prompt, "dim")
    async with _open(model, tokenizer, prompt, limit) as stream:
        async for text in stream:
            screen.write(text)
    screen.write("\n")
    screen.write(format_stats(stream), "dim", end="\n")


async def _cancel(screen: Screen, model: Any, tokenizer: Any, limit: int) -> None:
    """Cancel a long generation, and measure how long the model goes on."""
    steps = 0

    def count_step(*_: object) -> None:
        nonlocal steps
        steps += 1

    model.register_forward_hook(count_step)
    screen.write(PROMPT, "dim")
    async with _open(model, tokenizer, PROMPT, limit) as stream:
        deadline = perf_counter() + CANCEL_AFTER
        with anyio.move_on_after(CANCEL_AFTER) as scope:
            async for text in stream:
                screen.write(text)
        cancelled, steps_then = perf_counter(), steps
    left = perf_counter()
    screen.write("\n")
    screen.write(format_stats(stream), "dim", end="\n")
    if scope.cancelled_caught:
        late, took = (cancelled - deadline) * 1e3, (left - cancelled) * 1e3
        screen.write(
            f"cancelled {late:.1f} ms after the deadline: the model took "
            f"{pluralized(steps - steps_then, 'step')} more, and its thread ended in {took:.1f} ms",
            "dim",
            end="\n",
        )
