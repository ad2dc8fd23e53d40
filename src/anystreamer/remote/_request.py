"""Requests: the arguments of `Engine.stream_text` as the body of an HTTP request. Pure.

docs/remote.md has the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from .._generation import Options, check_generate_kwargs
from .._prompts import Prompt, TokenIds, validate_prompt

__all__ = ["RemoteRequest"]

NAME = "stream_text"

# What to do instead of passing an argument that cannot be sent. Any other argument can be an extra
# field of a server.
ALTERNATIVES = {
    "cancel_within": "a server stops when the connection closes",
    "eos_token_id": "ids belong to the server's tokenizer; use stop=",
    "generation_config": "pass its settings one by one",
    "max_length": "use max_new_tokens=",
    "max_time": "use timeout=",
    "stop_strings": "use stop=, whose strings are not part of the text",
    "worker_context": "the model is elsewhere; for a seed pass extra_body={'seed': ...}",
}
# Arguments of generate() with these values change nothing.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1}


class RemoteRequest:
    """A call of a remote engine's ``stream_text``. Arguments that cannot be sent are refused.

    Args:
        model: the server's name for it.
        prompt: a text or chat messages.
        arguments: all other arguments of the call, those for ``generate()`` among them.

    Raises:
        TypeError, ValueError: with the name of the argument that cannot be sent.
    """

    def __init__(self, model: str, prompt: Prompt, arguments: Mapping[str, Any]) -> None:
        self.model = model
        self.prompt = prompt
        self.options, others = Options.split(arguments)
        self.extra_body: Mapping[str, Any] | None = others.pop("extra_body", None)
        self.generate_kwargs = {key: value for key, value in others.items() if value is not None}
        validate_prompt(NAME, prompt)
        if isinstance(prompt, Mapping):
            raise ValueError(
                "prompt: model inputs cannot be sent to a server; pass a str or chat messages"
            )
        check_generate_kwargs(NAME, None, self.generate_kwargs, logprobs=False)
        self._refuse_unsupported()
        self.is_chat = not isinstance(prompt, str | TokenIds)
        if self.options.parse_response and not self.is_chat:
            raise ValueError(
                "parse_response: servers separate fields only in a chat; pass chat messages"
            )
        if self.options.form is not None and not self.is_chat:
            raise ValueError("response_format: servers take it only in a chat; pass chat messages")
        if self.options.tool_use is not None and not self.is_chat:
            raise ValueError("tools: servers take them only in a chat; pass chat messages")
        self.path = "/chat/completions" if self.is_chat else "/completions"
        self.body = self._body()

    def _refuse_unsupported(self) -> None:
        options = self.options
        given = {
            "cancel_within": options.cancel_within != "step",
            "worker_context": options.worker_context is not None,
            "skip_special_tokens": not options.skip_special_tokens,
            "parse_response": isinstance(options.parse_response, Mapping),
            "top_logprobs": options.top_logprobs > 0,
            "response_format": options.form is not None
            and "json_schema" not in options.form.grammar,
        }
        others = {
            name
            for name, value in self.generate_kwargs.items()
            if name not in BODY_FIELDS and value != _NEUTRAL.get(name)
        }
        for name in sorted(others | {name for name, is_given in given.items() if is_given}):
            instead = ALTERNATIVES.get(name)
            if name == "parse_response":
                instead = "the server has the template; use parse_response=True"
            elif instead is None:
                instead = f"if the server knows it, pass extra_body={{{name!r}: ...}}"
            raise ValueError(f"{name} has no counterpart in OpenAI's API: {instead}")

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if isinstance(self.prompt, str | TokenIds):
            is_text = isinstance(self.prompt, str)
            body["prompt"] = self.prompt if is_text else list(self.prompt)
            if self.options.logprobs:
                body["logprobs"] = 0  # only of the chosen tokens
        else:
            messages = cast("Sequence[Mapping[str, Any]]", self.prompt)
            body["messages"] = [_message(each) for each in messages]
            body |= self._tools() | self._response_format()
            if self.options.logprobs:
                body["logprobs"] = True
        if self.options.stop_strings:
            body["stop"] = list(self.options.stop_strings)
        body |= self._score_changes()
        for name, convert in BODY_FIELDS.items():
            if name in self.generate_kwargs:
                body |= convert(self.generate_kwargs[name], self.generate_kwargs)
        extra = dict(self.extra_body or {})
        if extra.get("n") not in (None, 1):
            raise ValueError("extra_body['n'] must be 1: a stream is one answer; open one for each")
        if both := sorted(extra.keys() & body.keys() - {"stream_options"}):
            raise TypeError(f"{both[0]} is given twice: in extra_body and as an argument")
        body |= extra
        if body["stream_options"] is None:  # for a server that does not know it
            del body["stream_options"]
        return body

    def _score_changes(self) -> dict[str, Any]:
        """The penalties and the bias, whose ids become strings: keys of JSON cannot be numbers."""
        options = self.options
        names = ("frequency_penalty", "presence_penalty")
        given: dict[str, Any] = {
            name: float(value) for name in names if (value := getattr(options, name))
        }
        if options.logit_bias:
            given["logit_bias"] = {str(key): each for key, each in options.logit_bias.items()}
        return given

    def _response_format(self) -> dict[str, Any]:
        if self.options.form is None:
            return {}
        if self.options.response_format == "json":
            return {"response_format": {"type": "json_object"}}
        schema = {**self.options.form.grammar["json_schema"]}
        schema.pop("x-guidance", None)
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", str(schema.get("title") or "answer"))[:64]
        described = {"name": name, "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": described}}

    def _tools(self) -> dict[str, Any]:
        """The tools, and how they can be called.

        Raises:
            ValueError: there are other settings of the chat template, which cannot be sent.
        """
        if settings := self.options.chat_template_kwargs:
            name = sorted(settings)[0]
            raise ValueError(
                f"chat_template_kwargs[{name!r}] has no counterpart in OpenAI's API: if the server "
                f"knows it, pass extra_body={{'chat_template_kwargs': {{{name!r}: ...}}}}"
            )
        use = self.options.tool_use
        if use is None:
            return {}
        body: dict[str, Any] = {"tools": [_tool(each, use.strict) for each in use.described]}
        if use.choice is not None:
            body["tool_choice"] = use.choice
        if not use.parallel:
            body["parallel_tool_calls"] = False
        return body

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for the application's tracing."""
        return {
            "max_tokens": self.body.get("max_tokens"),
            "stop_sequences": self.options.stop_strings,
            **{name: self.body.get(name) for name in ("temperature", "top_k", "top_p")},
        }


