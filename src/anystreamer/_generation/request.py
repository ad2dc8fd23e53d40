"""One request for text: its arguments, checked, and what is made from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from .._model import (
    check_model,
    is_encoder_decoder,
    is_transducer,
    main_input_name,
    takes_token_type_ids,
    uses_torch,
)
from .._prompts import (
    Prompt,
    TokenIds,
    check_context_length,
    check_vocabulary,
    encode,
    padded,
    prompt_rows,
    tokenizer_of,
)
from .._streams import GenerationSpan, GenerationState, Row, queue_deadline
from .._text import (
    CallOrAnswerForm,
    Form,
    FormMatcher,
    ResponseParser,
    StopStrings,
    TextDecoder,
    ToolForm,
    new_matcher,
    new_tool_form,
    parser_tools,
    reasoning_markers,
    response_template_of,
    special_ids,
    text_decoder,
    validate_template,
)
from .detokenizer import RowDetokenizer, continues_prompt, eos_ids
from .generate_kwargs import (
    check_cancel_within,
    check_form,
    check_generate_kwargs,
    check_score_changes,
    effective_setting,
)
from .options import Options
from .shown_stop_strings import ShownStopStrings
from .up_to import UpTo
from .whisper import (
    check_whisper_fallback,
    check_whisper_rows,
    is_whisper,
    whisper_window_buffer,
)

__all__ = ["GenerationRequest"]


# Other inputs, such as images, can stand for ids that have no embedding.
_PLAIN_TEXT = {"input_ids", "attention_mask", "token_type_ids"}


class GenerationRequest:
    """A call of `stream_text` or `stream_batch`. Making one refuses what cannot work.

    Args:
        name: of the public function, for messages.
        model: see `stream_text`.
        tokenizer: see `stream_text`.
        arguments: all other keyword arguments of the call, those for ``generate()`` among them.

    Raises:
        TypeError, ValueError: for what cannot be streamed.
        ImportError: transformers is not installed.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer  # or a processor
        self.options, self.generate_kwargs = options, generate_kwargs = Options.split(arguments)
        check_model(name, model)
        check_generate_kwargs(name, model, generate_kwargs, logprobs=options.logprobs)
        check_cancel_within(model, generate_kwargs, options.cancel_within)
        self.text_tokenizer = tokenizer_of(tokenizer)  # of the processor, or the same
        self.template = validate_template(self.text_tokenizer, tokenizer, options.parse_response)
        self.form, self._reasoning = self._new_form(), None
        if self.form is not None:
            argument = self.form.argument
            if is_whisper(model) or is_transducer(model):
                raise ValueError(f"{argument}: {type(model).__name__} can only transcribe")
            check_form(argument, model, generate_kwargs)
            self._reasoning = reasoning_markers(argument, self.template)
        if options.tool_use is not None and options.tool_use.mode == "none" and self.template:
            # What looks like a call is text.
            fields = {k: v for k, v in self.template["fields"].items() if k != "tool_calls"}
            self.template = {**self.template, "fields": fields}
        check_score_changes(model, options.logit_bias, options.changes_scores)
        self.decoder()  # raises where the tokenizer cannot decode
        self.stops_between_layers(lambda: False)  # raises where the model has no layers to hook
        if is_whisper(model):
            check_whisper_fallback(model, generate_kwargs)

    def _new_form(self) -> Form | None:
        """The form of the answer, from its format and its tools; None if it has none."""
        use, form = self.options.tool_use, self.options.form
        if use is None or (use.mode == "none" and form is not None):
            return form
        if form is None and not use.is_enforced:
            return None
        template = self.template or response_template_of(self.text_tokenizer, self.tokenizer)
        calls = new_tool_form(template, use)
        return calls if form is None or use.mode == "required" else CallOrAnswerForm(calls, form)

    def setting(self, name: str) -> Any:
        """The value that ``generate()`` will use for a setting of its generation config."""
        return effective_setting(self.model, self.generate_kwargs, name)

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text."""
        return eos_ids(self.setting("eos_token_id"))

    # -- for generate()

    def stops_between_layers(
        self, should_stop: Callable[[], bool]
    ) -> contextlib.AbstractContextManager[None]:
        """A context manager around ``generate()`` that stops it within a layer, if asked for.

        Raises:
            ValueError: the model has no layers of a known kind.
        """
        if self.options.cancel_within == "step":
            return contextlib.nullcontext()
        from .layer_hooks import StopBetweenLayers, layers_of

        models = (self.model, self.setting("assistant_model"))
        layers = [layer for model in models if model is not None for layer in layers_of(model)]
        return StopBetweenLayers(layers, should_stop)

    def decoder(self) -> TextDecoder:
        """A new decoder for one row of the answer."""
        return text_decoder(self.text_tokenizer, skip_special_tokens=not self._shows_special_tokens)

    @property
    def _shows_special_tokens(self) -> bool:
        # A response template splits the fields at special tokens.
        return not self.options.skip_special_tokens or self.template is not None

    def span(self, prompts: Any) -> GenerationSpan | None:
        """The span of this request, for the application's tracing."""
        is_chat = not isinstance(prompts, Mapping) and not isinstance(prompts[0], str | TokenIds)
        model = getattr(self.model, "name_or_path", "") or type(self.model).__name__
        return GenerationSpan.start(
            "chat" if is_chat else "text_completion",
            model,
            lambda: {
                "max_tokens": self.setting("max_new_tokens"),
                "stop_sequences": self.options.stop_strings,
                "choice.count": self.setting("num_return_sequences"),
                **{name: self.setting(name) for name in ("temperature", "top_k", "top_p")},
            },
        )

    def new_state(self, prompts: Any) -> GenerationState:
        """The state of this request's stream, with the application's span for it."""
        return GenerationState(self.options.max_buffer_size, span=self.span(prompts))

    def queue_deadline(self, state: GenerationState) -> tuple[float, str]:
        """How many seconds it can wait for its turn, and the phase that is late after that."""
        return queue_deadline(self.options.timeouts, state.clock.elapsed(perf_counter()))

    def new_row(self, prompt_ids: list[int], *, continues_prompt: bool = False) -> Row:
        """The state of one row, with its response parser if there is a template."""
        row = Row(prompt_ids, continues_prompt=continues_prompt)
        if self.template is not None:
            use = self.options.tool_use
            tools = None if use is None else parser_tools(use)
            row.response = ResponseParser(self.text_tokenizer, self.template, prompt_ids, tools)
        return row

    def row_detokenizer(self, number: int, row: Row) -> RowDetokenizer:
        """What makes the chunks of a row from its tokens."""
        eos = self.eos_token_ids
        return RowDetokenizer(
            number,
            row,
            self.decoder,
            StopStrings(self.options.stop_strings),
            self._shown_stop_strings(row),
            eos,
            # Not every tokenizer calls every EOS special, nor does every response template know of
            # it in every field: it would become text.
            self.options.skip_special_tokens,
            whisper_window_buffer(self.model, self.generate_kwargs, eos),
            self._stop_ids(),
        )

    def _shown_stop_strings(self, row: Row) -> ShownStopStrings | None:
        if not (strings := self.setting("stop_strings")):
            return None
        return ShownStopStrings(
            strings,
            partial(text_decoder, self.text_tokenizer, skip_special_tokens=False),
            # The decoder of an encoder-decoder does not see the prompt.
            lambda: [] if is_encoder_decoder(self.model) else row.prompt_token_ids,
        )

    def pad(self, encoded: list[dict[str, Any]]) -> dict[str, Any]:
        """Put encoded prompts together, as `encode` does with those of a batch."""
        pad_token_id = getattr(self.text_tokenizer, "pad_token_id", None)
        return padded(encoded, pad_token_id, is_encoder_decoder(self.model))

    def form_matcher(self, row: Row) -> FormMatcher | None:
        """What keeps a row's answer to the form; None without one. It can take a second.

        Raises:
            ImportError: llguidance is not installed.
            ValueError: the form is not valid, or the tokenizer has no vocabulary to read.
        """
        form, reasoning = self.form, None
        if form is None:
            return None
        if row.response is not None and self._reasoning is not None:
            field, reasoning = self._reasoning
            if row.response.open_field == field:
                reasoning = reasoning._replace(begin="")
        return new_matcher(self.text_tokenizer, form, self.eos_token_ids, reasoning)

    def repetition_penalty(self) -> list[Any]:
        """The processor that ``generate()`` has for its setting of that name, if it needs one.

        Raises:
            ValueError: the value of the setting.
        """
        if (penalty := self.setting("repetition_penalty")) in (None, 1.0):
            return []
        from transformers import RepetitionPenaltyLogitsProcessor

        return [RepetitionPenaltyLogitsProcessor(penalty)]

    def score_changes(self) -> list[Any]:
        """New processors of the bias and the penalties that ``generate()`` has no argument for."""
        options = self.options
        if not options.changes_scores:
            return []
        from .penalties import GeneratedTokensPenalty, LogitBias

        changes: list[Any] = [LogitBias(options.logit_bias)] if options.logit_bias else []
        if options.frequency_penalty or options.presence_penalty:
            changes.append(
                GeneratedTokensPenalty(options.frequency_penalty, options.presence_penalty)
            )
        return changes

    def encode(
        self,
        prompts: Sequence[Prompt] | Mapping[str, Any],
        context_length: int | None = None,
        fetched: Mapping[str, bytes] | None = None,
    ) -> tuple[dict[str, Any], list[Row]]:
        """Make model inputs of the prompts, and the rows of a stream. In a worker thread.

        A prompt that leaves no token of *context_length* for an answer is refused, and early if it
        is much longer. *fetched* has the files of pictures and recordings that have addresses.
        """
        from .._prompts import prompts_for_processor

        _ = self.options.stop_strings.automaton  # built here: it can take long
        encoded = encode(
            self.tokenizer,
            prompts_for_processor(
                self.model, self.tokenizer, prompts, self.options.template_kwargs, fetched
            ),
            self.options.template_kwargs,
            device=getattr(self.model, "device", None),
            uses_torch=uses_torch(self.model),
            pad=self.pad,
            context_length=context_length,
            dtype=getattr(self.model, "dtype", None),
            pads_right=is_encoder_decoder(self.model),
        )
        if not isinstance(prompts, Mapping) and not takes_token_type_ids(self.model):
            encoded.pop("token_type_ids", None)
        if both := sorted(encoded.keys() & self.generate_kwargs.keys()):
            raise TypeError(f"{both[0]}= is given twice: in the prompt and as an argument")
        copies = self.setting("num_return_sequences") or 1
        ids = prompt_rows(encoded, main_input_name(self.model), copies)
        if isinstance(prompts, Mapping):
            sources: list[Prompt] = [prompts] * len(ids)
        else:
            sources = [each for each in prompts for _ in range(copies)]
        rows = [
            self.new_row(
                row,
                continues_prompt=continues_prompt(
                    self.model, prompt, self.options.chat_template_kwargs
                ),
            )
            for row, prompt in zip(ids, sources, strict=True)
        ]
        if context_length is not None:
            check_context_length(self.model, ids, context_length)
        if uses_torch(self.model) and encoded.keys() <= _PLAIN_TEXT:
            check_vocabulary(self.model, ids)
        self._check_rows(encoded, rows)
        self._fit_token_limit(rows)
        for row in rows:
            # Calls that are required leave no answer to parse.
            row.form = None if isinstance(self.form, ToolForm) else self.options.form
        return encoded, rows

    def compile_form(self, rows: Sequence[Row]) -> None:
        """Compile the form, and raise what is wrong with it, as `form_matcher` does.

        In a worker thread: it can take seconds. The matchers that are made later are copies.
        """
        for row in rows:
            self.form_matcher(row)

    def _fit_token_limit(self, rows: Sequence[Row]) -> None:
        limit = self.generate_kwargs.get("max_new_tokens")
        if isinstance(limit, UpTo):
            minimum = max(1, self.setting("min_new_tokens") or 0)
            fitted = limit.fit(self.model, rows, minimum)
            self.generate_kwargs = {**self.generate_kwargs, "max_new_tokens": fitted}

    def _check_rows(self, inputs: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Refuse several rows where ``generate()`` cannot make them, or makes them wrong."""
        first = rows[0].prompt_token_ids
        if self.setting("token_healing") and any(row.prompt_token_ids != first for row in rows):
            raise ValueError(
                "token_healing=True: generate() pads the healed prompts again, but keeps the old "
                "attention mask; heal one prompt at a time, with stream_text()"
            )
        if len(rows) > 1 and is_transducer(self.model):
            raise ValueError(
                f"{len(rows)} rows: {type(self.model).__name__} adds text to a row after its "
                "recording has ended, until all recordings have; "
                "stream one recording at a time, with stream_text()"
            )
        check_whisper_rows(self.model, self.generate_kwargs, inputs, len(rows))

    def _stop_ids(self) -> dict[int, str]:
        """The special tokens among the stop strings, where they have no text to be found by."""
        stop = self.options.stop_strings
        to_token = getattr(self.text_tokenizer, "convert_ids_to_tokens", None)
        if not stop or self._shows_special_tokens or not callable(to_token):
            return {}
        # By their ids: for a string that is not a token, some tokenizers have the id of <unk>.
        tokens = {token_id: to_token(token_id) for token_id in special_ids(self.text_tokenizer)}
        return {token_id: token for token_id, token in tokens.items() if token in stop}
