"""dspy: `LM`."""

from __future__ import annotations

import dspy

import checks


def model(**kwargs: object) -> dspy.LM:
    return dspy.LM(
        f"openai/{checks.MODEL}", api_base=checks.V1, api_key=checks.KEY, cache=False, **kwargs
    )


def whole() -> None:
    """`LM`"""
    assert model()(checks.COUNT) == [checks.COUNTED]


async def cancel() -> None:
    """cancelling a task in `LM.acall`"""
    await checks.cancel_while_running(model(max_tokens=checks.LIMIT).acall(checks.ENDLESS))


checks.try_all(
    "dspy",
    whole=whole,
    stream="of fields of text, which this model does not write",
    tools="it writes them into the prompt",
    forced_tool="it writes them into the prompt",
    structured="it writes the form into the prompt",
    cancel=cancel,
)
