"""A row ends where `generate()` ends it, and for that reason: random rows, criteria and strings."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import anyio
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
)

from anystreamer import FinishReason, stream_batch

from ..helpers.deferred_stops import deferred_stops
from ..helpers.tiny_models import SayRows, ids_of, llama, tokenizer

pytestmark = pytest.mark.torch

letters = st.sampled_from("abc")
strings = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=2)


class LastIs(StoppingCriteria):
    def __init__(self, letter: str) -> None:
        self.id = ids_of(letter)[0]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] == self.id


class Late(LogitsProcessor):
    """Takes more time than a criterion allows, in one step."""

    def __init__(self, step: int) -> None:
        self.criterion = MaxTimeCriteria(max_time=900.0)
        self.step = step
        self._steps = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self._steps += 1
        if self._steps == self.step:
            self.criterion.initial_timestamp -= 1000
        return scores


@st.composite
def rows_of_one_length(draw: st.DrawFn) -> list[str]:
    length = draw(st.integers(2, 8))
    row = st.text("abcd", min_size=length, max_size=length)
    return draw(st.lists(row, min_size=1, max_size=4))


@st.composite
def arguments_that_end_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments for `stream_batch`. What fills a row up can be what others say or end with."""
    arguments: dict[str, Any] = {
        "eos_token_id": ids_of(draw(st.sampled_from("dq")))[0],
        "pad_token_id": ids_of(draw(st.sampled_from("Zabd")))[0],
        "stop": draw(st.just([]) | strings),
    }
    criteria: list[Any] = []
    if draw(st.booleans()):
        criteria.append(LastIs(draw(letters)))
    if draw(st.booleans()):
        criteria.append(EosTokenCriteria(ids_of(draw(letters))[0]))
    if draw(st.booleans()):
        criteria.append(StopStringCriteria(tokenizer(), draw(strings)))
    if criteria:
        arguments["stopping_criteria"] = draw(st.permutations(criteria))
    if draw(st.booleans()):
        arguments["stop_strings"] = draw(strings)
    return arguments


def expected_end(
    row: str, prompt: str, arguments: dict[str, Any], late: Late | None
) -> tuple[str, set[FinishReason]]:
    """The part of a row that is said, and the reasons that are true for its end."""
    criteria = arguments.get("stopping_criteria", [])
    kinds = {type(each) for each in criteria}  # of transformers' own, they replace its settings
    for length in range(1, len(row) + 1):
        said = row[:length]
        # A token of the setting is not text. A criterion in its place can let the row go on.
        text = "".join(each for each in said if ids_of(each)[0] != arguments["eos_token_id"])
        ids = torch.tensor([ids_of(prompt) + ids_of(said)])
        reasons = set()
        if any(each(ids, None).any() for each in criteria):
            reasons.add(FinishReason.CRITERIA)
        if late is not None and late.step == length:
            reasons.add(FinishReason.CRITERIA)  # of the whole batch, as the limit of tokens is
            reasons |= {FinishReason.LENGTH} if length == len(row) else set()
        if EosTokenCriteria not in kinds and ids[0, -1] == arguments["eos_token_id"]:
            reasons.add(FinishReason.EOS)
        if "stop_strings" in arguments and StopStringCriteria not in kinds:
            criterion = StopStringCriteria(tokenizer(), arguments["stop_strings"])
            if criterion(ids, None).any():
                reasons.add(FinishReason.STOP_STRING)
        if any(string in text for string in arguments["stop"]):
            reasons.add(FinishReason.STOP_STRING)
        if reasons:
            return said, reasons
    return row, {FinishReason.LENGTH}


# The loop has no part in it.
@pytest.mark.parametrize("device", ["in time", "a step late"])
@given(
    rows=rows_of_one_length(),
    prompts=st.lists(st.sampled_from(["one", "two", "sixab"]), min_size=4, max_size=4),
    arguments=arguments_that_end_rows(),
    late=st.none() | st.builds(Late, st.integers(1, 8)),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_row_ends_where_generate_ends_it(
    device: str,
    rows: list[str],
    prompts: list[str],
    arguments: dict[str, Any],
    late: Late | None,
) -> None:
    criteria = list(arguments.pop("stopping_criteria", []))
    own = {**arguments, "stopping_criteria": criteria}
    processors: list[Any] = [SayRows(*map(ids_of, rows))]
    if late is not None:
        processors.append(late)
        criteria = [late.criterion, *criteria]

    async def read() -> Any:
        async with stream_batch(
            llama(),
            tokenizer(),
            prompts[: len(rows)],
            logits_processor=processors,
            stopping_criteria=criteria,
            max_new_tokens=len(rows[0]),
            **arguments,
        ) as stream:
            await stream.read()
        return stream

    with deferred_stops() if device == "a step late" else nullcontext():
        stream = anyio.run(read)
    for number, row in enumerate(rows):
        said, reasons = expected_end(row, prompts[number], own, late)
        assert stream.token_ids[number] == ids_of(said)
        assert stream.finish_reason[number] in reasons
        named = stream.stop_string[number] is not None
        assert named == (stream.finish_reason[number] is FinishReason.STOP_STRING)
