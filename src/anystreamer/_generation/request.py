"""One request for text: its arguments, checked, and what they make of a model's answer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from time import perf_counter
from typing import Any

from .._bridge import validate_buffer_size
from .._streams import (
    GenerationSpan,
    GenerationState,
    Row,
    Timeouts,
    queue_deadline,
    validate_timeouts,
)
from .._text import ResponseParser, StopStrings, TextDecoder, text_decoder, validate_template
from .detokenizer import RowDetokenizer, eos_ids
from .options import check_cancel_within, check_generate_kwargs, check_model, setting, uses_torch
from .prompts import Prompt, encode, prompt_rows, tokenizer_of
from .whisper import WhisperWindowBuffer

__all__ = ["GenerationRequest", "WorkerContext"]

WorkerContext = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass
class GenerationRequest:
    """A call of `stream_text` or `stream_batch`. What cannot work is refused when it is made."""

    name: str
    model: Any
    tokenizer: Any
    generate_kwargs: Mapping[str, Any]
    _: KW_ONLY
    stop: str | Iterable[str] = ()
    timeout: float | Timeouts | None = None
    max_buffer_size: float = math.inf
    cancel_within: str = "step"
    logprobs: bool = False
    top_logprobs: int = 0
    skip_special_tokens: bool = True
    chat_template_kwargs: Mapping[str, Any] | None = None
    parse_response: bool | Mapping[str, Any] = False
    worker_context: WorkerContext | None = None

    def __post_init__(self) -> None:
        self.timeouts = validate_timeouts(self.timeout)
        self.max_buffer_size = validate_buffer_size(self.max_buffer_size)
        self.chat_template_kwargs = self.chat_template_kwargs or {}
        check_model(self.name, self.model)
        check_generate_kwargs(self.name, self.model, self.generate_kwargs, logprobs=self.logprobs)
        if self.top_logprobs < 0 or (self.top_logprobs and not self.logprobs):
            raise ValueError(
                f"top_logprobs={self.top_logprobs} must be at least 0, and is for logprobs=True"
            )
        check_cancel_within(self.model, self.generate_kwargs, self.cancel_within)
        self.decoding = tokenizer_of(self.tokenizer)
        self.template = validate_template(self.decoding, self.tokenizer, self.parse_response)
        self.decoder()
        if isinstance(self.stop, Iterable) and not isinstance(self.stop, str | bytes):
            self.stop = tuple(self.stop)
        StopStrings(self.stop)
        self.stops_between_layers(lambda: False)
        if hasattr(self.model, "generate_with_fallback"):  # Whisper's
            self.check_fallback()

    @classmethod
    def of(
        cls, name: str, model: Any, tokenizer: Any, arguments: Mapping[str, Any]
    ) -> GenerationRequest:
        """The request of a call with these keyword arguments, those for ``generate()`` among them.

        Raises:
            TypeError, ValueError: for what cannot be streamed.
        """
        own = {field.name for field in fields(cls) if field.kw_only} & arguments.keys()
        others = {key: value for key, value in arguments.items() if key not in own}
        return cls(name, model, tokenizer, others, **{key: arguments[key] for key in own})

    def check_fallback(self) -> None:
        """Refuse what makes Whisper take back a window that it has heard to its end."""
        temperature = self.generate_kwargs.get("temperature")
        thresholds = ("compression_ratio_threshold", "logprob_threshold")
        if (
            isinstance(temperature, list | tuple)
            and len(temperature) > 1
            and any(self.setting(name) is not None for name in thresholds)
        ):
            raise ValueError(
                f"temperature={temperature}: with a threshold, what was said at one temperature is "
                "taken back and said again at the next; pass one temperature"
            )
        if (silence := self.setting("no_speech_threshold")) is not None:
            raise ValueError(
                f"no_speech_threshold={silence}: what was said is taken back if it is found to be "
                "silence; leave it out"
            )

    def check_rows(self, inputs: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Refuse several rows where ``generate()`` cannot do them, or does them wrong."""
        if len(rows) == 1:
            return
        first = rows[0].prompt_token_ids
        if self.setting("token_healing") and any(row.prompt_token_ids != first for row in rows):
            raise ValueError(
                "token_healing=True: generate() pads the healed prompts anew and keeps the old "
                "attention mask; heal one prompt at a time, with stream_text()"
            )
        if self.hears_in_windows:
            frames = getattr(inputs.get("input_features"), "shape", (0,))[-1]
            is_long = frames > 2 * self.model.config.max_source_positions  # what its encoder takes
            if is_long or self.setting("return_timestamps"):
                raise ValueError(
                    f"{len(rows)} rows of long recordings or with return_timestamps=True: Whisper "
                    "drops a row when it has heard it, and does not say which; "
                    "stream one recording at a time, with stream_text()"
                )

    @property
    def hears_in_windows(self) -> bool:
        """Whether ``generate()`` calls the common one for each window of a recording: Whisper's."""
        is_whisper = hasattr(self.model, "generate_with_fallback")
        return is_whisper and not self.setting("force_unique_generate_call")

    def stops_between_layers(
        self, should_stop: Callable[[], bool]
    ) -> contextlib.AbstractContextManager[None]:
        if self.cancel_within == "step":
            return contextlib.nullcontext()
        from .layer_hooks import StopBetweenLayers, layers_of

        models = (self.model, self.setting("assistant_model"))
        layers = [layer for model in models if model is not None for layer in layers_of(model)]
        return StopBetweenLayers(layers, should_stop)

    def setting(self, name: str) -> Any:
        return setting(self.model, self.generate_kwargs, name)

    def decoder(self) -> TextDecoder:
        # Special tokens are what a response template tells its fields apart by.
        skip = self.skip_special_tokens and self.template is None
        return text_decoder(self.decoding, skip_special_tokens=skip)

    def span(self, prompts: Any) -> GenerationSpan | None:
        """What the application's tracing is told of this request."""
        is_chat = not isinstance(prompts, Mapping) and not isinstance(prompts[0], str)
        model = getattr(self.model, "name_or_path", "") or type(self.model).__name__
        return GenerationSpan.start(
            "chat" if is_chat else "text_completion",
            model,
            lambda: {
                "max_tokens": self.setting("max_new_tokens"),
                "stop_sequences": [self.stop] if isinstance(self.stop, str) else self.stop,
                "choice.count": self.setting("num_return_sequences"),
                **{name: self.setting(name) for name in ("temperature", "top_k", "top_p")},
            },
        )

    def new_state(self, prompts: Any) -> GenerationState:
        """The state of this request's stream, with the application's span for it."""
        return GenerationState(self.max_buffer_size, span=self.span(prompts))

    def queue_deadline(self, state: GenerationState) -> tuple[float, str]:
        """How many seconds it may wait for its turn, and the phase that is late then."""
        return queue_deadline(self.timeouts, state.clock.elapsed(perf_counter()))

    def new_row(self, prompt_ids: list[int]) -> Row:
        if self.template is None:
            return Row(prompt_ids)
        tools = (self.chat_template_kwargs or {}).get("tools")
        response = ResponseParser(self.decoding, self.template, prompt_ids, tools)
        return Row(prompt_ids, response=response)

    def row_detokenizer(self, number: int, row: Row) -> RowDetokenizer:
        eos = eos_ids(self.setting("eos_token_id"))
        no_timestamps = self.setting("no_timestamps_token_id") if self.hears_in_windows else None
        return RowDetokenizer(
            number,
            row,
            self.decoder(),
            StopStrings(self.stop),
            StopStrings(self.setting("stop_strings") or ()),
            eos,
            # Not every template knows of every EOS, nor in every field: it would become text.
            eos if self.template is not None and self.skip_special_tokens else (),
            None if no_timestamps is None else WhisperWindowBuffer(no_timestamps + 1, eos),
        )

    def encode(
        self, prompts: Sequence[Prompt] | Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Make model inputs of the prompts, and the rows of a stream. In a worker thread."""
        encoded = encode(
            self.tokenizer,
            prompts,
            self.chat_template_kwargs or {},
            device=getattr(self.model, "device", None),
            uses_torch=uses_torch(self.model),
        )
        if both := sorted(encoded.keys() & self.generate_kwargs.keys()):
            raise TypeError(f"{both[0]}= is given twice: in the prompt and as an argument")
        copies = self.setting("num_return_sequences") or 1
        rows = [self.new_row(ids) for ids in prompt_rows(encoded, copies)]
        self.check_rows(encoded, rows)
        return encoded, rows
