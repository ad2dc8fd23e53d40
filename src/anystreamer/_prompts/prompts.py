"""From prompts to model inputs: encoding, chat templates, padding."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .._bridge import call_after_fork
from .._weak_cache import WeakCache
from .media import has_media
from .prompt_checks import check_length
from .untrusted import (
    UntrustedMessages,
    encode_untrusted,
    has_plain_tokens,
    mark_untrusted,
    strings_in,
)

__all__ = [
    "Prompt",
    "TokenIds",
    "as_prompts",
    "encode",
    "padded",
    "prompt_rows",
    "takes_processor_kwargs",
    "tokenizer_of",
    "validate_prompt",
    "validate_prompts",
]

T = TypeVar("T")


class TokenIds(tuple[int, ...]):
    """A prompt in tokens: ``TokenIds([1, 15043])`` is the text that these ids stand for.

    As with a text, the answer continues it: a decoder that drops the first space of a text keeps
    the answer's.

    Raises:
        TypeError, ValueError: it has something else than ids of at least 0.
    """

    __slots__ = ()

    def __new__(cls, ids: Iterable[int]) -> TokenIds:
        """Check that all are ids."""
        self = super().__new__(cls, ids)
        for each in self:
            if isinstance(each, bool) or not isinstance(each, int):
                raise TypeError(f"TokenIds must be ints, got {each!r:.60}")
            if each < 0:
                raise ValueError(f"TokenIds must be at least 0, got {each}")
        return self


Prompt = str | TokenIds | Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Inputs whose first axis counts the rows, in the order in which they are looked for. Before the
# last ones comes the model's main input: pixels, or audio.
_IDS = ("input_ids", "inputs")
_OTHERS_WITH_ROWS = ("inputs_embeds", "input_features", "decoder_input_ids")
# The inputs that are padded here. Others have to be padded by the processor.
_PADDED = {"input_ids", "attention_mask", "token_type_ids"}


def _inputs_with_rows(main_input: str) -> list[str]:
    return list(dict.fromkeys((*_IDS, main_input, *_OTHERS_WITH_ROWS)))


def validate_prompt(name: str, prompt: Any, main_input: str = "input_ids") -> None:
    """Refuse what is not one prompt.

    Args:
        name: of the public function, for messages.
        prompt: see `stream_text`.
        main_input: the name of the model's main input.

    Raises:
        TypeError, ValueError: what a prompt must be.
    """
    if isinstance(prompt, Mapping):
        _validate_model_inputs(name, prompt, main_input)
        return
    if not isinstance(prompt, str | list | tuple):
        raise TypeError(
            "prompt must be a str, a list of chat messages or a mapping of model inputs, "
            f"not {type(prompt).__name__}; pass ids as anystreamer.TokenIds(ids), or a tensor of "
            "shape (1, T) as {'input_ids': ids}"
        )
    if not prompt:
        raise ValueError("prompt is empty: there is nothing to continue")
    if not isinstance(prompt, str | TokenIds):
        _validate_messages(name, prompt)


def _validate_model_inputs(
    name: str, inputs: Mapping[str, Any], main_input: str, *, is_batch: bool = False
) -> None:
    if not inputs:
        raise ValueError("prompt is empty: there is nothing to continue")
    if "role" in inputs and "content" in inputs:
        raise TypeError("prompt is one chat message: put it into a list, [{'role': ...}]")
    for key in _inputs_with_rows(main_input):
        shape = getattr(inputs.get(key), "shape", None)
        if shape is None:
            continue
        if len(shape) > 1 and shape[0] != 1 and not is_batch:
            raise ValueError(
                f"prompt[{key!r}] has {shape[0]} rows: {name}() takes one; use stream_batch()"
            )
        if key != "decoder_input_ids" and 0 in shape[:2]:
            raise ValueError(f"prompt[{key!r}] is empty: there is nothing to continue")


def _validate_messages(name: str, messages: Sequence[Any]) -> None:
    if all(isinstance(each, int) for each in messages):
        raise TypeError("prompt is a list of ints: pass ids as anystreamer.TokenIds(ids)")
    is_list = isinstance(messages[0], list | tuple)
    if is_list or all(isinstance(message, str) for message in messages):
        raise ValueError(
            f"prompt is a batch of {len(messages)}: {name}() takes one prompt; use stream_batch()"
        )
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise TypeError(
                "prompt must be a str, a list of chat messages ({'role': ..., 'content': ...}) "
                f"or a mapping of model inputs; {message!r:.60} is not a chat message"
            )


def validate_prompts(prompts: Any, main_input: str = "input_ids") -> None:
    """Refuse what is not a list of prompts, nor one mapping of model inputs with several rows.

    Raises:
        TypeError, ValueError: what prompts must be.
    """
    if isinstance(prompts, Mapping):
        _validate_model_inputs("stream_batch", prompts, main_input, is_batch=True)
        return
    if not isinstance(prompts, list | tuple):
        raise TypeError(
            "prompts must be a list of prompts or a mapping of model inputs, "
            f"not {type(prompts).__name__}; for one prompt use stream_text()"
        )
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to continue")
    if all(isinstance(each, Mapping) and "role" in each for each in prompts):
        raise ValueError("prompts is one list of chat messages: put it into a list, [messages]")
    for prompt in prompts:
        if isinstance(prompt, Mapping):
            raise TypeError("prompts: pass model inputs as one mapping with a row for each prompt")
        validate_prompt("stream_batch", prompt)


def as_prompts(prompt: Prompt) -> Sequence[Prompt] | Mapping[str, Any]:
    """One prompt as the list of prompts of a batch. Model inputs stay a mapping."""
    return prompt if isinstance(prompt, Mapping) else [prompt]


def tokenizer_of(tokenizer: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself. Raises TypeError for others."""
    # A processor has no encode(). Some tokenizers have a .tokenizer of their own as well.
    if not callable(getattr(tokenizer, "encode", None)):
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"tokenizer must have decode(), and {type(tokenizer).__name__} has none")
    return tokenizer


