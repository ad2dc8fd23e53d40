"""Reasoning and tool calls through the edge: the templates of a real tokenizer, real clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from anystreamer import open_engine
from anystreamer.server import create_app

from ..helpers.call_templates import NEEDS_RESPONSE_PARSER
from ..helpers.serving import LEFT_GENERATORS, client_of, data_of, official, serving
from ..helpers.tiny_models import EOS, Say, new_llama
from ..text.test_response_parser import (
    CALLED,
    JSON_CALL,
    QWEN,
    THOUGHT,
    TOOLS,
    XML,
    XML_CALL,
    new_tokenizer,
)

pytestmark = [pytest.mark.torch, pytest.mark.slow, NEEDS_RESPONSE_PARSER, LEFT_GENERATORS]

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT_TEMPLATE = """
{%- for tool in tools or [] %}{{ "<tool>" + tool.function | tojson + "\\n" }}{% endfor %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" }}
    {%- if message.reasoning_content %}
        {{- "<think>" + message.reasoning_content + "</think>" }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- "<call>" + call.function.name + call.function.arguments | tojson }}
    {%- endfor %}
    {%- if message.role == "tool" %}{{ message.name }}={{ message.tool_call_id }}{% endif %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""


class Saying:
    """A model that says a text, whatever it is asked, and keeps its prompts."""

    def __init__(self, text: str, template: dict[str, Any] | None = QWEN) -> None:
        self.tokenizer = new_tokenizer()
        self.tokenizer.chat_template = CHAT_TEMPLATE
        self.tokenizer.response_template = template
        self.prompts: list[str] = []
        self.model = new_llama()
        self._ids = [*self.tokenizer.encode(text), EOS]
        self._generate = self.model.generate
        self.model.generate = self.generate

    def generate(self, **kwargs: Any) -> Any:
        self.prompts.append(self.tokenizer.decode(kwargs["input_ids"][0]))
        processors = [Say(*self._ids), *kwargs.pop("logits_processor", ())]
        return self._generate(**kwargs, logits_processor=processors)


@asynccontextmanager
async def edge(says: Saying) -> AsyncIterator[str]:
    async with open_engine(says.model, says.tokenizer) as engine:
        async with serving(create_app(engine)) as url:
            yield url


def deltas_of(text: str) -> tuple[list[dict[str, Any]], str]:
    """The deltas of the only choice, and its finish reason."""
    *chunks, done = data_of(text)
    assert done == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    return [choice["delta"] for choice in choices], choices[-1]["finish_reason"]


async def both(says: Saying, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str, Any]:
    """Deltas and finish reason, and the choice of the whole answer."""
    async with edge(says) as url, client_of(url) as client:
        response = await client.post(CHAT, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        deltas, reason = deltas_of(response.text)
        answer = (await client.post(CHAT, json=body)).json()
    ChatCompletion.model_validate(answer, strict=True)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == reason
    return deltas, reason, choice["message"]


async def test_reasoning_has_deltas_of_its_own() -> None:
    deltas, reason, message = await both(Saying(THOUGHT + "Yes."), {"messages": MESSAGES})
    assert deltas[0] == {"role": "assistant", "content": None}
    said = [(name, text) for delta in deltas[1:] for name, text in delta.items()]
    assert "".join(text for name, text in said if name == "reasoning_content") == "Well é 🙂."
    assert "".join(text for name, text in said if name == "content") == "Yes."
    assert [name for name, _ in said] == sorted((name for name, _ in said), reverse=True)
    assert (deltas[-1], reason) == ({}, "stop")
    assert message == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "Well é 🙂.",
    }


@pytest.mark.parametrize(("template", "call"), [(QWEN, JSON_CALL), (XML, XML_CALL)], ids="jx")
async def test_tool_calls_are_openai_s_to_the_letter(template: dict[str, Any], call: str) -> None:
    says = Saying(f"{THOUGHT}{call}\n{call}", template)
    deltas, reason, message = await both(says, {"messages": MESSAGES, "tools": TOOLS})
    calls = [each for delta in deltas for each in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    for each in (*calls, *message["tool_calls"]):
        assert each["id"].startswith("call_")
        assert each["type"] == "function"
        assert each["function"]["name"] == "wait"
        assert json.loads(each["function"]["arguments"]) == CALLED["function"]["arguments"]
    assert all("index" not in call for call in message["tool_calls"])
    assert reason == "tool_calls"
    assert message["content"] is None
    assert not any(delta.get("content") for delta in deltas)


async def test_an_answer_that_was_cut_ends_with_length_and_has_no_half_call() -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": len(JSON_CALL) - 5}
    _, reason, message = await both(Saying(JSON_CALL), body)
    assert reason == "length"
    assert "tool_calls" not in message


async def test_a_malformed_call_is_sent_as_text() -> None:
    said = "One.\n<tool_call>\n{nonsense\n</tool_call>\n<tool_call>[1]</tool_call>Two."
    deltas, reason, message = await both(Saying(said), {"messages": MESSAGES, "tools": TOOLS})
    content = "".join(delta.get("content") or "" for delta in deltas)
    assert content == message["content"]
    for text in ("One.", "{nonsense", "[1]", "Two."):
        assert text in content
    assert reason == "stop"


async def test_half_a_surrogate_in_an_argument_can_be_sent_back() -> None:
    """JSON can write it, and UTF-8 cannot."""
    said = '<tool_call>{"name": "wait", "arguments": {"why": "a\\ud800b"}}</tool_call>'
    deltas, reason, message = await both(Saying(said), {"messages": MESSAGES, "tools": TOOLS})
    (streamed,) = [each for delta in deltas for each in delta.get("tool_calls", ())]
    (whole,) = message["tool_calls"]
    for call in (streamed, whole):
        assert json.loads(call["function"]["arguments"]) == {"why": "a\ufffdb"}
    assert reason == "tool_calls"
    answered = {"role": "tool", "tool_call_id": whole["id"], "content": "done"}
    _, reason, _ = await both(
        Saying("Well."), {"messages": [*MESSAGES, message, answered], "tools": TOOLS}
    )
    assert reason == "stop"


async def test_arguments_that_are_not_json_are_text() -> None:
    """Python's parser takes NaN, and no client does."""
    said = '<tool_call>{"name": "wait", "arguments": {"seconds": NaN}}</tool_call>'
    deltas, reason, message = await both(Saying(said), {"messages": MESSAGES, "tools": TOOLS})
    assert "NaN" in message["content"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    assert reason == "stop"


@pytest.mark.parametrize("more", [{}, {"tool_choice": "none"}, {"tool_choice": "auto"}])
async def test_without_tools_there_are_no_calls(more: dict[str, Any]) -> None:
    says = Saying(THOUGHT + JSON_CALL)
    _, reason, message = await both(says, {"messages": MESSAGES, **more})
    assert reason == "stop"
    assert message["content"] == JSON_CALL
    assert message["reasoning_content"] == "Well é 🙂."
    assert not any("<tool>" in prompt for prompt in says.prompts)


async def test_a_conversation_goes_back_as_the_template_wants_it() -> None:
    call = {
        "id": "call_7",
        "type": "function",
        "function": {"name": "wait", "arguments": '{"seconds": 7}'},
    }
    # OpenAI's only type, which some clients leave out.
    empty = {"id": "call_8", "function": {"name": "wait", "arguments": ""}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "reasoning_content": "So", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_7", "content": "done"},
        {"role": "assistant", "tool_calls": [empty]},
        {"role": "tool", "tool_call_id": "call_9", "content": [{"type": "text", "text": "what?"}]},
    ]
    says = Saying("Yes")
    tool = {"type": "function", "function": {"name": "wait", "strict": False}}
    body = {"messages": messages, "tools": [tool], "parallel_tool_calls": True}
    await both(says, body)
    assert says.prompts[0] == (
        '<tool>{"name": "wait", "description": "", '
        '"parameters": {"type": "object", "properties": {}}}\n'
        "<|im_start|>user\nhi<|im_end|>\n"
        '<|im_start|>assistant\n<think>So</think><call>wait{"seconds": 7}<|im_end|>\n'
        "<|im_start|>tool\ndonewait=call_7<|im_end|>\n"
        "<|im_start|>assistant\n<call>wait{}<|im_end|>\n"
        "<|im_start|>tool\nwhat?=call_9<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def called(**function: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "wait", **function}}
    return [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "wait", **function}}]


CALLED_PATH = "messages[1].tool_calls[0]"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "mcp", "server_label": "wait"}]}, "tools[0].type"),
    ({"tools": tool(name="wa it")}, "tools[0].function.name"),
    ({"tools": tool(strict="yes")}, "tools[0].function.strict"),
    ({"tools": [*tool(), *tool()]}, "tools"),
    ({"tools": tool(strict=True, parameters={"type": "string"})}, "tools"),
    ({"tools": tool(strict=True, parameters={"not": {}})}, "tools"),
    ({"tools": tool(other=1)}, "tools[0].function.other"),
    ({"tools": tool(defer_loading=True)}, "tools[0].function.defer_loading"),
    ({"tools": [{**tool()[0], "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": tool(parameters=[])}, "tools[0].function.parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "go"}}},
        "tool_choice",
    ),
    ({"tools": tool(parameters={"not": {}}), "tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"functions": [{"name": "wait"}]}, "functions"),
    ({"messages": called(arguments="{")}, f"{CALLED_PATH}.function.arguments"),
    ({"messages": called(arguments="[]")}, f"{CALLED_PATH}.function.arguments"),
    ({"messages": called(arguments={})}, f"{CALLED_PATH}.function.arguments"),
    ({"messages": called()}, f"{CALLED_PATH}.function.arguments"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "tool", "tool_call_id": "1"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "", "tool_calls": []}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant"}]}, "messages[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0]"),
]


async def test_what_cannot_be_kept_is_refused_by_name() -> None:
    async with edge(Saying("Yes")) as url, client_of(url) as client:
        for body, param in REFUSED:
            response = await client.post(CHAT, json={"messages": MESSAGES, **body})
            assert response.status_code == 400, (body, response.text)
            assert response.json()["error"]["param"] == param, (body, response.text)


async def test_models_whose_templates_know_no_tools_refuse_them() -> None:
    deaf = Saying("Yes")
    deaf.tokenizer.chat_template = CHAT_TEMPLATE.replace("in tools", "in []")
    for says in (Saying("Yes", None), deaf):
        async with edge(says) as url, client_of(url) as client:
            for body in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}):
                response = await client.post(CHAT, json={"messages": MESSAGES, **body})
                assert response.status_code == 400
                assert response.json()["error"]["param"] == "tools"
            assert (await client.post(CHAT, json={"messages": MESSAGES})).status_code == 200


async def test_completions_are_sent_unparsed() -> None:
    async with edge(Saying(THOUGHT + JSON_CALL)) as url, client_of(url) as client:
        answer = (await client.post("/v1/completions", json={"prompt": "hi"})).json()
    assert answer["choices"][0]["text"] == THOUGHT + JSON_CALL


async def test_the_tokens_of_all_fields_have_log_probabilities() -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "logprobs": True, "top_logprobs": 2}
    text = f"{THOUGHT}Yes{JSON_CALL}"
    async with edge(Saying(text)) as url, client_of(url) as client:
        (choice,) = (await client.post(CHAT, json=body)).json()["choices"]
        response = await client.post(CHAT, json={**body, "stream": True})
    told = choice["logprobs"]["content"]
    # Those of half a character too: its text is U+FFFD, its bytes are known.
    shown = b"".join(bytes(token["bytes"]) for token in told).decode()
    assert shown == f"{text}<|im_end|>"  # with the token that ended it, which counts as well
    chunks = [chunk["choices"][0] for chunk in data_of(response.text)[:-1]]
    streamed = [
        token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]
    ]
    assert streamed == told
    assert all(len(token["top_logprobs"]) == 2 for token in told)


