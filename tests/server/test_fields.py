"""What a field of a request does: acts, annotates, changes nothing, or is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

import httpx
import pytest

from anystreamer.server._fields import (
    INSTEAD,
    Fixed,
    Ignored,
    Neutral,
    Strict,
    neutral_values,
)
from anystreamer.server._request_models import ChatRequest, CompletionRequest
from anystreamer.server._responses_api import ResponsesRequest
from anystreamer.testing import ScriptedModel

from ..helpers.serving import edge, error_of
from .test_server import CHAT, MESSAGES, TEXT

T = TypeVar("T")

# What the smallest request has.
LEAST: dict[str, dict[str, Any]] = {CHAT: {"messages": MESSAGES}, TEXT: {"prompt": "Hi"}}
KINDS: dict[str, type[Strict]] = {CHAT: ChatRequest, TEXT: CompletionRequest}


def fields_of(role: type[T]) -> list[tuple[str, str, T]]:
    """The fields of that role: their paths, names, and annotations."""
    return [
        (path, name, each)
        for path, kind in KINDS.items()
        for name, field in kind.model_fields.items()
        for each in field.metadata
        if isinstance(each, role)
    ]


def answer_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"]


async def ask_all(path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask for each, together with the least. Returns what the model was called with."""
    model = ScriptedModel(["a"])
    async with edge(model) as (client, _):
        for body in bodies:
            response = await client.post(path, json={**LEAST[path], **body})
            assert response.status_code == 200, (body, response.text)
    return model.calls


@pytest.mark.parametrize("path", KINDS)
async def test_null_and_neutral_values_are_as_good_as_none(path: str) -> None:
    neutral = neutral_values(KINDS[path])
    bodies = [{name: value} for name in neutral for value in (None, *neutral[name])]
    bodies = [each for each in bodies if not each.keys() & LEAST[path].keys()]
    assert {"logit_bias": {}} in bodies
    assert {"n": None} in bodies
    assert {"frequency_penalty": 0} in bodies
    plain, *calls = await ask_all(path, [{}, *bodies, {"something": None}])
    assert len(calls) > len(neutral)
    assert all(call == plain for call in calls)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"frequency_penalty": 0.0}),
        (CHAT, {"tool_choice": "auto"}),
        (CHAT, {"tool_choice": "none"}),
        (CHAT, {"parallel_tool_calls": True}),
        (CHAT, {"stream_options": None}),
        (CHAT, {"best_of": 1}),
        (CHAT, {"function_call": "auto", "functions": []}),
        (CHAT, {"modalities": ["text"]}),
        # vLLM's own defaults, which clients made for it can send
        (CHAT, {"include_reasoning": True, "add_special_tokens": False, "echo": False}),
        (CHAT, {"spaces_between_special_tokens": True, "priority": 0, "length_penalty": 1.0}),
        (TEXT, {"add_special_tokens": True, "use_beam_search": False, "bad_words": []}),
        (CHAT, {"response_format": {"type": "text", "json_schema": None}}),
        (TEXT, {"best_of": 1, "suffix": "", "response_format": {"type": "text"}}),
        (TEXT, {"best_of": None, "suffix": None}),
    ],
)
async def test_what_clients_send_and_changes_nothing(path: str, body: dict[str, Any]) -> None:
    plain, call = await ask_all(path, [{}, body])
    assert call == plain


async def test_neutral_values_are_those_of_json() -> None:
    """0 is not false there, nor 1 true."""
    bodies: list[dict[str, Any]] = [
        {"frequency_penalty": False},
        {"ignore_eos": 0},
        {"repetition_penalty": True},
        {"priority": False},
        {"spaces_between_special_tokens": 1},
    ]
    async with edge(ScriptedModel(["a"])) as (client, _):
        for body in bodies:
            response = await client.post(CHAT, json={"messages": MESSAGES, **body})
            assert response.status_code == 400, body
            assert error_of(response)["param"] in body


@pytest.mark.parametrize("kind", [Fixed, Neutral])
def test_annotations_of_one_field_are_not_taken_for_those_of_another(kind: type[Any]) -> None:
    """`typing` keeps the annotations that it has made, and finds one that is equal."""
    for one, other in ((0, False), (1, True), (1, 1.0), (0, -0.0)):
        made: list[Any] = [Annotated[None, kind(one)], Annotated[None, kind(other)]]
        values = [type(each.__metadata__[0].values[0]) for each in made]
        assert values == [type(one), type(other)]