def encode(
    tokenizer: Any,
    prompts: Sequence[Prompt] | Mapping[str, Any],
    chat_template_kwargs: Mapping[str, Any],
    *,
    device: Any,
    uses_torch: bool,
    pad: Callable[[list[dict[str, Any]]], dict[str, Any]],
    context_length: int | None = None,
    dtype: Any = None,
    pads_right: bool = False,
) -> dict[str, Any]:
    """Turn prompts into model inputs with a row for each, on *device*.

    A mapping is model inputs already and stays as it is. *pad* puts several prompts together; where
    pictures are among them, the processor does. A prompt that is much longer than *context_length*
    is refused early. Pixels and other floating-point inputs get the model's *dtype*.
    """
    if isinstance(prompts, Mapping):
        if uses_torch:
            _check_tensors(prompts)
        return dict(prompts)
    chat_template_kwargs = _own_processor_kwargs(tokenizer, chat_template_kwargs)
    lock = _encoding_lock(tokenizer_of(tokenizer))
    with lock:
        if any(map(has_media, prompts)):
            rows = [_encode_media(tokenizer, prompts, chat_template_kwargs, pads_right, lock)]
        else:
            rows = [
                _encode_one(tokenizer, each, chat_template_kwargs, uses_torch, context_length)
                for each in prompts
            ]
    for row in rows:
        if not all(prompt_rows(row, "input_ids", 1)):
            raise ValueError("prompt has no tokens: there is nothing to continue")
    inputs = rows[0] if len(rows) == 1 else pad(rows)
    if device is not None and getattr(device, "type", None) != "meta":
        inputs = {name: _moved(value, device, dtype) for name, value in inputs.items()}
    return inputs


