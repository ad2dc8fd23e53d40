"""Which models and requests can take over the KV cache of an earlier request. Needs torch.

A request takes over a cache, or leaves one, only if it is known to give the same tokens as without
a cache. All other requests run as if there were no kept caches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
import transformers
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .._errors import is_kind
from .._generation import GenerationRequest, is_assisted
from .._streams import Row
from .kept_caches import KeptCaches
from .model_state import model_state

__all__ = ["CacheReuse"]

# The steps of ``generate()`` that fill a cache. A model with a step of its own can have more state
# than its cache: the positions that a picture has left, for instance.
_STEPS = (
    "generate",
    "_prefill",
    "_sample",
    "prepare_inputs_for_generation",
    "_prepare_attention_mask_for_generation",
    "_prepare_cache_for_generation",
    "_prepare_model_inputs",
    "_prepare_position_ids_for_generation",
    "_update_model_kwargs_for_generation",
)

# Kinds of rotary embedding whose angles depend on positions alone. With others ("dynamic",
# "longrope") they depend on the length of the whole text: the keys of a shorter one are different.
_FIXED_ROPES = {"default", "linear", "llama3", "proportional", "yarn"}

# Arguments of ``generate()`` that do not reach the model, besides those of its generation config.
_HARMLESS = {
    "generation_config",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "stopping_criteria",
    "tokenizer",
}

# Settings of the generation config that change what the cache is, who else uses it, or the prompt.
# With `return_dict_in_generate` the caller gets the cache.
_UNLESS_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "cache_implementation": (None, "dynamic"),
    "custom_generate": (None,),
    "dola_layers": (None,),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0),
    "return_dict_in_generate": (None, False),
    "token_healing": (None, False),
    "use_cache": (None, True),
}


# In older releases (5.3 and 5.6 were tried), a prompt in chunks is wrong after what a cache has.
_CHUNKS_AFTER_CACHE = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)

# After what a cache has, most kinds of attention need a mask, with an entry for each new token and
# each token before it. Without one, a long prompt needs memory for its tokens only. So what is new
# is computed in chunks that keep a mask below this: 64 MiB, in float32.
MASK_ENTRIES = 2**24
# Tokens. Smaller chunks would take more time than the mask of a very long text takes memory.
MIN_CHUNK = 256


class CacheReuse:
    """Lends the caches of recent conversations to the calls of ``generate()`` of one engine.

    Used in the engine's thread.
    """

    def __init__(self, model: Any, max_conversations: int, max_share: float) -> None:
        self._model = _without_wrappers(model)
        self._caches: KeptCaches | None = None
        if self._model is not None and _can_crop(self._model):
            self._caches = KeptCaches(max_conversations, max_share, self._model.device)

    @property
    def caches(self) -> KeptCaches | None:
        """What is kept; None where the model's caches cannot be taken over."""
        return self._caches

    def lend(
        self,
        request: GenerationRequest,
        kwargs: dict[str, Any],
        row: Row,
        latest_ids: Callable[[], Any],
    ) -> AbstractContextManager[None]:
        """See `CacheLender`."""
        if self._caches is None or not _can_reuse(request, kwargs):
            return nullcontext()
        if request.setting("cache_implementation") is not None:
            # It names the kind of cache that is lent. generate() refuses a name beside a cache.
            kwargs["cache_implementation"] = None
        chunk_size = request.setting("prefill_chunk_size")
        return _Loan(self._caches, self._model, kwargs, row, latest_ids, chunk_size)

    def close(self) -> None:
        """Give all memory back."""
        if self._caches is not None:
            self._caches.clear()