@pytest.mark.parametrize("path", KINDS)
async def test_a_field_that_annotates_takes_anything(path: str) -> None:
    values: list[Any] = ["x", 7, True, 0.5, {"a": {"b": [None]}}, ["x"], ""]
    names = [name for each, name, _ in fields_of(Ignored) if each == path]
    plain, *calls = await ask_all(path, [{}, *({n: each} for n in names for each in values)])
    assert calls == [plain] * len(values) * len(names)


def test_notes_of_openai_s_are_taken_by_the_responses_api_too() -> None:
    for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        ResponsesRequest.model_validate({"input": "Hi", name: "x"})
    for name in ("prompt_cache_options", "client_metadata"):
        ResponsesRequest.model_validate({"input": "Hi", name: {"mode": "explicit"}})


def test_what_clients_only_note_is_known() -> None:
    for path in KINDS:
        notes = {name for each, name, _ in fields_of(Ignored) if each == path}
        assert {"user", "metadata", "store", "service_tier", "safety_identifier"} <= notes
        assert "prompt_cache_key" in notes


@pytest.mark.parametrize(("path", "name", "role"), fields_of(Fixed))
async def test_a_field_that_is_fixed_refuses_all_else(path: str, name: str, role: Fixed) -> None:
    async with edge(ScriptedModel(["a"])) as (client, _):
        for value in ("other", 7, {"a": 1}, [1]):
            response = await client.post(path, json={**LEAST[path], name: value})
            assert response.status_code == 400, (name, value)
            error = error_of(response)
            assert (error["param"], error["code"]) == (name, "unsupported_value")
            # It says what to write instead.
            assert error["message"].startswith(f"{name} is not supported: leave it out")
            for neutral in role.values:
                assert json.dumps(neutral) in error["message"]


async def test_what_is_unknown_is_refused_with_what_to_send() -> None:
    model = ScriptedModel(["a"])
    async with edge(model) as (client, _):
        for name, instead in {**INSTEAD, "unheard_of": "leave it out"}.items():
            for path in KINDS:
                response = await client.post(path, json={**LEAST[path], name: [1]})
                assert response.status_code == 400
                error = error_of(response)
                assert error["message"] == f"{name} is not supported: {instead}"
                assert error["code"] == "unknown_parameter"
    assert not model.calls


def test_reasoning_goes_back_by_either_name() -> None:
    answer = {"role": "assistant", "content": "Hi"}
    for names in ({"reasoning_content": "Hm."}, {"reasoning": "Hm.", "reasoning_content": None}):
        asked = ChatRequest.model_validate({"messages": [{**answer, **names}]})
        expected: Any = {**answer, "reasoning_content": "Hm."}
        assert asked.prompts == [("messages", [expected])]


def test_what_is_sent_instead_is_a_field_of_ours() -> None:
    known = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
    assert not INSTEAD.keys() & known
    for instead in INSTEAD.values():
        words = instead.replace(",", "").split()
        assert known.intersection(words) or "message" in words, instead


MESSAGE_BODIES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi", "name": "Ada"}],
    [{"role": "system", "content": "Hi", "name": None, "cache_control": {"type": "ephemeral"}}],
    [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "!", "cache_control": None},
                {"type": "text", "text": "?", "prompt_cache_breakpoint": {"mode": "explicit"}},
            ],
        }
    ],
    [
        {
            "role": "assistant",
            "content": "Hi",
            "name": "Bob",
            "tool_calls": [],
            "annotations": [],
            "refusal": None,
            "audio": None,
            "function_call": None,
            "reasoning_content": None,
        }
    ],
    [{"role": "tool", "content": "Hi", "tool_call_id": "1", "name": "f", "tool_calls": None}],
]


@pytest.mark.parametrize(
    "messages", MESSAGE_BODIES, ids=[each[0]["role"] for each in MESSAGE_BODIES]
)
async def test_messages_have_notes_and_neutral_values(messages: list[dict[str, Any]]) -> None:
    (call,) = await ask_all(CHAT, [{"messages": messages}])
    text = "".join(map(chr, call["input_ids"][0]))
    assert text.startswith(f"{messages[0]['role']}: Hi")


def test_tools_have_notes_and_neutral_values() -> None:
    function = {"name": "wait"}
    more = {"cache_control": {"type": "ephemeral"}, "defer_loading": False}
    tools = [
        {"type": "function", "function": function},
        {"function": {**function, **more}, **more},
    ]
    asked = ChatRequest.model_validate({"messages": MESSAGES, "tools": tools})
    assert asked.tools is not None
    plain, other = (each.as_argument() for each in asked.tools)
    assert other == plain