def _draws(value: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """The temperature in place of ``do_sample``, which servers do not have."""
    return {"temperature": float(others.get("temperature", 1.0)) if value else 0.0}


def _sampling(
    name: str, kind: type[float | int] = float
) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    def of(value: Any, others: Mapping[str, Any]) -> dict[str, Any]:
        # With do_sample=False, generate() ignores these settings.
        return {} if others.get("do_sample") is False else {name: kind(value)}

    return of


# The arguments of generate() that are sent: what each adds to the body. Later ones win.
BODY_FIELDS: Mapping[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "max_new_tokens": lambda value, _: {"max_tokens": int(value)},
    "temperature": _sampling("temperature"),
    "top_p": _sampling("top_p"),
    "do_sample": _draws,
    # OpenAI's own servers do not have the following. Most others do, by the same names.
    "top_k": _sampling("top_k", int),
    "min_p": _sampling("min_p"),
    "repetition_penalty": lambda value, _: {"repetition_penalty": float(value)},
    "min_new_tokens": lambda value, _: {"min_tokens": int(value)},
}


def _tool(description: Mapping[str, Any], strict: Collection[str]) -> dict[str, Any]:
    """A tool as servers expect it."""
    function = dict(description.get("function", description))
    if function["name"] in strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message as servers expect it: with the arguments of a tool call as JSON in a str."""
    calls: Sequence[Any] = message.get("tool_calls") or ()
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [_call(call) for call in calls]}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return dict(call)
    arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
