"""The fields of a request: which values change nothing, which only annotate, what is refused.

One rule for all of them. A null, and a value that a field's annotation calls neutral, mean the same
as no value. Any other value has an effect, or is accepted and not read, or is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["INSTEAD", "Fixed", "Ignored", "Neutral", "Strict", "chosen_by", "neutral_values"]

#: Fields that other servers have, or that OpenAI's API used to have, and what to send here.
INSTEAD = {
    "do_sample": "send temperature, which is 0 for the likeliest token",
    "documents": "put their text into a message",
    "ebnf": "send response_format",
    "enable_thinking": "send chat_template_kwargs",
    "format": "send response_format",
    "grammar": "send response_format",
    "guided_choice": "send response_format",
    "guided_grammar": "send response_format",
    "guided_json": "send response_format",
    "guided_regex": "send response_format",
    "input": "send messages or prompt",
    "json_schema": "send response_format",
    "max_length": "send max_tokens",
    "max_new_tokens": "send max_tokens",
    "max_output_tokens": "send max_tokens",
    "min_new_tokens": "send min_tokens",
    "num_predict": "send max_tokens",
    "num_return_sequences": "send n",
    "reasoning": "send reasoning_effort",
    "regex": "send response_format",
    "repeat_penalty": "send repetition_penalty",
    "stop_sequences": "send stop",
    "structured_outputs": "send response_format",
    "system": "send it as the first message",
    "think": "send reasoning_effort",
    "thinking": "send reasoning_effort",
    "thinking_token_budget": "send reasoning_effort",
}


# Annotations are compared by identity. `typing` keeps each `Annotated[...]` that it has made, and
# takes an equal one in its place: `Fixed(0)` would become the `Fixed(False)` of another field.
@dataclass(frozen=True, slots=True, eq=False)
class Neutral:
    """Ignored a field that has an effect: these of its values mean the same as no value."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, slots=True, eq=False)
class Ignored:
    """Ignored a field with the client's own notes: any value is accepted, and not read."""


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """Ignored a field that accepts only neutral values.

    Args:
        values: the neutral ones, besides null.
        instead: what to send in place of another one.
    """

    values: tuple[Any, ...]
    instead: str

    def __init__(self, *values: Any, instead: str = "") -> None:
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "instead", instead)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._refuse)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": [None, *self.values]}

    def _refuse(self, value: Any) -> None:
        # The neutral values do not come here.
        others = "".join(f", or send {json.dumps(each)}" for each in self.values)
        instead = f"; {self.instead}" if self.instead else ""
        raise PydanticCustomError(
            "not_supported",
            "is not supported: leave it out{others}{instead}",
            {"others": others, "instead": instead},
        )


class Strict(BaseModel):
    """A model of a request, or of a part of one, that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    # It also lets other threads run: pydantic holds the interpreter's lock between such functions.
    @model_validator(mode="before")
    @classmethod
    def _leave_out_neutral_values(cls, data: Any) -> Any:
        """Leave out what changes nothing; and all unknown fields but the first.

        pydantic would make an error of each unknown one.
        """
        if not isinstance(data, dict):
            return data
        fields, kept, has_unknown = neutral_values(cls), {}, False
        for name, value in data.items():
            if value is None:
                continue
            if name not in fields:
                if has_unknown:
                    continue
                has_unknown = True
            elif any(_is_same(value, each) for each in fields[name]):
                continue
            kept[name] = value
        return kept


@cache
def neutral_values(kind: type[Strict]) -> dict[str, tuple[Any, ...]]:
    """The neutral values of each field, by its name in requests. Null is always one, too."""
    return {
        field.alias or name: tuple(
            value
            for each in field.metadata
            if isinstance(each, Neutral | Fixed)
            for value in each.values
        )
        for name, field in kind.model_fields.items()
    }


def _is_same(value: Any, neutral: Any) -> bool:
    """Whether they are the same value in JSON: 0 is not false, but 0.0 is 0."""
    return isinstance(value, bool) is isinstance(neutral, bool) and bool(value == neutral)


def chosen_by(
    field: str, kinds: Mapping[str, str], otherwise: str, *, missing: str | None = None
) -> Discriminator:
    """Choose the model of an object by one of its fields: of a message, a part, an item or a form.

    Args:
        field: such as ``"type"``.
        kinds: the tags of the models, by the field's value.
        otherwise: the tag for another value. Its model refuses the object by name.
        missing: the tag where the field is null or not there; *otherwise* by default.
    """

    def tag_of(value: Any) -> str:
        name = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        if name is None:
            return missing or otherwise
        return kinds.get(name, otherwise) if isinstance(name, str) else otherwise

    return Discriminator(tag_of)
