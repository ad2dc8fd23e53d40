"""From prompts to model inputs: encoding, chat templates, padding."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "Prompt",
    "as_prompts",
    "encode",
    "prompt_rows",
    "tokenizer_of",
    "validate_prompt",
    "validate_prompts",
    "weak_cached",
]

T = TypeVar("T")
Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]

# A mapping of model inputs says by the first axis of these how many rows it has.
_WITH_ROWS = ("inputs", "input_ids", "inputs_embeds", "input_features", "decoder_input_ids")
# What padding can be made for here. Anything else is for the processor to pad.
_PADDED = {"input_ids", "attention_mask", "token_type_ids"}


def validate_prompt(name: str, prompt: Any, *, is_batch: bool = False) -> None:
    """Refuse what is no prompt. *name* is that of the public function. TypeError or ValueError."""
    if isinstance(prompt, Mapping):
        for key in _WITH_ROWS:
            shape = getattr(prompt.get(key), "shape", None)
            if shape is None:
                continue
            if len(shape) > 1 and shape[0] != 1 and not is_batch:
                raise ValueError(
                    f"prompt[{key!r}] has {shape[0]} rows: {name}() takes one; use stream_batch()"
                )
            if key != "decoder_input_ids" and 0 in shape[:2]:
                raise ValueError(f"prompt[{key!r}] is empty: there is nothing to continue")
        if not prompt:
            raise ValueError("prompt is empty: there is nothing to continue")
        return
    if not isinstance(prompt, str | list | tuple):
        raise TypeError(
            "prompt must be a str, a list of chat messages or a mapping of model inputs, "
            f"not {type(prompt).__name__}; pass ids as {{'input_ids': a tensor of shape (1, T)}}"
        )
    if not prompt:
        raise ValueError("prompt is empty: there is nothing to continue")
    if isinstance(prompt, str):
        return
    if all(isinstance(message, str) for message in prompt) or isinstance(prompt[0], list | tuple):
        raise ValueError(
            f"prompt is a batch of {len(prompt)}: {name}() takes one prompt; use stream_batch()"
        )
    for message in prompt:
        if not isinstance(message, Mapping) or "role" not in message:
            raise TypeError(
                "prompt must be a str, a list of chat messages ({'role': ..., 'content': ...}) "
                f"or a mapping of model inputs; {message!r:.60} is no chat message"
            )


def validate_prompts(prompts: Any) -> None:
    """Refuse what is no list of prompts, nor one mapping of model inputs with several rows."""
    if isinstance(prompts, Mapping):
        validate_prompt("stream_batch", prompts, is_batch=True)
        return
    if not isinstance(prompts, list | tuple):
        raise TypeError(
            "prompts must be a list of prompts or a mapping of model inputs, "
            f"not {type(prompts).__name__}; for one prompt use stream_text()"
        )
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to continue")
    if all(isinstance(each, Mapping) and "role" in each for each in prompts):
        raise ValueError("prompts is one list of chat messages: put it in a list of its own")
    for prompt in prompts:
        if isinstance(prompt, Mapping):
            raise TypeError("prompts: pass model inputs as one mapping with a row for each prompt")
        validate_prompt("stream_batch", prompt)


def as_prompts(prompt: Prompt) -> Sequence[Prompt] | Mapping[str, Any]:
    """The prompts that one prompt makes."""
    return prompt if isinstance(prompt, Mapping) else [prompt]


def tokenizer_of(tokenizer: Any) -> Any:
    """The tokenizer of a processor; a tokenizer as it is. Raises TypeError where there is none."""
    if not callable(getattr(tokenizer, "encode", None)):  # a processor cannot; some tokenizers
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # have a .tokenizer of their own
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
) -> dict[str, Any]:
    """Turn prompts into model inputs with a row for each, padded on the left, on *device*.

    A mapping is model inputs already and stays as it is.
    """
    if isinstance(prompts, Mapping):
        return dict(prompts)
    with _encoding_lock(tokenizer_of(tokenizer)):
        rows = [_encode_one(tokenizer, each, chat_template_kwargs, uses_torch) for each in prompts]
    for row in rows:
        if not prompt_rows(row, 1)[0]:
            raise ValueError("prompt has no tokens: there is nothing to continue")
    inputs = rows[0] if len(rows) == 1 else _padded(tokenizer_of(tokenizer), rows)
    if device is not None and getattr(device, "type", None) != "meta":
        inputs = {
            name: value.to(device) if hasattr(value, "to") else value
            for name, value in inputs.items()
        }
    return inputs


def prompt_rows(inputs: Mapping[str, Any], copies: int) -> list[list[int]]:
    """The ids of each row's prompt without padding, *copies* times each; one empty row if none."""
    ids = inputs.get("input_ids", inputs.get("inputs"))
    if ids is None:
        shapes = (getattr(inputs.get(name), "shape", (1,)) for name in _WITH_ROWS if name in inputs)
        return [[] for _ in range(next(shapes, (1,))[0] * copies)]
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


# Tokenizers keep the padding and truncation of a call as their state, so calls from several
# threads see each other's: 83 of 16,000 did. Decoding is not affected.
_encoding_locks: dict[int, threading.Lock] = {}
_encoding_locks_lock = threading.Lock()


def _encoding_lock(tokenizer: Any) -> threading.Lock:
    with _encoding_locks_lock:
        return weak_cached(tokenizer, _encoding_locks, threading.Lock)


def weak_cached(owner: object, kept: dict[int, T], new: Callable[[], T]) -> T:
    """What *kept* has for an object, hashable or not, for as long as the object lives."""
    key = id(owner)
    if key not in kept:
        kept[key] = new()
        with contextlib.suppress(TypeError):  # no weak references: it stays
            weakref.finalize(owner, kept.pop, key, None)
    return kept[key]


def _encode_one(
    tokenizer: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any], uses_torch: bool
) -> dict[str, Any]:
    return_tensors = {"return_tensors": "pt"} if uses_torch else {}
    if isinstance(prompt, str):
        return dict(tokenizer(text=prompt if uses_torch else [prompt], **return_tensors))
    settings = {"add_generation_prompt": True, **return_tensors, **chat_template_kwargs}
    return dict(
        tokenizer.apply_chat_template(list(prompt), tokenize=True, return_dict=True, **settings)
    )


def _padded(tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put rows together, with padding on the left that the attention mask leaves out.

    Done here and not by the tokenizer, which would need a pad token, and a setting that other
    threads see.
    """
    import torch

    if unknown := set().union(*rows) - _PADDED:
        raise ValueError(
            f"prompts: {sorted(unknown)[0]} cannot be padded here; "
            "let the processor make the inputs, and pass them as one mapping"
        )
    pad = getattr(tokenizer, "pad_token_id", None)
    longest = max(row["input_ids"].shape[1] for row in rows)
    inputs: dict[str, Any] = {}
    for name in rows[0].keys() | {"attention_mask"}:
        filler = pad if name == "input_ids" and pad is not None else 0
        inputs[name] = torch.cat(
            [
                torch.nn.functional.pad(
                    row[name] if name in row else torch.ones_like(row["input_ids"]),
                    (longest - row["input_ids"].shape[1], 0),
                    value=filler,
                )
                for row in rows
            ]
        )
    return inputs
