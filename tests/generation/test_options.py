"""The options of all streams: listed in every public signature, and once inside."""

from __future__ import annotations

import contextlib
import gc
import inspect
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from anystreamer import Engine, Timeouts, stream_batch, stream_text
from anystreamer._generation import Options
from anystreamer.testing import ScriptedModel

PUBLIC: dict[str, Any] = {
    "stream_text": stream_text,
    "stream_batch": stream_batch,
    "engine": Engine.stream_text,
}


def defaults_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_signatures_have_all_options_with_their_defaults(name: str) -> None:
    inside = {each.name: each.default for each in fields(Options) if each.init}
    assert defaults_of(PUBLIC[name]) == {
        **inside,
        **({} if name == "engine" else {"limiter": None}),
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_signatures_have_all_options_with_their_types(name: str) -> None:
    inside = {each.name: each.type for each in fields(Options) if each.init}
    parameters = inspect.signature(PUBLIC[name]).parameters
    assert {each: parameters[each].annotation for each in inside} == inside


def test_options_and_other_arguments_are_told_apart() -> None:
    options, others = Options.split({"stop": "x", "timeout": 3, "max_new_tokens": 5})
    assert (options.stop_strings, options.timeouts) == (("x",), Timeouts(total=3))
    assert others == {"max_new_tokens": 5}


def test_an_iterator_of_stop_strings_is_read_once() -> None:
    assert Options(stop=iter(["a", "b"])).stop_strings == ("a", "b")


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().stop = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("timeout", 10**400, ValueError),
        ("frequency_penalty", 10**400, ValueError),
        ("presence_penalty", -(10**400), ValueError),
        ("logit_bias", {1: 10**400}, ValueError),
        ("logit_bias", {True: 1.0}, TypeError),
        ("top_logprobs", 2.5, TypeError),
        ("top_logprobs", True, TypeError),
        ("top_logprobs", None, TypeError),
    ],
    ids=lambda each: f"{each!r:.20}",
)
def test_numbers_that_cannot_be_are_refused_at_once(
    option: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=option):
        Options(logprobs=True, **{option: value})


# -- worker_context


async def an_async_function() -> None:
    raise AssertionError


@contextlib.asynccontextmanager
async def an_async_context() -> AsyncIterator[None]:
    raise AssertionError
    yield


def an_undecorated_context() -> Iterator[None]:
    yield


@pytest.mark.parametrize("wrong", [an_async_function, an_undecorated_context, 1])
def test_a_worker_context_that_is_not_a_plain_function_is_refused_at_once(wrong: Any) -> None:
    model = ScriptedModel(["a"])
    with pytest.raises(TypeError, match="worker_context must be a"):
        stream_text(model, model.tokenizer, "hi", worker_context=wrong)


@pytest.mark.parametrize(
    "returns", [an_async_function, an_async_context, an_undecorated_context, lambda: None]
)
async def test_a_worker_context_that_returns_no_context_manager_is_an_error(returns: Any) -> None:
    """Before a forward pass, and with no warning of a coroutine that was never awaited."""
    model = ScriptedModel(["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="worker_context must return a context manager"):
            async with stream_text(
                model, model.tokenizer, "hi", worker_context=lambda: returns()
            ) as stream:
                await stream.read()
        gc.collect()
    assert not model.calls
