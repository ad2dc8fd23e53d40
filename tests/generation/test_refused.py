"""Promise 11: what cannot stream says so, at the call or where the block is entered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import CHAT, PROMPT, reason_of, stream_llama
from ..helpers.tiny_models import llama, new_llama, new_tokenizer, steps_of, tokenizer

pytestmark = pytest.mark.torch


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # name: (the call, the error, what its message matches)
    "empty text": (lambda: stream_llama(""), ValueError, "prompt is empty"),
    "empty chat": (lambda: stream_llama([]), ValueError, "prompt is empty"),
    "empty mapping": (lambda: stream_llama({}), ValueError, "prompt is empty"),
    "empty ids": (
        lambda: stream_llama({"input_ids": torch.zeros(1, 0, dtype=torch.long)}),
        ValueError,
        "'input_ids'.* is empty",
    ),
    "empty embeddings": (
        lambda: stream_llama({"inputs_embeds": torch.zeros(1, 0, 16)}),
        ValueError,
        "'inputs_embeds'.* is empty",
    ),
    "list of texts": (lambda: stream_llama(["a", "b"]), ValueError, "batch of 2.*takes one"),
    "list of chats": (lambda: stream_llama([CHAT, CHAT]), ValueError, "batch of 2.*takes one"),
    "two rows": (
        lambda: stream_llama({"input_ids": torch.ones(2, 3, dtype=torch.long)}),
        ValueError,
        "'input_ids'.* has 2 rows.*takes one",
    ),
    "two encoded texts": (
        lambda: stream_llama(tokenizer()(["ab", "cd"], return_tensors="pt")),
        ValueError,
        "'input_ids'.* has 2 rows.*takes one",
    ),
    "two rows of embeddings": (
        lambda: stream_llama({"inputs_embeds": torch.zeros(2, 3, 16)}),
        ValueError,
        "'inputs_embeds'.* has 2 rows.*takes one",
    ),
    "two rows of inputs": (
        lambda: stream_llama({"inputs": torch.ones(2, 3, dtype=torch.long)}),
        ValueError,
        "'inputs'.* has 2 rows.*takes one",
    ),
    "bytes": (lambda: stream_llama(b"hello"), TypeError, "prompt must be a str.*not bytes"),
    "nothing": (lambda: stream_llama(None), TypeError, "prompt must be a str.*not NoneType"),
    "a tensor": (
        lambda: stream_llama(torch.ones(1, 3, dtype=torch.long)),
        TypeError,
        "prompt must be a str.*not Tensor.*'input_ids'",
    ),
    "messages without a role": (
        lambda: stream_llama([{"content": "hi"}]),
        TypeError,
        "prompt must be .*'role'.*not a chat message",
    ),
    "num_return_sequences": (
        lambda: stream_llama(num_return_sequences=2, do_sample=True),
        ValueError,
        "num_return_sequences=2.*one",
    ),
    "num_return_sequences in a config": (
        lambda: stream_llama(
            generation_config=GenerationConfig(num_return_sequences=3, do_sample=True)
        ),
        ValueError,
        "num_return_sequences=3.*one",
    ),
    "num_beams": (lambda: stream_llama(num_beams=2), ValueError, "num_beams=2.*num_beams=1"),
    "num_beams in a config": (
        lambda: stream_llama(generation_config=GenerationConfig(num_beams=3)),
        ValueError,
        "num_beams=3.*num_beams=1",
    ),
    "custom_generate": (
        lambda: stream_llama(custom_generate=lambda model, **kwargs: None),
        ValueError,
        "custom_generate=.*stream_from_thread",
    ),
    "paged cache": (
        lambda: stream_llama(cache_implementation="paged"),
        ValueError,
        "cache_implementation='paged'",
    ),
    "paged cache in a config": (
        lambda: stream_llama(generation_config=GenerationConfig(cache_implementation="paged")),
        ValueError,
        "cache_implementation='paged'",
    ),
    "synced_gpus": (lambda: stream_llama(synced_gpus=True), ValueError, "synced_gpus="),
    "streamer": (lambda: stream_llama(streamer=object()), TypeError, "streamer=.*iterate"),
    "streamer None": (lambda: stream_llama(streamer=None), TypeError, "streamer=.*iterate"),
    "max_tokens": (lambda: stream_llama(max_tokens=5), TypeError, "max_tokens=.*max_new_tokens="),
    "max_completion_tokens": (
        lambda: stream_llama(max_completion_tokens=5),
        TypeError,
        "max_completion_tokens=.*max_new_tokens=",
    ),
    "stop number": (lambda: stream_llama(stop=5), TypeError, "stop must be a str.*not int"),
    "stop bytes": (lambda: stream_llama(stop=b"x"), TypeError, "stop must be a str.*not bytes"),
    "stop of numbers": (lambda: stream_llama(stop=[1]), TypeError, "stop string must be a str"),
    "stop empty": (lambda: stream_llama(stop=""), ValueError, "stop string must not be empty"),
    "stop_strings number": (
        lambda: stream_llama(stop_strings=5),
        TypeError,
        "stop_strings must be a str.*not int",
    ),
    "stop_strings iterator": (
        lambda: stream_llama(stop_strings=iter(["a"])),
        TypeError,
        "stop_strings must be a str or a list of str, not an iterator",
    ),
    "stop_strings without one": (
        lambda: stream_llama(stop_strings=[]),
        ValueError,
        "stop_strings has no string: leave it out",
    ),
    "stop_strings of a config without one": (
        lambda: stream_llama(generation_config=GenerationConfig(stop_strings=[])),
        ValueError,
        "stop_strings has no string: leave it out",
    ),
    "stop_strings empty": (
        lambda: stream_llama(stop_strings=""),
        ValueError,
        "stop string must not be empty",
    ),
    "stop with an empty one": (
        lambda: stream_llama(stop=["a", ""]),
        ValueError,
        "stop string must not be empty",
    ),
    "buffer of nothing": (
        lambda: stream_llama(max_buffer_size=0),
        ValueError,
        "max_buffer_size must be at least 1",
    ),
    "buffer of a half": (
        lambda: stream_llama(max_buffer_size=1.5),
        TypeError,
        "max_buffer_size must be a whole number",
    ),
    "limiter": (lambda: stream_llama(limiter=1), TypeError, "limiter must be .*not int"),
    "no model": (
        lambda: stream_text(object(), tokenizer(), PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"model must have generate\(\).*object",
    ),
    "a model without a head": (
        lambda: stream_text(torch.nn.Linear(2, 2).eval(), tokenizer(), PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"model must have generate\(\).*Linear.*AutoModelForCausalLM",
    ),
    "tokenizer that cannot decode": (
        lambda: stream_text(llama(), object(), PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"tokenizer.*decode\(\)",
    ),
    "no tokenizer": (
        lambda: stream_text(llama(), None, PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"tokenizer.*decode\(\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_refused(case: str) -> None:
    """At the call or where the block is entered; with what is wrong and what to do instead."""
    call, error, message = BAD[case]
    with steps_of(llama()) as steps, pytest.raises(error, match=message) as caught:
        async with call():
            pytest.fail("entered")
    assert type(caught.value) is error
    assert steps.count == 0


def test_bad_input_is_refused_at_the_call_where_that_is_possible() -> None:
    """The traceback then leads to the line with the mistake."""
    for call, error, _ in BAD.values():
        with pytest.raises(error):
            call()


async def test_a_prompt_that_encodes_to_nothing_is_refused() -> None:
    own = new_tokenizer()
    own.chat_template = "{{ '' }}"
    with steps_of(llama()) as steps, pytest.raises(ValueError, match="prompt has no tokens"):
        async with stream_text(llama(), own, CHAT):
            pytest.fail("entered")
    assert steps.count == 0


async def test_a_model_input_given_twice_is_refused() -> None:
    with (
        steps_of(llama()) as steps,
        pytest.raises(TypeError, match="attention_mask= is given twice"),
    ):
        async with stream_llama(attention_mask=torch.ones(1, len(PROMPT))):
            pytest.fail("entered")
    assert steps.count == 0


def test_beams_of_the_models_own_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama().generation_config, "num_beams", 4)
    with pytest.raises(ValueError, match=r"num_beams=4.*num_beams=1"):
        stream_llama()


async def test_beams_of_the_models_own_config_can_be_overruled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama().generation_config, "num_beams", 4)
    assert await reason_of(stream_llama(num_beams=1, max_new_tokens=2)) is FinishReason.LENGTH
    config = GenerationConfig(num_beams=1, max_new_tokens=2)
    assert await reason_of(stream_llama(generation_config=config)) is FinishReason.LENGTH


def test_a_model_in_training_mode_is_refused() -> None:
    model = new_llama().train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        stream_text(model, tokenizer(), PROMPT)


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 ranks.*one process"):
        stream_llama()


async def test_a_process_group_of_one_rank_is_accepted(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    try:
        assert await reason_of(stream_llama(max_new_tokens=1)) is FinishReason.LENGTH
    finally:
        torch.distributed.destroy_process_group()


async def test_the_unopened_object_shows_the_right_form() -> None:
    right_form = r"async with stream_text\(\.\.\.\) as stream"
    with pytest.raises(TypeError, match=right_form):
        async for _ in stream_llama():
            pass
    with pytest.raises(TypeError, match=right_form):
        await stream_llama()
    with pytest.raises(TypeError, match=right_form):
        with stream_llama():
            pass
    with pytest.raises(TypeError, match=right_form):
        list(stream_llama())


async def test_a_context_cannot_be_opened_twice() -> None:
    context = stream_llama(max_new_tokens=1)
    async with context as stream:
        await stream.read()
    with pytest.raises(RuntimeError, match="opened before"):
        async with context:
            pytest.fail("entered")