async def test_the_official_client_calls_a_tool_and_is_answered() -> None:
    async with edge(Saying(f"{THOUGHT}Wait.\n{JSON_CALL}")) as url, official(url) as client:
        ask: Any = partial(client.chat.completions.create, model="anystreamer", tools=TOOLS)
        whole = await ask(messages=MESSAGES)
        (choice,) = whole.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Wait."
        assert choice.message.reasoning_content == "Well é 🙂."
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "wait")
        assert json.loads(call.function.arguments) == CALLED["function"]["arguments"]
        listen: Any = partial(client.chat.completions.stream, model="anystreamer", tools=TOOLS)
        async with listen(messages=MESSAGES) as events:
            kinds = {event.type async for event in events}
            final = (await events.get_final_completion()).choices[0]
        assert "tool_calls.function.arguments.done" in kinds
        assert final.finish_reason == "tool_calls"
        assert final.message.content == "Wait."
        (streamed,) = final.message.tool_calls
        assert streamed.id
        assert streamed.index == 0
        assert streamed.function.name == "wait"
        assert json.loads(streamed.function.arguments) == CALLED["function"]["arguments"]
        answered = {"role": "tool", "tool_call_id": call.id, "content": "done"}
        for message in (choice.message, final.message):
            messages = [*MESSAGES, message, answered]
            again = await ask(messages=messages)
            assert again.choices[0].finish_reason == "tool_calls"


