"""The arguments for ``generate()``: which value counts, and which of them cannot be streamed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .._model import is_compiled, text_config, uses_torch
from .._text import validate_stop_strings

__all__ = [
    "check_cancel_within",
    "check_form",
    "check_generate_kwargs",
    "check_score_changes",
    "effective_setting",
    "is_assisted",
    "new_token_limit",
    "stopping_criteria",
]

# What makes generate() check drafts, if it is not None: of another model, of the prompt's own text,
# of the model's first layers. With `use_mtp`, layers that the model has for it make drafts.
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")

# Names that other libraries have for something, and what to write here.
_INSTEAD = {
    "max_tokens": "use max_new_tokens=",
    "max_completion_tokens": "use max_new_tokens=",
    "stop_sequences": "use stop=",
    "stream": "leave it out, since the result is a stream",
    "tokenizer": "leave it out, since the tokenizer is known already",
    "n": "use stream_batch(..., num_return_sequences=)",
    "best_of": "use stream_batch(..., num_return_sequences=)",
    "seed": "call torch.manual_seed() in a context manager, and pass that as worker_context=",
    "system": "put {'role': 'system', 'content': ...} first into the messages",
    "messages": "pass the messages as the prompt",
    "enable_thinking": "use chat_template_kwargs={'enable_thinking': ...}",
    "functions": "use tools=",
    "function_call": "use tool_choice=",
    "response_model": "use response_format=",
    "json_schema": "use response_format=",
}

# Of these, what servers take.
_OF_SERVERS = {"best_of", "n", "seed"}

# Settings that only sampling reads, and the values that change nothing. A temperature of 0 is how
# others ask for the likeliest token.
_SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (None, 0, 1),
    "top_k": (None, 0, 50),
    "top_p": (None, 1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "top_h": (None,),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
}

# Caches of generate() whose size changes, so that it does not compile.
_NEVER_COMPILED = ("", "dynamic", "offloaded", "quantized")


def effective_setting(model: Any, generate_kwargs: Mapping[str, Any], name: str) -> Any:
    """The value that ``generate()`` will use for a setting of its generation config.

    An argument counts, None too. Then the first value that is not None counts: of the
    ``generation_config`` that was passed, and of the model's own.
    """
    if name in generate_kwargs:
        return generate_kwargs[name]
    configs = (generate_kwargs.get("generation_config"), getattr(model, "generation_config", None))
    values = (getattr(config, name, None) for config in configs)
    return next((value for value in values if value is not None), None)


def is_assisted(model: Any, generate_kwargs: Mapping[str, Any]) -> bool:
    """Whether drafts are made and checked several tokens at a time."""
    setting = partial(effective_setting, model, generate_kwargs)
    return bool(setting("use_mtp")) or any(setting(name) is not None for name in _ASSISTED)


def new_token_limit(model: Any, generate_kwargs: Mapping[str, Any], prompt_length: int) -> float:
    """The largest number of tokens that ``generate()`` makes after a prompt of this length."""
    new = effective_setting(model, generate_kwargs, "max_new_tokens")
    if new is not None:
        return int(new)
    total = effective_setting(model, generate_kwargs, "max_length")
    if total is None and not uses_torch(model):
        return math.inf
    if total is None:  # transformers' default
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or math.inf
        return float(min(20, limit - prompt_length))
    if prompt_length == 0 and "inputs_embeds" in generate_kwargs:
        prompt_length = generate_kwargs["inputs_embeds"].shape[1]
    return int(total) - prompt_length


def check_generate_kwargs(
    name: str, model: Any, generate_kwargs: Mapping[str, Any], *, logprobs: bool
) -> None:
    """Refuse what ``generate()`` accepts, or refuses too late, and cannot stream.

    Raises:
        TypeError, ValueError: with the reason, and what to do instead.
    """
    _check_arguments(name, model, generate_kwargs)
    setting = partial(effective_setting, model, generate_kwargs)
    if _cache(setting).startswith("paged"):
        raise ValueError(
            "cache_implementation='paged' cannot be streamed: leave it out, or use another cache"
        )
    beams = setting("num_beams") or 1
    if beams > 1:
        raise ValueError(
            f"num_beams={beams}: beam search has no text before its end; use num_beams=1"
        )
    rows = setting("num_return_sequences") or 1
    if rows > 1 and name == "stream_text":
        raise ValueError(
            f"num_return_sequences={rows}: stream_text() streams one sequence; use stream_batch()"
        )
    if logprobs:
        _check_logprobs(model, generate_kwargs)
    if not (_reads_settings_itself(model) or setting("do_sample") or setting("penalty_alpha")):
        _check_greedy(generate_kwargs)


def _reads_settings_itself(model: Any) -> bool:
    """Whether a setting can mean something else: to a server, or a ``generate()`` of its own."""
    if model is None:
        return True
    generate = getattr(model, "generate", None)
    return uses_torch(model) and generate.__module__ != "transformers.generation.utils"


def _check_greedy(generate_kwargs: Mapping[str, Any]) -> None:
    for name, neutral in _SAMPLING.items():
        if name in generate_kwargs and generate_kwargs[name] not in neutral:
            value = generate_kwargs[name]
            raise ValueError(
                f"{name}={value!r} does nothing without sampling: pass do_sample=True as well, or "
                "leave it out"
            )


def _check_arguments(name: str, model: Any, generate_kwargs: Mapping[str, Any]) -> None:
    if "streamer" in generate_kwargs:
        raise TypeError(f"{name}() passes streamer= itself: iterate over the stream instead")
    for other in _INSTEAD.keys() & generate_kwargs.keys():
        if other not in (_OF_SERVERS if model is None else _inputs_of(model)):
            raise TypeError(f"{other}= is not an argument of {name}(): {_INSTEAD[other]}")
    strings = generate_kwargs.get("stop_strings")
    if isinstance(strings, Iterator):  # we read them, and then generate() does
        raise TypeError("stop_strings must be a str or a list of str, not an iterator")
    strings = effective_setting(model, generate_kwargs, "stop_strings")
    if strings is not None and not validate_stop_strings(strings, "stop_strings"):
        raise ValueError("stop_strings has no string: leave it out")
    if callable(generate_kwargs.get("custom_generate")):
        raise ValueError(
            "custom_generate= as a callable drops the streamer: "
            f"call it from stream_from_thread() instead of {name}()"
        )
    if generate_kwargs.get("synced_gpus"):
        raise ValueError(
            "synced_gpus= is for several ranks, and one rank that stops alone hangs the others: "
            "stream from a server with one process for each model instead"
        )


def _inputs_of(model: Any) -> Collection[str]:
    """The names of a model's own inputs."""
    forward = getattr(model, "forward", None)
    return inspect.signature(forward).parameters if callable(forward) else ()