class _Loan:
    """A cache, for one call of ``generate()``."""

    def __init__(
        self,
        caches: KeptCaches,
        model: Any,
        kwargs: dict[str, Any],
        row: Row,
        latest_ids: Callable[[], Any],
        chunk_size: int | None,
    ) -> None:
        self._caches = caches
        self._model = model
        self._kwargs = kwargs
        self._row = row
        self._latest_ids = latest_ids
        self._chunk_size = chunk_size

    def __enter__(self) -> None:
        self._prompt = self._kwargs["input_ids"][0].tolist()
        self._state = model_state(self._model)
        config = self._model.config.get_text_config(decoder=True)
        cache, length = self._caches.take(self._prompt, self._state, config)
        total = len(self._prompt)
        if length and self._chunk_size is None and (total - length) * total > MASK_ENTRIES:
            if _CHUNKS_AFTER_CACHE:
                self._kwargs["prefill_chunk_size"] = max(MASK_ENTRIES // total, MIN_CHUNK)
            else:
                cache, length = DynamicCache(config=config), 0
        self._kwargs["past_key_values"] = cache
        self._row.cached_tokens = length

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Taken out: code that still has the arguments must not hold the cache's memory.
        cache = self._kwargs.pop("past_key_values")
        if is_kind(exc, torch.OutOfMemoryError):
            self._caches.clear()
            return
        try:
            ids = self._latest_ids()
            self._caches.keep(self._prompt if ids is None else ids[0].tolist(), cache, self._state)
        except Exception:  # of a device that has failed, or has no memory left
            self._caches.clear()


def _without_wrappers(model: Any) -> Any:
    """The model of transformers inside ``torch.compile()`` and PEFT; None if there is none."""
    while not isinstance(model, PreTrainedModel):
        if (inner := getattr(model, "_orig_mod", None)) is not None:
            model = inner
        elif getattr(model, "active_peft_config", None) is not None:
            # A soft prompt comes before the prompt, and has no ids.
            if getattr(model.active_peft_config, "is_prompt_learning", True):
                return None
            model = model.get_base_model()
        else:
            return None
    return model


def _can_crop(model: Any) -> bool:
    """Whether the first part of a model's cache is what the first part of a text would give."""
    config = model.config.get_text_config(decoder=True)
    return (
        issubclass(type(model), GenerationMixin)
        and not model.config.is_encoder_decoder
        and not any(_is_remote(each) for each in type(model).__mro__)
        # Older releases have their own caches for hybrid models, and say so here.
        and getattr(model, "_supports_default_dynamic_cache", lambda: True)()
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and all(_is_common(model, step) for step in _STEPS)
        and "past_key_values" in inspect.signature(model.forward).parameters
        and getattr(config, "is_causal", True) is not False
        and set(_rope_types(config)) <= _FIXED_ROPES
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    )


def _is_remote(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "transformers_modules"


def _is_common(model: Any, step: str) -> bool:
    """Whether a model has transformers' common method for a step, and none of its own."""
    common = getattr(GenerationMixin, step, None)
    own = vars(model).get(step)
    is_own = own is not None and not getattr(own, "takes_turns", False)  # an engine's lock
    return not is_own and getattr(type(model), step, None) is common


def _rope_types(config: Any) -> Iterator[str]:
    """The kinds of rotary embedding in a config: one, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        yield from _types_in(getattr(config, name, None))


def _types_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key in ("rope_type", "type"):
                yield str(each)
            else:
                yield from _types_in(each)


def _can_reuse(request: GenerationRequest, kwargs: Mapping[str, Any]) -> bool:
    """Whether a request computes what any other one with the same ids does."""
    known = vars(GenerationConfig()).keys() | _HARMLESS | {"input_ids", "attention_mask"}
    return (
        # Such a context can change the weights, and how the model computes.
        request.options.worker_context is None
        and kwargs.keys() <= known
        and not is_assisted(request.model, request.generate_kwargs)
        and all(request.setting(name) in values for name, values in _UNLESS_NEUTRAL.items())
        and (_CHUNKS_AFTER_CACHE or request.setting("prefill_chunk_size") is None)
        and _is_plain_text(request, kwargs)
    )


def _is_plain_text(request: GenerationRequest, kwargs: Mapping[str, Any]) -> bool:
    """Whether the prompt is one row of ids, and the model sees all of them."""
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.shape[0] != 1:
        return False
    if mask is not None:
        return tuple(mask.shape) == tuple(ids.shape) and bool((mask == 1).all())
    # Without a mask, ``generate()`` takes pad tokens for padding unless they are EOS as well.
    pad = request.setting("pad_token_id")
    return pad is None or pad in request.eos_token_ids or not bool((ids == pad).any())
