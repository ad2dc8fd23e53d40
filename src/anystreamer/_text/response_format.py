"""`response_format=`: the form that an answer keeps to, and what its text is parsed into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .grammar_builder import GrammarBuilder, in_slashes
from .reasoning import Reasoning, reasoning_before, reasoning_between

__all__ = [
    "AnswerForm",
    "Choice",
    "Grammar",
    "Regex",
    "ResponseFormat",
    "closed",
    "validate_response_format",
    "with_whitespace",
]


@dataclass(frozen=True)
class Regex:
    """An answer that matches a regular expression as a whole."""

    #: in the syntax of Rust's ``regex`` crate: as for `re`, but without look-around, back
    #: references and lazy quantifiers
    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise TypeError(f"a Regex takes a str, not a {type(self.pattern).__name__}")


@dataclass(frozen=True, init=False)
class Choice:
    """An answer that is one of several texts."""

    options: tuple[str, ...]  #: the texts, at least one; none of them is empty

    def __init__(self, options: Iterable[str]) -> None:
        if isinstance(options, str | bytes):
            raise TypeError("a Choice takes several texts: Choice([...])")
        texts = tuple(options)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"an option of a Choice is a str, not a {type(text).__name__}")
        if not texts or not all(texts):
            raise ValueError("a Choice needs at least one text, and none that is empty")
        object.__setattr__(self, "options", texts)


@dataclass(frozen=True)
class Grammar:
    """An answer that follows a context-free grammar."""

    #: with a rule ``start``, in llguidance's variant of Lark's syntax:
    #: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
    lark: str

    def __post_init__(self) -> None:
        if not isinstance(self.lark, str):
            raise TypeError(f"a Grammar takes a str, not a {type(self.lark).__name__}")


#: ``"json"`` for any JSON object, a JSON schema, a pydantic model class, or another form.
ResponseFormat = str | Mapping[str, Any] | type[Any] | Regex | Choice | Grammar


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """A form that was checked."""

    #: as an entry of llguidance's list of grammars
    grammar: dict[str, Any]
    #: makes of a complete text what `TextStream.parsed` is
    parse: Callable[[str], Any]

    @property
    def argument(self) -> str:
        """The argument that asks for it, for messages."""
        return "response_format"

    def grammars(
        self, builder: GrammarBuilder, reasoning: Reasoning | None
    ) -> list[dict[str, Any]]:
        """The grammar of the whole answer, as llguidance's list of grammars."""
        if reasoning is None:
            return [self.grammar]
        before = reasoning_before(builder, reasoning)
        return builder.grammars(f"{before} {self.rule(builder, reasoning)}")

    def rule(self, builder: GrammarBuilder, reasoning: Reasoning | None) -> str:
        """A Lark expression for the answer after the reasoning."""
        form = builder.other("form", self.grammar)
        if reasoning is None:
            return form
        between = reasoning_between(builder, reasoning)
        return f"/\\s*/ {between} {builder.text(reasoning.content)} {form}"


def validate_response_format(value: Any) -> AnswerForm | None:
    """Return the form of a ``response_format`` argument; None for None.

    Whether a schema, an expression or a grammar is valid is found out when it is compiled.

    Raises:
        TypeError, ValueError: for what describes no form.
    """
    match value:
        case None:
            return None
        case "json":
            return _json_form({"type": "object"})
        case Regex():
            return _lark_form(f"start: TEXT\nTEXT: {in_slashes(value.pattern)}")
        case Choice():
            return _lark_form("start: " + " | ".join(map(json.dumps, value.options)))
        case Grammar():
            return _lark_form(value.lark)
        case Mapping():
            return _json_form(value)
        case type() if hasattr(value, "model_json_schema"):
            model: Any = value
            return _json_form(closed(model.model_json_schema()), model.model_validate_json)
        case str():
            raise ValueError(
                f"response_format={value!r:.80} is not known: pass 'json', a JSON schema as a "
                "dict, a pydantic model class, Regex(...), Choice([...]) or Grammar(...)"
            )
    raise TypeError(
        "response_format must be 'json', a JSON schema as a dict, a pydantic model class, "
        f"Regex(...), Choice([...]) or Grammar(...), not {value!r:.80}"
    )


# Between two tokens of JSON: nothing, a space, or a new line with its indentation. Where any white
# space is allowed, small models write it forever. No "\r": after it, the masks of llguidance 1.9.1
# have wrong tokens for some vocabularies.
_WHITESPACE = r" ?|\n[ \t]{0,16}"


def _json_form(schema: Mapping[str, Any], parse: Callable[[str], Any] = json.loads) -> AnswerForm:
    if "type" in schema and "json_schema" in schema:
        raise ValueError(
            "response_format takes the schema itself, without OpenAI's wrapper: pass "
            "response_format['json_schema']['schema']"
        )
    try:
        # A copy: the caller's can change later. NaN is not valid JSON.
        copied = json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"response_format is not a JSON schema: {exc}") from None
    return AnswerForm({"json_schema": with_whitespace(copied)}, parse)


def with_whitespace(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that says how white space is written, if it did not say so."""
    return {"x-guidance": {"whitespace_pattern": _WHITESPACE}, **schema}


def closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that it names."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(value) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        result.setdefault("additionalProperties", False)
    return result


def _lark_form(lark: str) -> AnswerForm:
    return AnswerForm({"lark_grammar": lark}, str)