def _own_processor_kwargs(tokenizer: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a chat template with a copy of the processor's, to which it adds others."""
    if "processor_kwargs" not in settings or tokenizer is tokenizer_of(tokenizer):
        return settings
    own = dict(settings["processor_kwargs"] or {})
    if takes_processor_kwargs(tokenizer):
        return {**settings, "processor_kwargs": own}
    return {
        **{name: value for name, value in settings.items() if name != "processor_kwargs"},
        **own,
    }


def _moved(value: Any, device: Any, dtype: Any) -> Any:
    if not hasattr(value, "to"):
        return value
    if dtype is not None and dtype.is_floating_point and value.is_floating_point():
        return value.to(device, dtype)
    return value.to(device)


def _check_tensors(inputs: Mapping[str, Any]) -> None:
    ids = inputs.get("input_ids")
    if ids is not None and len(getattr(ids, "shape", ())) != 2:
        raise TypeError(
            "prompt['input_ids'] must be a tensor of shape (rows, tokens), which is "
            "torch.tensor([ids]) for one row"
        )


def prompt_rows(inputs: Mapping[str, Any], main_input: str, copies: int) -> list[list[int]]:
    """The ids of each row's prompt without padding, *copies* times each.

    They are empty where the prompt has no ids. *main_input* names the model's main input.
    """
    ids = next((inputs[name] for name in _IDS if _has_ids(inputs.get(name))), None)
    if ids is None:
        given = (inputs[name] for name in _inputs_with_rows(main_input) if name in inputs)
        shape = getattr(next(given, None), "shape", (1,))
        return [[] for _ in range(shape[0] * copies)]
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    rows = rows if rows and isinstance(rows[0], list) else [rows]
    mask = inputs.get("attention_mask")
    if mask is not None and len(rows) > 1:
        kept = mask.tolist() if hasattr(mask, "tolist") else mask
        rows = [
            [token_id for token_id, keep in zip(*pair, strict=True) if keep]
            for pair in zip(rows, kept, strict=True)
        ]
    return [row for row in rows for _ in range(copies)]


def _has_ids(value: Any) -> bool:
    """Whether they are ids: ``inputs`` can be the samples of a recording."""
    if value is None or len(getattr(value, "shape", (0, 0))) > 2:
        return False
    is_floating_point = getattr(value, "is_floating_point", lambda: False)
    return not is_floating_point()


# A call of a tokenizer stores its padding and truncation in the tokenizer, so calls from several
# threads mix them up: 83 of 16,000 did. Decoding is not affected.
_encoding_locks: WeakCache[threading.Lock] = WeakCache()
call_after_fork(_encoding_locks.clear)  # a thread of the parent can have held one


def _encoding_lock(tokenizer: Any) -> threading.Lock:
    return _encoding_locks.get(tokenizer, threading.Lock)


def _encode_one(
    tokenizer: Any,
    prompt: Prompt,
    chat_template_kwargs: Mapping[str, Any],
    uses_torch: bool,
    context_length: int | None,
) -> dict[str, Any]:
    return_tensors = {"return_tensors": "pt"} if uses_torch else {}
    text_tokenizer = tokenizer_of(tokenizer)
    if isinstance(prompt, str):
        if context_length is not None:
            check_length(text_tokenizer, prompt, context_length)
        return dict(tokenizer(text=prompt if uses_torch else [prompt], **return_tensors))
    if isinstance(prompt, TokenIds):
        return _inputs_of(list(prompt), uses_torch)
    settings = _template_settings(chat_template_kwargs)
    if context_length is not None and _could_exceed(context_length, prompt, settings):
        text = tokenizer.apply_chat_template(list(prompt), tokenize=False, **settings)
        check_length(text_tokenizer, text, context_length)
    if isinstance(prompt, UntrustedMessages) and has_plain_tokens(prompt):
        ids = encode_untrusted(tokenizer, text_tokenizer, prompt, settings)
        if ids is not None:
            return _inputs_of(ids, uses_torch)
    settings = {**return_tensors, **settings}
    return dict(
        tokenizer.apply_chat_template(list(prompt), tokenize=True, return_dict=True, **settings)
    )


def _template_settings(chat_template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    # The template opens a new message, unless it is to leave the last one open.
    opens_message = not chat_template_kwargs.get("continue_final_message")
    return {"add_generation_prompt": opens_message, **chat_template_kwargs}


def _encode_media(
    processor: Any,
    prompts: Sequence[Prompt],
    chat_template_kwargs: Mapping[str, Any],
    pads_right: bool,
    lock: threading.Lock,
) -> dict[str, Any]:
    """The inputs of chats with pictures or recordings, which are decoded. The processor pads."""
    from .video_processors import reading_video_files

    chats: list[Any] = list(prompts)
    if any(isinstance(each, str | TokenIds) for each in chats):
        raise ValueError(
            "prompts: if some are chats with pictures or audio, a text must be a chat as well: "
            "[{'role': 'user', 'content': ...}]"
        )
    settings = _template_settings(chat_template_kwargs)
    processor, chats = reading_video_files(processor, chats, lock)
    marked = mark_untrusted(processor, tokenizer_of(processor), chats, settings)
    if marked is not None:
        processor, chats, settings = marked.processor, marked.conversations, dict(marked.settings)
    if len(chats) > 1:
        settings = {**settings, **_padding(processor, settings, pads_right)}
    inputs = processor.apply_chat_template(
        [list(each) for each in chats] if len(chats) > 1 else list(chats[0]),
        tokenize=True,
        return_dict=True,
        **{"return_tensors": "pt", **settings},
    )
    if marked is not None:
        marked.check()
    return dict(inputs)


def _padding(processor: Any, settings: Mapping[str, Any], pads_right: bool) -> dict[str, Any]:
    """The arguments of a chat template with which the processor pads several chats."""
    if getattr(tokenizer_of(processor), "pad_token", None) is None:
        raise ValueError(
            f"{type(processor).__name__} cannot pad: its tokenizer has no pad_token. Set it, or "
            "use stream_text() for each prompt"
        )
    padding = {"padding": True, "padding_side": "right" if pads_right else "left"}
    if not takes_processor_kwargs(processor):
        return padding
    return {"processor_kwargs": {**padding, **(settings.get("processor_kwargs") or {})}}


def takes_processor_kwargs(processor: Any) -> bool:
    """Whether a processor takes arguments for encoding apart. Those of transformers 5.0 do not."""
    return "processor_kwargs" in inspect.signature(processor.apply_chat_template).parameters


def _could_exceed(context_length: int, messages: Prompt, settings: Mapping[str, Any]) -> bool:
    """Whether a prompt has more characters than tokens are allowed. If not, it fits unrendered."""
    if settings.get("truncation"):
        return False
    return sum(map(len, strings_in((messages, settings)))) > context_length


def _inputs_of(ids: list[int], uses_torch: bool) -> dict[str, Any]:
    if not uses_torch:
        return {"input_ids": [ids]}
    import torch

    input_ids = torch.tensor([ids])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def padded(
    rows: list[dict[str, Any]], pad_token_id: int | None, pads_right: bool
) -> dict[str, Any]:
    """Put rows together, with padding that the attention mask leaves out.

    Shorter prompts are padded on the left, where a decoder goes on from their end; or with
    *pads_right* on the right, where an encoder counts positions from their start.

    Not done by the tokenizer: it would need a pad token, and a setting that other threads see.
    """
    import torch

    if unknown := set().union(*rows) - _PADDED:
        raise ValueError(
            f"prompts: {sorted(unknown)[0]} cannot be padded here; "
            "let the processor make the inputs, and pass them as one mapping"
        )
    longest = max(row["input_ids"].shape[1] for row in rows)
    inputs: dict[str, Any] = {}
    for name in rows[0].keys() | {"attention_mask"}:
        filler = pad_token_id if name == "input_ids" and pad_token_id is not None else 0
        values = []
        for row in rows:
            missing = longest - row["input_ids"].shape[1]
            value = row[name] if name in row else torch.ones_like(row["input_ids"])
            sides = (0, missing) if pads_right else (missing, 0)
            values.append(torch.nn.functional.pad(value, sides, value=filler))
        inputs[name] = torch.cat(values)
    return inputs
