"""browser-use: its `ChatOpenAI`, and what its agent asks of it, with a picture of the page."""

from __future__ import annotations

import os

os.environ |= {"ANONYMIZED_TELEMETRY": "false", "BROWSER_USE_LOGGING_LEVEL": "error"}

from browser_use.agent.views import AgentOutput
from browser_use.llm.messages import (
    AssistantMessage,
    BaseMessage,
    ContentPartTextParam,
    Function,
    SystemMessage,
    ToolCall,
    UserMessage,
)
from browser_use.llm.openai.chat import ChatOpenAI
from browser_use.tools.service import Tools

import checks


def model(**kwargs: object) -> ChatOpenAI:
    return ChatOpenAI(model=checks.MODEL, base_url=checks.V1, api_key=checks.KEY, **kwargs)


def asked(text: str) -> list[BaseMessage]:
    """A talk as its agent has it: a system message that is cached, a call, and parts of text."""
    call = ToolCall(id="1", function=Function(name="AgentOutput", arguments="{}"))
    return [
        SystemMessage(content="You browse.", cache=True),
        UserMessage(content="An example:"),
        AssistantMessage(content="", tool_calls=[call]),
        UserMessage(content=[ContentPartTextParam(text=text)]),
    ]


async def whole() -> None:
    """`ChatOpenAI.ainvoke`, with its temperature and penalty"""
    done = await model().ainvoke(asked(checks.COUNT))
    assert done.completion
    done = await model(temperature=0.0, frequency_penalty=None).ainvoke(asked(checks.COUNT))
    assert done.completion == checks.COUNTED


async def structured() -> None:
    """`ainvoke(output_format=AgentOutput)` with all actions of its agent"""
    actions = Tools().registry.create_action_model()
    form = AgentOutput.type_with_custom_actions(actions)
    done = await model(frequency_penalty=None).ainvoke(asked(checks.COUNT), form)
    assert isinstance(done.completion, AgentOutput)


async def cancel() -> None:
    """cancelling a task in `ainvoke`"""
    endless = model(max_completion_tokens=checks.LIMIT, frequency_penalty=None, temperature=0.0)
    await checks.cancel_while_running(endless.ainvoke(asked(checks.ENDLESS)))


checks.try_all(
    "browser-use",
    whole=whole,
    stream="it reads whole answers",
    tools="its actions are a form of the answer",
    forced_tool="its actions are a form of the answer",
    structured=structured,
    cancel=cancel,
)
