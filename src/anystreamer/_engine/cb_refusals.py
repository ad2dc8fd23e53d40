"""What continuous batching does not serve, and why: one table, for both engines that have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .._generation import GenerationRequest
from .._prompts import has_media
from .cb_config import SAMPLING, is_neutral_penalty
from .cb_manager import runs_in_order

__all__ = ["NOT_IN_ORDER", "REFUSALS", "inputs_refusal", "request_refusal"]

#: Why code of ours has to take part in each step.
NOT_IN_ORDER = (
    "needs steps that run one after the other in Python, without CUDA graphs, compiled steps or "
    "asynchronous batching: switch them off in continuous_batching_config"
)

_MASK = "prompt['attention_mask']"
_MEDIA = "pictures, audio and video in a chat"

#: What is refused, each with its reason. docs/how-to/continuous-batching.md shows this table.
REFUSALS = {
    "top_logprobs": "the manager returns the log-probability of the chosen token only",
    "worker_context": "one forward pass serves many requests, each in the same context",
    "cancel_within='layer'": "a pass that ends early would end for all requests",
    "max_buffer_size": "a reader that is slow would hold up all requests",
    "repetition_penalty": NOT_IN_ORDER,
    "frequency_penalty": NOT_IN_ORDER,
    "presence_penalty": NOT_IN_ORDER,
    "logit_bias": NOT_IN_ORDER,
    "logprobs": NOT_IN_ORDER,
    "response_format": NOT_IN_ORDER,
    "tool_choice": NOT_IN_ORDER,
    _MASK: "it leaves tokens out, and the manager reads all of them",
    _MEDIA: "it takes only the ids of a prompt",
    "other inputs of a prompt": "it takes only the ids of a prompt: no images, audio or embeddings",
    "other arguments of generate()": "the manager does not apply it to one request",
}

# The arguments of generate() that a request can have, besides those of sampling.
_SETTINGS = {"eos_token_id", "max_length", "max_new_tokens", "repetition_penalty"}

# Model inputs that are only the ids of a prompt.
_INPUTS = {"attention_mask", "input_ids"}
# They have the kind of each token. All 0 is plain text.
_TOKEN_KINDS = {"token_type_ids", "mm_token_type_ids"}


def request_refusal(request: GenerationRequest, prompts: Any, manager: Any) -> str | None:
    """Why a manager does not serve a request, beginning with the name; None if it does."""
    options = request.options
    given = {name for name, value in request.generate_kwargs.items() if value is not None}
    if others := sorted(given - {*_SETTINGS, *SAMPLING}):
        return f"{others[0]}: {REFUSALS['other arguments of generate()']}"
    is_in_order = manager is None or runs_in_order(manager)
    requested = {
        "top_logprobs": options.top_logprobs > 0,
        "worker_context": options.worker_context is not None,
        "cancel_within='layer'": options.cancel_within != "step",
        "max_buffer_size": options.max_buffer_size < math.inf,
    }
    if not is_in_order:
        requested |= {
            "repetition_penalty": not is_neutral_penalty(request.setting("repetition_penalty")),
            "frequency_penalty": bool(options.frequency_penalty),
            "presence_penalty": bool(options.presence_penalty),
            "logit_bias": bool(options.logit_bias),
            "logprobs": options.logprobs,
            "response_format": options.form is not None,
            "tool_choice": options.form is None and request.form is not None,
        }
    for name, is_requested in requested.items():
        if is_requested:
            return f"{name}: {REFUSALS[name]}"
    if isinstance(prompts, Mapping):
        return inputs_refusal(prompts)
    return f"{_MEDIA}: {REFUSALS[_MEDIA]}" if any(map(has_media, prompts)) else None


def inputs_refusal(inputs: Mapping[str, Any]) -> str | None:
    """Why a manager does not serve model inputs, beginning with the name; None if it does."""
    for name in sorted(inputs.keys() - _INPUTS):
        if inputs[name] is None or (name in _TOKEN_KINDS and not _has(inputs[name], nonzero=True)):
            continue
        return f"prompt[{name!r}]: {REFUSALS['other inputs of a prompt']}"
    mask = inputs.get("attention_mask")
    if mask is not None and _has(mask, nonzero=False):
        return f"{_MASK}: {REFUSALS[_MASK]}"
    return None


def _has(values: Any, *, nonzero: bool) -> bool:
    """Whether the first row of a tensor or a list has an item that is not 0, or one that is."""
    row = (values.tolist() if hasattr(values, "tolist") else values)[0]
    return any(bool(each) is nonzero for each in row)
