"""The ways to use a model, each held against plain ``generate()``.

A mode returns if the model is right in it. It raises `Refused` if the model cannot be used in this
way, and an error of the library or of ``generate()`` itself says so; and AssertionError if it is
wrong without an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from anyio import CancelScope, create_task_group, from_thread
from transformers import StoppingCriteria, StoppingCriteriaList

from anystreamer import FinishReason, open_engine, stream_batch, stream_text

from .build import TinyModel
from .inputs import PROMPTS
from .tokenizer import tokenizer

__all__ = ["MODES", "Refused", "check_answer", "continuous_answers"]

TOKENS = 8
# Prompts, and what is left of the mode if a model is refused them.
BATCHES = [
    (["one", "two"], "one prompt alone"),
    (["one", "this one is longer"], "prompts of one length"),
]

# Two tokens whose logits are closer than this part of their spread are both right.
TIE = 1e-3


class Refused(Exception):
    """A model cannot be used in a mode, and an error says why. The reason is for the table."""


# -- what generate() makes


def generated(model: Any, inputs: Mapping[str, Any], **kwargs: Any) -> list[int]:
    """The new ids that ``generate()`` makes of one row of inputs."""
    ids = _row(_generate(model, inputs, **kwargs))
    prompt = inputs["input_ids"][0].tolist() if "input_ids" in inputs else None
    if prompt is not None and ids[: len(prompt)] == prompt:
        return ids[len(prompt) :]
    # A decoder's start, of whatever length, is before the first token. A transcription without a
    # decoder has no start, and no limit.
    one, two = (len(_row(_generate(model, inputs, max_new_tokens=n))) for n in (1, 2))
    return ids[one - 1 :] if one < two else ids


def _generate(model: Any, inputs: Mapping[str, Any], **kwargs: Any) -> Any:
    settings = {"max_new_tokens": TOKENS, "do_sample": False, **kwargs}
    try:
        return model.generate(**inputs, **settings)
    except Exception as exc:
        raise Refused("`generate()` fails") from exc


def _row(output: Any) -> list[int]:
    if isinstance(output, Mapping):
        output = output["sequences"]
    ids: list[int] = getattr(output, "sequences", output)[0].tolist()
    return ids


def check_answer(
    model: Any, inputs: Mapping[str, Any], ids: Sequence[int], alone: Sequence[int]
) -> None:
    """Compare an answer with that of ``generate()``, up to the first tie of two tokens.

    For what was computed beside other rows: their number changes how sums are rounded.
    """
    if list(ids) == list(alone):
        return
    output = _generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    logits = getattr(output, "logits", None)
    assert logits is not None, (ids, alone)
    assert len(ids) == len(alone) == len(logits), (ids, alone)
    for token_id, right, scores in zip(ids, alone, logits, strict=True):
        if token_id != right:
            gap = float(scores[0, right] - scores[0, token_id])
            assert gap <= TIE * float(scores[0].std()), (ids, alone)
            return


def _decoded(ids: Sequence[int]) -> str:
    return str(tokenizer().decode(ids, skip_special_tokens=True))


def _before(end: int, ids: list[int]) -> list[int]:
    """What is before the token that ends it. Whisper's `generate()` does not return that token."""
    return ids[: ids.index(end)] if end in ids else ids


# -- the modes


async def check_text(tiny: TinyModel) -> None:
    """Ids, text, finish reason and usage of one stream, however it ends."""
    inputs = tiny.inputs(0)
    ids = generated(tiny.model, inputs)
    stream = await _read(stream_text, tiny, inputs)
    assert stream.token_ids == ids
    assert stream.text == _decoded(ids)
    reason = FinishReason.LENGTH if len(ids) == TOKENS else FinishReason.EOS
    assert stream.finish_reason is reason
    assert stream.usage.completion_tokens == stream.usage.computed_tokens == len(ids)
    if "input_ids" in inputs:
        assert stream.usage.prompt_tokens == inputs["input_ids"].shape[1]
    await _check_stop_strings(tiny, inputs, ids)
    await _check_eos(tiny, inputs, ids)
    await _check_criteria(tiny, inputs, ids)


