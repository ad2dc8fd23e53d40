"""Requests in OpenAI's format, with vLLM's additions. What is not supported is refused by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .._generation import Seed
from .._prompts import Prompt, TokenIds
from .._text import Regex, StopSet, validate_stop_strings
from ._custom_tools import choice_of_functions
from ._errors import APIError
from ._fields import Fixed, Ignored, Neutral, Strict
from ._message_models import CustomTool, Message, ResponseFormat, Tool

__all__ = ["ChatRequest", "CompletionRequest", "Effort", "TextRequest"]

MAX_MESSAGES = 2048
MAX_ANSWERS = 128  # to all prompts of a request
MAX_STOP_CHARACTERS = 4096  # of all stop strings together

# Below this temperature the likeliest token is always chosen, and dividing by it overflows.
GREEDY = 1e-4


# Arguments of apply_chat_template() that are not for the template itself: they change what it
# returns, or are fields of a request.
RESERVED = frozenset(
    """
    add_generation_prompt chat_template continue_final_message conversation conversations
    load_audio_from_video max_length messages padding processor_kwargs return_assistant_tokens_mask
    return_dict return_tensors sanitize_control_tokens self tokenize tokenizer_kwargs tools
    truncation
    """.split()
)

#: How much a model is to reason. Chat templates that know ``reasoning_effort`` get it.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

StopString = Annotated[str, Field(min_length=1)]
StopList = Annotated[list[StopString], Field(max_length=16, fail_fast=True)]
TokenID = Annotated[int, Field(ge=0, lt=2**31)]
IDs = Annotated[list[TokenID], Field(min_length=1, fail_fast=True)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasedID = Annotated[str, Field(pattern="^[0-9]{1,9}$")]  # keys of JSON's objects are strings


class StreamOptions(Strict):
    """How a streamed response is sent."""

    include_usage: Annotated[bool | None, Neutral(False)] = None
    continuous_usage_stats: Annotated[bool | None, Neutral(False)] = None
    include_obfuscation: Annotated[None, Fixed(False)] = None


class TextRequest(Strict):
    """What both kinds of requests have in common."""

    model: str | None = None
    stream: Annotated[bool | None, Neutral(False)] = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    # when it ends
    stop: Annotated[StopString | StopList | None, Neutral([])] = None
    stop_token_ids: Annotated[
        Annotated[list[TokenID], Field(max_length=128, fail_fast=True)] | None, Neutral([])
    ] = None
    ignore_eos: Annotated[bool | None, Neutral(False)] = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_tokens: Annotated[Annotated[int, Field(ge=0, lt=2**31)] | None, Neutral(0)] = None
    # how tokens are chosen
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Neutral(0)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[Penalty | None, Neutral(0)] = None
    presence_penalty: Annotated[Penalty | None, Neutral(0)] = None
    repetition_penalty: Annotated[Annotated[float, Field(gt=0, le=100)] | None, Neutral(1)] = None
    logit_bias: Annotated[
        Annotated[dict[BiasedID, Bias], Field(max_length=1024)] | None, Neutral({})
    ] = None
    # how they become text
    skip_special_tokens: Annotated[bool | None, Neutral(True)] = None
    # notes
    user: Annotated[Any, Ignored()] = None
    metadata: Annotated[Any, Ignored()] = None
    store: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None
    safety_identifier: Annotated[Any, Ignored()] = None
    prompt_cache_key: Annotated[Any, Ignored()] = None
    prompt_cache_retention: Annotated[Any, Ignored()] = None
    prompt_cache_options: Annotated[Any, Ignored()] = None
    session_id: Annotated[Any, Ignored()] = None
    # refused, unless it changes nothing
    allowed_token_ids: Annotated[None, Fixed(instead="logit_bias can make tokens likely")] = None
    bad_words: Annotated[None, Fixed([], instead="a logit_bias of -100 bans a token")] = None
    use_beam_search: Annotated[None, Fixed(False)] = None
    length_penalty: Annotated[None, Fixed(1)] = None
    early_stopping: Annotated[None, Fixed(False)] = None
    include_stop_str_in_output: Annotated[None, Fixed(False)] = None
    spaces_between_special_tokens: Annotated[None, Fixed(True)] = None
    truncate_prompt_tokens: Annotated[None, Fixed()] = None
    priority: Annotated[None, Fixed(0)] = None
    prompt_logprobs: Annotated[None, Fixed(instead="send echo and logprobs to /v1/completions")] = (
        None
    )
    return_token_ids: Annotated[None, Fixed(False)] = None
    return_tokens_as_token_ids: Annotated[None, Fixed(False)] = None
    return_prompt_text: Annotated[None, Fixed(False)] = None
    return_hidden_states: Annotated[None, Fixed(False)] = None
    return_routed_experts: Annotated[None, Fixed(False)] = None
    return_cached_tokens_details: Annotated[None, Fixed(False)] = None
    routed_experts_prompt_start: Annotated[None, Fixed(0)] = None
    routed_experts_start_len: Annotated[None, Fixed(0)] = None
    no_stop_trim: Annotated[None, Fixed(False)] = None
    watermarking: Annotated[None, Fixed(False)] = None

    @model_validator(mode="after")
    def _check(self) -> TextRequest:
        options = self.stream_options
        if options is not None and not self.stream:
            raise APIError("stream_options needs stream=true", param="stream_options")
        if options is not None and options.continuous_usage_stats and not options.include_usage:
            raise APIError(
                "continuous_usage_stats needs include_usage=true",
                param="stream_options.continuous_usage_stats",
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise APIError(
                "best_of must be the same as n: this server does not choose among answers; "
                "leave it out",
                param="best_of",
                code="invalid_value",
            )
        param, limit = self.token_limit
        if limit is not None and (self.min_tokens or 0) > limit:
            raise APIError(
                f"min_tokens must be at most {param}, which is {limit}",
                param="min_tokens",
                code="invalid_value",
            )
        if sum(map(len, self.stop_set)) > MAX_STOP_CHARACTERS:
            raise APIError(
                f"stop: the strings must have at most {MAX_STOP_CHARACTERS} characters together",
                param="stop",
                code="invalid_value",
            )
        return self

    def prepare(self) -> None:
        """Compute now what takes long and is needed later. This can run in a worker thread."""
        _ = self.prompts

    @cached_property
    def stop_set(self) -> StopSet:
        """The stop strings, which all answers to the request share."""
        return validate_stop_strings(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether to send the usage at the end of a stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def includes_running_usage(self) -> bool:
        """Whether to send the usage so far with each event of a stream."""
        options = self.stream_options
        return options is not None and bool(options.continuous_usage_stats)

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    @property
    def continues_message(self) -> bool:
        """Whether the answer is the rest of the last message."""
        return False

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The parameter that limits an answer's tokens, and its value if it is given."""
        return "max_tokens", self.max_tokens

    @property
    def custom_tools(self) -> frozenset[str]:
        """The names of the custom tools that the model can call."""
        return frozenset()

    @property
    @abstractmethod
    def requested_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens to list for each token; None: no log-probabilities."""

    @property
    @abstractmethod
    def prompts(self) -> Sequence[tuple[str, Prompt]]:
        """The prompts, each with the name of its parameter."""

    def arguments(self, choice: int, template: Mapping[str, Any] | None) -> dict[str, Any]:
        """The arguments for ``engine.stream_text``, except the token limit.

        Args:
            choice: the number of the choice, from 0.
            template: the model's response template, if it has one.

        Raises:
            APIError: the model does not support what is asked.
        """
        arguments: dict[str, Any] = {}
        if self.stop_set:
            arguments["stop"] = self.stop_set
        if self.requested_top_logprobs is not None:
            arguments["logprobs"] = True
            if self.requested_top_logprobs:
                arguments["top_logprobs"] = self.requested_top_logprobs
        if self.skip_special_tokens is not None:
            arguments["skip_special_tokens"] = self.skip_special_tokens
        if self.min_tokens is not None:
            arguments["min_new_tokens"] = self.min_tokens
        arguments |= self._sampling()
        for name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
            if (penalty := getattr(self, name)) is not None:
                arguments[name] = float(penalty)
        if self.logit_bias is not None:
            arguments["logit_bias"] = {int(name): bias for name, bias in self.logit_bias.items()}
        if self.seed is not None:
            arguments["logits_processor"] = [Seed((self.seed + choice) % 2**63)]
        return arguments

    def _sampling(self) -> dict[str, Any]:
        """The settings of sampling. OpenAI's API samples, by default at a temperature of 1.

        Without any, the model's generation config decides whether to sample.
        """
        if self.temperature is not None and self.temperature < GREEDY:
            return {"do_sample": False}
        settings: dict[str, Any] = {}
        if self.top_p is not None:
            settings["top_p"] = float(self.top_p)
        if self.min_p is not None:
            settings["min_p"] = float(self.min_p)
        if self.top_k is not None and self.top_k > 0:
            settings["top_k"] = self.top_k
        if settings or self.temperature is not None:
            temperature = 1.0 if self.temperature is None else float(self.temperature)
            settings |= {"do_sample": True, "temperature": temperature}
        if self.top_k is not None:  # 0 and -1 are all tokens
            settings["top_k"] = max(self.top_k, 0)
        return settings


class ChatRequest(TextRequest):
    """The body of a POST to ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: Annotated[bool | None, Neutral(False)] = None
    top_logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, Neutral(0)] = None
    tools: Annotated[
        Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None, Neutral([])
    ] = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, Neutral({})] = None
    reasoning_effort: Effort | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: Annotated[bool | None, Neutral(False)] = None
    add_special_tokens: Annotated[None, Fixed(False)] = None
    echo: Annotated[None, Fixed(False, instead="or use /v1/completions")] = None
    include_reasoning: Annotated[None, Fixed(True)] = None
    separate_reasoning: Annotated[None, Fixed(True)] = None
    stream_reasoning: Annotated[None, Fixed(True)] = None
    return_prompt_token_ids: Annotated[None, Fixed(False)] = None
    return_meta_info: Annotated[None, Fixed(False)] = None
    use_audio_in_video: Annotated[None, Fixed(False)] = None
    audio: Annotated[None, Fixed()] = None
    moderation: Annotated[None, Fixed()] = None
    modalities: Annotated[None, Fixed(["text"])] = None
    prediction: Annotated[None, Fixed()] = None
    verbosity: Annotated[None, Fixed("medium")] = None
    web_search_options: Annotated[None, Fixed()] = None
    functions: Annotated[None, Fixed([], instead="send tools")] = None
    function_call: Annotated[None, Fixed("auto", "none", instead="send tool_choice")] = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise APIError(
                "max_tokens and max_completion_tokens mean the same: send one of them",
                param="max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError("top_logprobs needs logprobs=true", param="top_logprobs")
        if self.tool_choice not in (None, "auto", "none") and self.tools is None:
            raise APIError("tool_choice needs tools", param="tool_choice")
        self._check_template()
        return self

    def _check_template(self) -> None:
        if self.add_generation_prompt and self.continue_final_message:
            raise APIError(
                "add_generation_prompt and continue_final_message exclude each other: send one",
                param="continue_final_message",
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise APIError(
                "continue_final_message needs a last message of the assistant",
                param="continue_final_message",
            )
        for name in sorted((self.chat_template_kwargs or {}).keys() & RESERVED):
            raise APIError(
                f"chat_template_kwargs.{name} is not for the template: leave it out",
                param=f"chat_template_kwargs.{name}",
                code="invalid_value",
            )

    def _effort_kwargs(self) -> dict[str, Any]:
        """The effort as chat templates read it: by its name, or whether to think."""
        known: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            known["reasoning_effort"] = self.reasoning_effort
        if self.reasoning_effort == "none":
            known["enable_thinking"] = False
        return known

    @property
    def _form(self) -> str | dict[str, Any] | Regex | None:
        return None if self.response_format is None else self.response_format.form

    @property
    def continues_message(self) -> bool:
        return bool(self.continue_final_message)

    @property
    def custom_tools(self) -> frozenset[str]:
        tools = self.tools or ()
        return frozenset(each.custom.name for each in tools if isinstance(each, CustomTool))

    @property
    def token_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().token_limit

    @property
    def requested_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @cached_property
    def prompts(self) -> Sequence[tuple[str, Prompt]]:
        prompts = [message.as_prompt() for message in self.messages]
        # Some templates want the name of the function whose result a message has.
        calls = [call for each in prompts for call in each.get("tool_calls", ())]
        names = {call["id"]: call["function"]["name"] for call in calls}
        for each in prompts:
            if each.get("tool_call_id") in names:
                each["name"] = names[each["tool_call_id"]]
        return [("messages", prompts)]

    def arguments(self, choice: int, template: Mapping[str, Any] | None) -> dict[str, Any]:
        arguments = super().arguments(choice, template)
        fields = {} if template is None else dict(template["fields"])
        if self.tools is not None and "tool_calls" not in fields:
            raise APIError(
                "tools is not supported by this model: its templates have no tool calls",
                param="tools",
            )
        if template_kwargs := self._template_kwargs():
            arguments["chat_template_kwargs"] = template_kwargs
        arguments |= self._tool_arguments()
        if template is not None:
            if self.tools is None:
                # The client expects no call: text that looks like one stays text.
                fields.pop("tool_calls", None)
            arguments["parse_response"] = {**template, "fields": fields}
        if self._form is not None:
            arguments["response_format"] = self._form
        return arguments

    def _template_kwargs(self) -> dict[str, Any]:
        template_kwargs = self._effort_kwargs() | (self.chat_template_kwargs or {})
        for name in ("add_generation_prompt", "continue_final_message"):
            if (value := getattr(self, name)) is not None:
                template_kwargs[name] = value
        return template_kwargs

    def _tool_arguments(self) -> dict[str, Any]:
        if self.tools is None:
            return {}
        arguments: dict[str, Any] = {"tools": [tool.as_argument() for tool in self.tools]}
        if self.tool_choice is not None:
            arguments["tool_choice"] = choice_of_functions(self.tool_choice, self.custom_tools)
        if self.parallel_tool_calls is not None:
            arguments["parallel_tool_calls"] = self.parallel_tool_calls
        return arguments


class CompletionRequest(TextRequest):
    """The body of a POST to ``/v1/completions``."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True),
        ]
        | IDs
        | Annotated[list[IDs], Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)]
    )
    # 0 only with echo: the answer is the prompt, with its log-probabilities.
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    echo: Annotated[bool | None, Neutral(False)] = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: Annotated[None, Fixed(True)] = None
    suffix: Annotated[
        None, Fixed("", instead="or send it in the prompt, as the model marks it")
    ] = None
    response_format: Annotated[
        None, Fixed({"type": "text"}, instead="or use /v1/chat/completions")
    ] = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if len(self.prompts) * (self.n or 1) > MAX_ANSWERS:
            raise APIError(f"a request can have at most {MAX_ANSWERS} answers", param="n")
        if self.max_tokens == 0 and not self.echo:
            raise APIError(
                "max_tokens must be at least 1, or 0 with echo=true",
                param="max_tokens",
                code="invalid_value",
            )
        return self

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @property
    def requested_top_logprobs(self) -> int | None:
        return self.logprobs

    @cached_property
    def prompts(self) -> Sequence[tuple[str, Prompt]]:
        # One prompt, or several: each a text, or a list of ids.
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        prompts: Any = [self.prompt] if is_one else self.prompt
        return [("prompt", each if isinstance(each, str) else TokenIds(each)) for each in prompts]