async def test_an_answer_that_only_reasoned_goes_back() -> None:
    """The official client makes a message without content of its stream."""
    says = Saying(THOUGHT.partition("é")[0])
    async with edge(says) as url, official(url) as client:
        ask: Any = client.chat.completions
        async with ask.stream(messages=MESSAGES, model="anystreamer") as events:
            streamed = (await events.get_final_completion()).choices[0].message
        whole = (await ask.create(messages=MESSAGES, model="anystreamer")).choices[0].message
        assert (streamed.content, whole.content) == (None, "")
        for answer in (streamed, whole):
            assert answer.reasoning_content == "Well"
            await ask.create(messages=[*MESSAGES, answer, *MESSAGES], model="anystreamer")
            assert "<think>Well</think><|im_end|>" in says.prompts[-1]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["type", "anyOf", "seconds"]), inner
        )
    ),
    max_leaves=5,
)
SCHEMA = JUNK | st.fixed_dictionaries({"type": st.just("object"), "properties": JUNK})
TOOL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.just("wait")}, optional={"description": st.text(), "parameters": SCHEMA}
        ),
    }
)
CALL = st.fixed_dictionaries(
    {
        "id": st.text(max_size=3),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.text(max_size=3), "arguments": JUNK.map(json.dumps) | st.text()}
        ),
    }
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"])},
    optional={
        "content": st.none() | st.text(max_size=5),
        "reasoning_content": st.text(max_size=5),
        "tool_calls": st.lists(CALL, max_size=2),
        "tool_call_id": st.text(max_size=3),
    },
)


@pytest.mark.hypothesis
def test_whatever_tools_are_sent_is_answered_and_never_with_a_500() -> None:
    says = Saying('<tool_call>{"name":"wait","arguments":{"seconds":"7"}}</tool_call>')
    few = settings().max_examples // 4  # each takes as many steps as the call has letters

    @given(messages=st.lists(MESSAGE, max_size=3), tools=st.lists(TOOL, max_size=2), more=JUNK)
    @settings(deadline=None, max_examples=few)
    def ask(messages: Any, tools: Any, more: Any) -> None:
        body = {"messages": [*MESSAGES, *messages], "tools": tools, "tool_choice": "auto"}
        if isinstance(more, dict):
            body |= more
        response = client.post(CHAT, json=body)
        assert response.status_code in (200, 400), response.text

    with start_blocking_portal("asyncio") as portal:
        engine = open_engine(says.model, says.tokenizer)
        with portal.wrap_async_context_manager(engine) as opened:
            with portal.wrap_async_context_manager(serving(create_app(opened))) as url:
                with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
                    ask()
