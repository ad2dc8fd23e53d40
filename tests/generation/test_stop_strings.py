"""Promise 8: stop strings never leak, and hold back nothing that is not part of one."""

from __future__ import annotations

from typing import Any

import pytest

from anystreamer import FinishReason

from ..helpers.llama_streams import ENDLESS, collect, says, stream_llama
from ..helpers.model_calls import Gate
from ..helpers.tiny_models import MARK, Say, ids_of, llama, steps_of

pytestmark = pytest.mark.torch


async def test_a_stop_string_across_tokens_ends_in_the_step_that_completes_it() -> None:
    with steps_of(llama()) as steps:
        context = stream_llama(logits_processor=[Say("A東京! B")], stop=["京!", "B"], **ENDLESS)
        chunks, stream = await collect(context)
    assert stream.text == "".join(chunks) == "A東"
    assert stream.stop_string == "京!"
    made = len("A東京!".encode())
    assert steps.count == stream.usage.computed_tokens == stream.usage.completion_tokens == made
    assert stream.token_ids == ids_of("A東京!")


async def test_no_part_of_a_stop_string_is_shown_and_nothing_else_is_held_back() -> None:
    """The model waits in every step: no more text than this can be shown by then."""
    text = "ab<<en<<end>>"
    shown = {1: "a", 2: "ab", 5: "ab<", 7: "ab<<en", 8: "ab<<en"}
    gates = {step + 1: Gate() for step in (1, 2)}
    with steps_of(llama(), gates):
        context = stream_llama(logits_processor=[Say(text)], stop="<<end>>", **ENDLESS)
        async with context as stream:
            assert await stream.receive() == shown[1]
            gates[2].open()
            assert await stream.receive() == "b"
            gates[3].open()
            assert await stream.read() == "<<en"
    assert stream.text == "ab<<en"


async def test_text_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    _, stream = await collect(stream_llama(**says("yes or n"), stop="no"))
    assert stream.text == "yes or n"
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.stop_string is None


async def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    _, stream = await collect(stream_llama("a STOP b", **says("c"), stop="STOP"))
    assert (stream.text, stream.finish_reason) == ("c", FinishReason.LENGTH)
    # Nor does one that begins there.
    _, stream = await collect(stream_llama("a STO", **says("P!"), stop="STOP"))
    assert (stream.text, stream.finish_reason) == ("P!", FinishReason.LENGTH)


async def test_a_special_token_can_be_a_stop_string() -> None:
    """Only where it is part of the text."""
    kwargs: dict[str, Any] = {"stop": "<mark>", "skip_special_tokens": False}
    _, stream = await collect(stream_llama(**says("a", MARK, "b"), **kwargs))
    assert (stream.text, stream.stop_string) == ("a", "<mark>")


async def test_stop_strings_can_come_from_any_iterable() -> None:
    """Once: a generator would be empty in the thread."""
    context = stream_llama(**says("abc"), stop=(string for string in ["c"]))
    _, stream = await collect(context)
    assert stream.text == "ab"


async def test_a_stop_string_completed_by_the_very_end_of_the_text() -> None:
    """A character that is cut off becomes U+FFFD, which can be a stop string."""
    _, stream = await collect(stream_llama(**says("a", *ids_of("é")[:1]), stop="\ufffd"))
    assert stream.text == "a"
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, "\ufffd")


# -- generate()'s own, where special tokens are


async def test_a_stop_string_of_generate_that_is_a_special_token_is_named() -> None:
    """`generate()` searches the text with its special tokens, whatever of it is shown."""
    say = says("ab", MARK, "cd")
    _, stream = await collect(stream_llama(**say, stop_strings=["<mark>"]))
    assert (stream.text, stream.token_ids[-1]) == ("ab", MARK)
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, "<mark>")


async def test_a_stop_string_of_generate_is_not_completed_across_a_special_token() -> None:
    say = says("ab", MARK, "cd")
    kwargs: dict[str, Any] = {**say, "stop_strings": ["bc"], "max_new_tokens": 5}
    _, stream = await collect(stream_llama(**kwargs))
    assert (stream.text, stream.stop_string) == ("abcd", None)
    assert stream.finish_reason is FinishReason.LENGTH