async def test_messages_refuse_the_rest_by_name() -> None:
    assistant = {"role": "assistant", "content": "Hi"}
    bodies = [
        ({**assistant, "audio": {"id": "1"}}, "messages[0].audio"),
        ({**assistant, "refusal": "No."}, "messages[0].refusal"),
        ({**assistant, "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({**assistant, "unheard_of": 1}, "messages[0].unheard_of"),
        ({"role": "tool", "content": "", "tool_call_id": "1", "name": 5}, "messages[0].name"),
    ]
    async with edge(ScriptedModel(["a"])) as (client, _):
        for message, param in bodies:
            response = await client.post(CHAT, json={"messages": [message]})
            assert response.status_code == 400
            assert error_of(response)["param"] == param


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    (CHAT, {"temperature": 2.1}, "temperature", "less than or equal to 2"),
    (CHAT, {"top_p": 1.1}, "top_p", "less than or equal to 1"),
    (CHAT, {"top_p": -0.1}, "top_p", "greater than or equal to 0"),
    (CHAT, {"top_k": -2}, "top_k", "greater than or equal to -1"),
    (CHAT, {"top_k": 1.5}, "top_k", "integer"),
    (CHAT, {"min_p": 1.01}, "min_p", "less than or equal to 1"),
    (CHAT, {"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
    (CHAT, {"presence_penalty": -2.5}, "presence_penalty", "greater than or equal to -2"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    (CHAT, {"logit_bias": {"a": 1}}, "logit_bias.a", "pattern"),
    (CHAT, {"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
    (CHAT, {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
    (TEXT, {"max_tokens": 0}, "max_tokens", "or 0 with echo=true"),
    (TEXT, {"max_tokens": -1, "echo": True}, "max_tokens", "greater than or equal to 0"),
    (CHAT, {"min_tokens": 6, "max_tokens": 5}, "min_tokens", "at most max_tokens, which is 5"),
    (CHAT, {"min_tokens": 21}, "min_tokens", "at most 20"),  # the default limit
    (CHAT, {"max_tokens": 10_000}, "max_tokens", "40 tokens, prompt and answer together"),
    (TEXT, {"prompt": "x" * 41}, "prompt", "40 tokens"),
    (TEXT, {"prompt": [7] * 41}, "prompt", "40 tokens"),
    (TEXT, {"prompt": []}, "prompt", "at least 1"),
    (TEXT, {"prompt": [[]]}, "prompt[0]", "at least 1"),
    (TEXT, {"prompt": [["x"]]}, "prompt[0][0]", "integer"),
    (TEXT, {"prompt": [True]}, "prompt[0]", "valid"),
    (TEXT, {"prompt": "Hi", "n": 2, "best_of": 3}, "best_of", "the same as n"),
    (CHAT, {"stop_token_ids": [-1]}, "stop_token_ids[0]", "greater than or equal to 0"),
    (
        CHAT,
        {"add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
        "exclude each other",
    ),
    (CHAT, {"continue_final_message": True}, "continue_final_message", "of the assistant"),
    (
        CHAT,
        {"chat_template_kwargs": {"tokenize": False}},
        "chat_template_kwargs.tokenize",
        "not for the template",
    ),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_is_a_400_before_the_stream(stream: bool) -> None:
    """Also where comments would keep the connection alive at once."""
    model = ScriptedModel([0.05, "a"])
    limits: dict[str, Any] = {"default_max_tokens": 20, "context_length": 40, "keep_alive": 0.001}
    async with edge(model, **limits) as (client, _):
        for path, body, param, part in WRONG:
            full = {**LEAST[path], "stream": stream, **body}
            response = await client.post(path, json=full)
            assert response.status_code == 400, (body, response.text)
            assert response.headers["content-type"] == "application/json"
            error = error_of(response)
            assert (error["type"], error["param"]) == ("invalid_request_error", param), body
            assert part in error["message"], error
    assert not model.calls


async def test_what_generate_can_do_is_asked_of_it() -> None:
    """Each field on its own, in generate()'s terms."""
    asked: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "top_k": ({"top_k": 20}, {"do_sample": True, "temperature": 1.0, "top_k": 20}),
        "all": ({"top_k": -1}, {"top_k": 0}),
        "min_p": ({"min_p": 0.05}, {"do_sample": True, "temperature": 1.0, "min_p": 0.05}),
        "greedy": ({"temperature": 0, "top_k": 20, "min_p": 0.05}, {"do_sample": False}),
        "repetition": ({"repetition_penalty": 2}, {"repetition_penalty": 2.0}),
        "min_tokens": ({"min_tokens": 4}, {"min_new_tokens": 4}),
        "ids": ({"stop_token_ids": [7, 8]}, {"eos_token_id": [1114111, 7, 8]}),
        "no end": ({"ignore_eos": True}, {"eos_token_id": None}),
        "only ids": ({"ignore_eos": True, "stop_token_ids": [7]}, {"eos_token_id": [7]}),
    }
    model = ScriptedModel(["a"])
    async with edge(model, default_max_tokens=20) as (client, _):
        for path in KINDS:
            for body, _ in asked.values():
                answer_of(await client.post(path, json={**LEAST[path], **body}))
    calls = iter(model.calls)
    for _ in KINDS:
        for name, (_, expected) in asked.items():
            call = next(calls)
            call.pop("input_ids")
            assert call == {"max_new_tokens": 20, **expected}, name


async def test_a_prompt_of_ids() -> None:
    model = ScriptedModel(["a"])
    ids = [ord(each) for each in "Hi"]
    async with edge(model) as (client, _):
        for prompt in (ids, [ids], [ids, [ord("!")]]):
            answers = answer_of(await client.post(TEXT, json={"prompt": prompt}))
            assert [each["text"] for each in answers] == ["a"] * (len(answers))
    assert [call["input_ids"] for call in model.calls] == [[ids], [ids], [ids], [[ord("!")]]]


async def test_where_a_message_goes_on() -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Hello"}]
    bodies: list[dict[str, Any]] = [
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "continue_final_message": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ]
    calls = await ask_all(CHAT, [{"messages": messages, **body} for body in bodies])
    texts = ["".join(map(chr, call["input_ids"][0])) for call in calls]
    conversation = "user: Hi!\nassistant: Hello"
    assert texts[:3] == [conversation, conversation, f"{conversation}\n"]
    assert texts[3:] == [f"{conversation}\nassistant: "] * 2


@pytest.mark.parametrize("n", [1, 2])
async def test_the_usage_so_far_is_with_each_event(n: int) -> None:
    options: dict[str, Any] = {"include_usage": True, "continuous_usage_stats": True}
    body: dict[str, Any] = {"prompt": "Hi", "n": n, "stream": True, "stream_options": options}
    async with edge(ScriptedModel(["one ", "two"])) as (client, _):
        response = await client.post(TEXT, json=body)
        refused = await client.post(
            TEXT, json={**body, "stream_options": {"continuous_usage_stats": True}}
        )
    events = [json.loads(each[6:]) for each in response.text.split("\n\n")[:-2]]
    *chunks, last = events
    assert last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3 * n,
        "total_tokens": 2 + 3 * n,
    }
    for index in range(n):
        usages = [each["usage"] for each in chunks if each["choices"][0]["index"] == index]
        counts = [each["completion_tokens"] for each in usages]
        assert counts == sorted(counts)
        assert counts[-1] == 3
        assert all(each["prompt_tokens"] == 2 for each in usages)
        assert all(each["total_tokens"] == 2 + each["completion_tokens"] for each in usages)
    assert refused.status_code == 400
    assert "include_usage" in error_of(refused)["message"]


async def test_an_echo() -> None:
    async with edge(ScriptedModel(["one ", "two"])) as (client, _):
        for prompt in ("Hi", [ord(each) for each in "Hi"]):
            for limit, text in ((2, "Hione two"), (0, "Hi")):
                body: dict[str, Any] = {"prompt": prompt, "echo": True, "max_tokens": limit, "n": 2}
                whole = (await client.post(TEXT, json=body)).json()
                options: dict[str, Any] = {
                    "stream_options": {"include_usage": True},
                    "stream": True,
                }
                streamed = (await client.post(TEXT, json={**body, **options})).text
                assert [each["text"] for each in whole["choices"]] == [text, text]
                assert {each["finish_reason"] for each in whole["choices"]} == {"length"}
                assert whole["usage"]["completion_tokens"] == 2 * limit
                chunks = [json.loads(each[6:]) for each in streamed.split("\n\n")[:-2]]
                usage = chunks.pop()["usage"]
                assert usage == whole["usage"]
                for index in range(2):
                    choices = [each["choices"][0] for each in chunks]
                    mine = [each for each in choices if each["index"] == index]
                    assert "".join(each["text"] for each in mine) == text
                    assert mine[-1]["finish_reason"] == "length"
