"""CTranslate2 generates with the embedded model, and calls back from a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from anyio import CancelScope

from anystreamer import stream_from_thread, stream_iterable, text_decoder
from anystreamer.demo import load_demo
from anystreamer.testing import no_worker_left

from ..helpers.ways_out import BodyError, WayOut, each_way_out

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one,"
LENGTH = 500


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The embedded model, converted, and its tokenizer."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    folder = tmp_path_factory.mktemp("ctranslate2")
    model, tokenizer = load_demo()
    tokenizer.bos_token = tokenizer.unk_token = tokenizer.eos_token  # the converter asks for them
    converted = str(Path(folder / "converted"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqdm.tqdm.monitor_interval", 0)  # a thread that stays, for progress bars
        for part in (model, tokenizer):
            part.save_pretrained(folder / "model")
        ctranslate2.converters.TransformersConverter(str(folder / "model")).convert(converted)
    return ctranslate2.Generator(converted, device="cpu", intra_threads=1), tokenizer


class Counting:
    """Has the generator count, from a callback in its own thread."""

    def __init__(self, counter: tuple[Any, Any]) -> None:
        self.generator, self.tokenizer = counter
        self.threads: set[int] = set()
        self.steps = 0
        self.returned = False

    def __call__(self, emit: Any, should_stop: Any) -> None:
        self.threads.add(threading.get_ident())

        def on_step(step: Any) -> bool:
            self.threads.add(threading.get_ident())
            self.steps += 1
            return not emit.offer(step.token_id)

        self.generator.generate_batch(
            [tokens(self.tokenizer)],
            max_length=LENGTH,
            end_token=[],  # it counts on
            include_prompt_in_result=False,
            callback=on_step,
        )
        self.returned = True


def tokens(tokenizer: Any) -> list[str]:
    found: list[str] = tokenizer.convert_ids_to_tokens(tokenizer(PROMPT)["input_ids"])
    return found


async def test_its_text_is_streamed_from_its_thread(counter: tuple[Any, Any]) -> None:
    counting, text = Counting(counter), ""
    decoder = text_decoder(counting.tokenizer)
    async with stream_from_thread(counting) as stream:
        async for token_id in stream:
            text += decoder.decode([token_id])
            if "twelve" in text:
                break
    assert text.startswith(" two, three, four, five")
    assert len(counting.threads) == 2
    assert counting.returned


@each_way_out
async def test_it_ends_at_its_next_step(counter: tuple[Any, Any], way: WayOut) -> None:
    counting = Counting(counter)
    with no_worker_left(timeout=0), CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(counting, max_buffer_size=3) as stream:
            await stream.receive()
            await stream.wait_until_held()
            assert counting.steps == 4
            await way(stream, scope)
    assert counting.returned
    if way.__name__ != "reaching_the_end":
        assert counting.steps < LENGTH


async def test_its_iterator_ends_too(counter: tuple[Any, Any]) -> None:
    generator, tokenizer = counter
    threads = threading.active_count()

    def numbers() -> Any:
        return generator.generate_tokens(tokens(tokenizer), max_length=LENGTH, end_token=[])

    async with stream_iterable(numbers, max_buffer_size=3) as stream:
        ids = [(await stream.receive()).token_id for _ in range(4)]
    assert tokenizer.decode(ids) == " two, three,"
    assert threading.active_count() <= threads + 1  # the worker's, which is idle
