"""The reasoning of an answer, before the part that has a form."""

from __future__ import annotations

import json
from typing import NamedTuple

from .grammar_builder import GrammarBuilder

__all__ = ["ANY_TEXT", "Reasoning", "reasoning_before", "reasoning_between", "reasoning_rest"]

ANY_TEXT = "/(?s:.*)/"


class Reasoning(NamedTuple):
    """The markers of a response template around the reasoning, which stands before the form."""

    begin: str  #: opens it; "" where the prompt has opened it
    end: str  #: closes it
    content: str = ""  #: opens the content after it
    between: str = ""  #: can stand before what follows it, where that is a message of its own


def reasoning_before(builder: GrammarBuilder, reasoning: Reasoning | None) -> str:
    """A Lark expression for a reasoning that can stand at the beginning of an answer."""
    if reasoning is None:
        return ""
    rest = reasoning_rest(builder, reasoning)
    return f"({builder.text(reasoning.begin)} {rest})?" if reasoning.begin else rest


def reasoning_between(builder: GrammarBuilder, reasoning: Reasoning | None) -> str:
    """A Lark expression for what can stand between a reasoning and what follows it."""
    if reasoning is None or not reasoning.between:
        return ""
    return f"({builder.text(reasoning.between)})?"


def reasoning_rest(builder: GrammarBuilder, reasoning: Reasoning) -> str:
    """A Lark expression for a reasoning after its opening marker, closing marker included."""
    first, *_ = builder.split(reasoning.end)
    text = builder.terminal(ANY_TEXT)
    if isinstance(first, int):
        return f"{text} {builder.text(reasoning.end)}"
    # Its text ends where the marker first comes.
    return f"{builder.rule(text, f'[suffix={json.dumps(first)}]')} " + builder.text(
        reasoning.end[len(first) :]
    )
