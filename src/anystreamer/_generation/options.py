"""The options that all streams of text share: their defaults, and the checks that need no model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from .._bridge import is_whole, validate_buffer_size, validate_callback
from .._streams import Timeouts, validate_timeouts
from .._text import (
    AnswerForm,
    ResponseFormat,
    StopSet,
    ToolChoice,
    ToolUse,
    validate_response_format,
    validate_stop_strings,
    validate_tools,
)

__all__ = ["OPTION_NAMES", "Options", "Tools", "WorkerContext"]

#: OpenAI's descriptions of functions, or Python functions with types and a docstring.
Tools = Sequence[Mapping[str, Any] | Callable[..., Any]]

WorkerContext = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The keyword arguments of `stream_text` that are not for ``generate()``.

    Raises:
        TypeError, ValueError: for a value that cannot work with any model.
    """

    stop: str | Iterable[str] = ()
    timeout: float | Timeouts | None = None
    max_buffer_size: float = math.inf
    cancel_within: Literal["step", "layer"] = "step"
    logprobs: bool = False
    top_logprobs: int = 0
    skip_special_tokens: bool = True
    chat_template_kwargs: Mapping[str, Any] | None = None
    parse_response: bool | Mapping[str, Any] = False
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    worker_context: WorkerContext | None = None

    stop_strings: StopSet = field(init=False)  #: of *stop*
    timeouts: Timeouts = field(init=False)  #: of *timeout*
    form: AnswerForm | None = field(init=False)  #: of *response_format*
    tool_use: ToolUse | None = field(init=False)  #: of *tools* and *tool_choice*

    def __post_init__(self) -> None:
        # The class is frozen for all other code. An iterator in *stop* can be read only once.
        object.__setattr__(self, "stop_strings", validate_stop_strings(self.stop))
        object.__setattr__(self, "timeouts", validate_timeouts(self.timeout))
        object.__setattr__(self, "form", validate_response_format(self.response_format))
        tools = self.tools
        if isinstance(tools, list | tuple) and any(map(callable, tools)):
            from .described_functions import described

            tools = described(tools)
        use = validate_tools(tools, self.tool_choice, self.parallel_tool_calls)
        object.__setattr__(self, "tool_use", use)
        self._check_tools()
        validate_buffer_size(self.max_buffer_size)
        if self.worker_context is not None:
            validate_callback(self.worker_context, "worker_context")
        if self.cancel_within not in ("step", "layer"):
            raise ValueError(f"cancel_within must be 'step' or 'layer', not {self.cancel_within!r}")
        if not is_whole(self.top_logprobs):
            raise TypeError(f"top_logprobs must be a whole number, not {self.top_logprobs!r:.60}")
        if self.top_logprobs < 0 or (self.top_logprobs and not self.logprobs):
            raise ValueError(
                f"top_logprobs={self.top_logprobs} must be at least 0, and needs logprobs=True"
            )
        _check_scores(self)

    @property
    def changes_scores(self) -> bool:
        """Whether it has a bias or a penalty."""
        return bool(self.logit_bias or self.frequency_penalty or self.presence_penalty)

    def _check_tools(self) -> None:
        if "tools" in (self.chat_template_kwargs or {}):
            raise TypeError("chat_template_kwargs['tools']: pass them as tools=")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """The arguments for the chat template."""
        tools = {} if self.tool_use is None else {"tools": self.tool_use.described}
        return {**(self.chat_template_kwargs or {}), **tools}

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The options among the arguments of a call, and the other arguments.

        Raises:
            TypeError, ValueError: for a value that cannot work with any model.
        """
        own = {name: value for name, value in arguments.items() if name in OPTION_NAMES}
        others = {name: value for name, value in arguments.items() if name not in OPTION_NAMES}
        return cls(**own), others


def _check_scores(options: Options) -> None:
    for name in ("frequency_penalty", "presence_penalty"):
        penalty = getattr(options, name)
        if isinstance(penalty, bool) or not isinstance(penalty, int | float):
            raise TypeError(f"{name} must be a number, got {penalty!r:.60}")
        if not _is_finite(penalty):
            raise ValueError(f"{name} must be finite, got {penalty!r:.60}")
    if not isinstance(options.logit_bias, Mapping | None):
        raise TypeError(
            f"logit_bias must map token ids to numbers, got {type(options.logit_bias).__name__}"
        )
    for token_id, bias in (options.logit_bias or {}).items():
        if not is_whole(token_id) or not isinstance(bias, int | float):
            raise TypeError(
                f"logit_bias must map token ids to numbers, got {token_id!r:.60}: {bias!r:.60}"
            )
        if token_id < 0 or not _is_finite(bias):
            raise ValueError(
                "logit_bias needs ids of at least 0 and finite numbers, "
                f"got {token_id!r:.60}: {bias!r:.60}"
            )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


OPTION_NAMES = frozenset(each.name for each in fields(Options) if each.init)