def _check_logprobs(model: Any, generate_kwargs: Mapping[str, Any]) -> None:
    if is_assisted(model, generate_kwargs):
        raise ValueError(
            "logprobs=True: assisted decoding computes more scores than it makes tokens; "
            "leave out assistant_model=, prompt_lookup_num_tokens= and use_mtp="
        )
    if not uses_torch(model):
        raise ValueError("logprobs=True needs a model of transformers")


def check_form(argument: str, model: Any, generate_kwargs: Mapping[str, Any]) -> None:
    """Refuse a model, or arguments, with which an answer cannot keep to a form.

    Args:
        argument: asks for the form; for messages.
        model: see `stream_text`.
        generate_kwargs: the arguments of ``generate()``.

    Raises:
        ValueError: the reason.
    """
    if not uses_torch(model):
        raise ValueError(f"{argument} needs a model of transformers")
    setting = partial(effective_setting, model, generate_kwargs)
    for name in ("min_new_tokens", "min_length"):
        if setting(name):
            raise ValueError(
                f"{name}={setting(name)}: with {argument}, an answer ends when its format is "
                "complete; leave it out"
            )
    if setting("assistant_tokenizer") is not None:
        raise ValueError(
            f"{argument}: the drafts of a model with another tokenizer can break the format; leave "
            "out assistant_tokenizer="
        )


def check_score_changes(model: Any, logit_bias: Mapping[int, float] | None, is_any: bool) -> None:
    """Refuse a bias and penalties that do not go with a model.

    Raises:
        ValueError: the model is not of transformers, or does not have an id of the bias.
    """
    if is_any and not uses_torch(model):
        raise ValueError(
            "frequency_penalty, presence_penalty and logit_bias need a model of transformers"
        )
    vocabulary = getattr(text_config(model), "vocab_size", None)
    largest = max(logit_bias or (-1,))
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise ValueError(
            f"logit_bias has the id {largest}: the model has the ids below {vocabulary}"
        )


def check_cancel_within(model: Any, generate_kwargs: Mapping[str, Any], cancel_within: str) -> None:
    """Refuse ``cancel_within="layer"`` where these arguments and this model do not allow it.

    Raises:
        ValueError: the reason, and what to do instead.
    """
    if cancel_within == "step":
        return
    setting = partial(effective_setting, model, generate_kwargs)
    reason = ""
    if not uses_torch(model) or not hasattr(model, "modules"):
        reason = f"{type(model).__name__} is not a model of transformers, and has no layers"
    elif any(map(is_compiled, model.modules())):
        reason = "a compiled model does not run the hooks between its layers"
    elif generate_kwargs.get("past_key_values") is not None:
        reason = "a step that is cut leaves past_key_values= with a part of its layers"
    elif not setting("disable_compile") and (
        setting("compile_config") is not None or _cache(setting) not in _NEVER_COMPILED
    ):
        reason = "generate() compiles a model with this cache, unless disable_compile=True"
    if reason:
        raise ValueError(f"cancel_within='layer': {reason}; use cancel_within='step'")


def _cache(setting: Callable[[str], Any]) -> str:
    return str(setting("cache_implementation") or "")


def stopping_criteria(rows_end: Callable[[Any], Sequence[bool]]) -> list[Any]:
    """What ends the rows for which *rows_end* returns True, given the ids of shape ``(B, T)``."""
    from .criteria import StopFlagCriteria

    return [StopFlagCriteria(lambda ids, _: rows_end(ids))]
