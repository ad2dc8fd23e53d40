"""instructor: `from_openai`, in several of its modes."""

from __future__ import annotations

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


def client_of(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=checks.V1), mode=mode)


def asked(text: str) -> dict[str, object]:
    return {"model": checks.MODEL, "messages": [{"role": "user", "content": text}]}


def stream() -> None:
    """`create_partial`, `create_iterable`"""
    client = client_of(instructor.Mode.TOOLS)
    *_, last = client.create_partial(response_model=Weather, **asked(checks.COUNT))
    assert (last.city, last.degrees) == ("", 0)
    found = list(client.create_iterable(response_model=Weather, **asked(checks.COUNT)))
    assert found == []  # the model makes the shortest list


def forced_tool() -> None:
    """`create` in the modes `TOOLS` (its default), `TOOLS_STRICT` and `RESPONSES_TOOLS`"""
    for mode in ("TOOLS", "TOOLS_STRICT", "RESPONSES_TOOLS"):
        done = client_of(instructor.Mode[mode]).create(
            response_model=Weather, max_retries=0, **asked(checks.COUNT)
        )
        assert isinstance(done, Weather), mode


def structured() -> None:
    """`create` in the mode `JSON_SCHEMA`"""
    done = client_of(instructor.Mode.JSON_SCHEMA).create(
        response_model=Weather, max_retries=0, **asked(checks.COUNT)
    )
    assert isinstance(done, Weather)


async def cancel() -> None:
    """cancelling a task in `create`"""
    async with AsyncOpenAI(base_url=checks.V1) as openai:
        client = instructor.from_openai(openai)
        create = client.create(
            response_model=None, max_tokens=checks.LIMIT, **asked(checks.ENDLESS)
        )
        await checks.cancel_while_running(create)


def whole() -> None:
    """`create(response_model=None)`"""
    client = client_of(instructor.Mode.TOOLS)
    done = client.create(response_model=None, **asked(checks.COUNT))
    assert done.choices[0].message.content == checks.COUNTED


checks.try_all(
    "instructor",
    whole=whole,
    stream=stream,
    tools="it always forces one",
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