async def _check_stop_strings(tiny: TinyModel, inputs: Mapping[str, Any], ids: list[int]) -> None:
    text = _decoded(ids)
    end = text[len(text) // 2]
    stream = await _read(stream_text, tiny, inputs, stop=end)
    assert stream.text == text[: text.index(end)]
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, end)
    with contextlib.suppress(Refused):  # not every generate() knows the argument
        expected = generated(tiny.model, inputs, stop_strings=[end], tokenizer=tokenizer())
        stream = await _read(stream_text, tiny, inputs, stop_strings=[end])
        assert stream.token_ids == expected
        assert stream.finish_reason is FinishReason.STOP_STRING or expected == ids


async def _check_eos(tiny: TinyModel, inputs: Mapping[str, Any], ids: list[int]) -> None:
    eos = ids[len(ids) // 2]
    with contextlib.suppress(Refused):
        expected = generated(tiny.model, inputs, eos_token_id=eos)
        stream = await _read(stream_text, tiny, inputs, eos_token_id=eos)
        assert _before(eos, stream.token_ids) == _before(eos, expected)
        if len(expected) < len(ids):
            assert stream.finish_reason is FinishReason.EOS
            assert stream.text == _decoded(_before(eos, expected))


async def _check_criteria(tiny: TinyModel, inputs: Mapping[str, Any], ids: list[int]) -> None:
    class LastIs(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return input_ids[:, -1] == ids[len(ids) // 2]

    criteria = StoppingCriteriaList([LastIs()])
    with contextlib.suppress(Refused):
        expected = generated(tiny.model, inputs, stopping_criteria=criteria)
        stream = await _read(stream_text, tiny, inputs, stopping_criteria=criteria)
        assert stream.token_ids == expected
        assert stream.finish_reason is FinishReason.CRITERIA or expected == ids


class Steps:
    """A logits processor that counts the steps of a model, and acts in one of them."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.count = 0
        self._step = step
        self._action = action

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.count += 1
        if self.count == self._step:
            self._action()
        return scores


async def check_stop(tiny: TinyModel) -> None:
    """After a cancellation, and after `stop()`, the model makes one more step at most."""
    inputs = tiny.inputs(0)
    steps = Steps(3, lambda: from_thread.run_sync(scope.cancel))
    with CancelScope() as scope:
        async with _open(stream_text, tiny, inputs, logits_processor=[steps]) as stream:
            await stream.read()
    if steps.count == 0:
        raise Refused("one step only")
    assert scope.cancelled_caught
    assert stream.finish_reason is FinishReason.CANCELLED
    assert 3 <= steps.count <= 4, steps.count

    steps = Steps(3, lambda: stream.stop())
    async with _open(stream_text, tiny, inputs, logits_processor=[steps]) as stream:
        await stream.read()
    assert stream.finish_reason is FinishReason.STOPPED
    assert steps.count == 3
    assert stream.token_ids == generated(tiny.model, inputs)[: len(stream.token_ids)]


async def check_batch(tiny: TinyModel) -> None:
    """Each row is what its prompt gives alone: of prompts of one length, then of others."""
    if tiny.inputs(0).keys() != {"input_ids"}:
        rows = [_of_one_length(tiny.inputs(number)) for number in range(2)]
        await _check_rows(
            tiny, {name: torch.cat([row[name] for row in rows]) for name in rows[0]}, rows
        )
        return
    for texts, refusal in BATCHES:
        try:
            await _check_rows(tiny, texts, list(map(_encoded, texts)))
        except ValueError as exc:
            if "then answers them wrong" not in str(exc):
                raise
            raise Refused(refusal) from exc


def _of_one_length(inputs: dict[str, Any]) -> dict[str, Any]:
    if "input_ids" in inputs:
        inputs["input_ids"] = inputs["input_ids"][:, :3]
    return inputs


def _encoded(text: str) -> dict[str, Any]:
    return dict(tokenizer()(text, return_tensors="pt"))


async def _check_rows(tiny: TinyModel, prompts: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    alone = [generated(tiny.model, row) for row in rows]
    stream = await _read(stream_batch, tiny, prompts)
    for row, ids, text, right in zip(rows, stream.token_ids, stream.text, alone, strict=True):
        check_answer(tiny.model, row, ids, right)
        assert text == _decoded(ids)
    if stream.token_ids != alone:
        return  # after a tie the rows do not end where they end alone
    eos = alone[0][len(alone[0]) // 2]
    with contextlib.suppress(Refused):
        alone = [generated(tiny.model, row, eos_token_id=eos) for row in rows]
        stream = await _read(stream_batch, tiny, prompts, eos_token_id=eos)
        assert [_before(eos, ids) for ids in stream.token_ids] == [
            _before(eos, ids) for ids in alone
        ]


async def check_engine(tiny: TinyModel) -> None:
    """Two requests at once to an engine that serves them one by one."""
    inputs = [tiny.inputs(number) for number in range(2)]
    answers = await _answers(tiny, "none", inputs, do_sample=False)
    assert answers == [generated(tiny.model, each) for each in inputs]


async def check_continuous(tiny: TinyModel) -> None:
    """Four requests at once under continuous batching."""
    try:
        answers = await continuous_answers(tiny, PROMPTS)
    except ValueError as exc:
        if "use batching='none'" not in str(exc):
            raise
        raise Refused(_reason(str(exc))) from exc
    for prompt, ids in zip(PROMPTS, answers, strict=True):
        inputs = {"input_ids": torch.tensor([prompt])}
        check_answer(tiny.model, inputs, ids, generated(tiny.model, inputs))


async def continuous_answers(tiny: TinyModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The ids that continuous batching makes of several prompts at once."""
    inputs = [{"input_ids": torch.tensor([prompt])} for prompt in prompts]
    return await _answers(tiny, "continuous", inputs)


MODES: dict[str, Callable[[TinyModel], Any]] = {
    "`stream_text`": check_text,
    "cancel, `stop()`": check_stop,
    "`stream_batch`": check_batch,
    "engine": check_engine,
    "continuous batching": check_continuous,
}


# -- what the modes share


def _open(function: Callable[..., Any], tiny: TinyModel, prompt: Any, **kwargs: Any) -> Any:
    settings = {"max_new_tokens": TOKENS, "do_sample": False, **kwargs}
    return function(tiny.model, tokenizer(), prompt, **settings)


async def _read(function: Callable[..., Any], tiny: TinyModel, prompt: Any, **kwargs: Any) -> Any:
    """A stream that was read to its end."""
    async with _open(function, tiny, prompt, **kwargs) as stream:
        await stream.read()
    return stream


async def _answers(
    tiny: TinyModel, batching: Any, inputs: Sequence[Mapping[str, Any]], **kwargs: Any
) -> list[list[int]]:
    answers: dict[int, list[int]] = {}

    async def request(engine: Any, number: int) -> None:
        context = engine.stream_text(inputs[number], max_new_tokens=TOKENS, **kwargs)
        async with context as stream:
            await stream.read()
        answers[number] = stream.token_ids

    async with open_engine(tiny.model, tokenizer(), batching=batching) as engine:
        async with create_task_group() as tasks:
            for number in range(len(inputs)):
                tasks.start_soon(request, engine, number)
    return [answers[number] for number in range(len(inputs))]


def _reason(message: str) -> str:
    """The reason of a refusal, in the words of the table."""
    reasons = {
        "has no paged cache": "it has an encoder",
        "do not use the manager's cache": "attention of its own",
        "Invalid layer type": "layers without a paged cache",
        "config asks for": "its generation config",
        "are not those of generate()": "its answers would be wrong",
    }
    found = (reason for words, reason in reasons.items() if words in message)
    return next(found, "transformers' manager fails")
