"""The options of all streams: listed in every public signature, and once inside."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from anystreamer import Engine, Timeouts, stream_batch, stream_text
from anystreamer._generation import Options

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
