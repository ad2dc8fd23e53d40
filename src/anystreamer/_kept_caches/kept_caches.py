"""The KV caches of recent conversations: found by their ids, and bounded. Needs torch.

All of it is used in one thread, the engine's. A cache is in one place at a time: here, or in the
one call of ``generate()`` that extends it. A prompt that shares only a part with a conversation
gets a cache of its own: the layers of transformers never write into their tensors, so the two can
share them until the new one has grown.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .free_memory import free_bytes

__all__ = ["KeptCaches"]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    ids: list[int]  # one for each position of the cache
    cache: Any
    model_state: object  # of the model that computed it
    bytes: int


class KeptCaches:
    """Caches of one model, each with the ids that it holds, the least recently used first.

    Args:
        max_conversations: how many there can be.
        max_share: of the memory that is free before the first one is kept.
        device: of the model.
    """

    def __init__(self, max_conversations: int, max_share: float, device: torch.device) -> None:
        self._max_conversations = max_conversations
        self._max_share = max_share
        self._device = device
        self._kept: list[_Kept] = []
        self._max_bytes: float | None = None  # until it is needed

    @property
    def bytes(self) -> int:
        """How much memory their tensors take."""
        return sum(each.bytes for each in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, ids: Sequence[int], model_state: object, config: Any) -> tuple[Any, int]:
        """The cache for a prompt, and how many of its first tokens the cache holds already.

        At least the prompt's last token is left, which gives the answer's first one.

        Args:
            ids: of the prompt.
            model_state: caches that were computed in another state are not found.
            config: of the model's decoder, for a new cache.
        """
        cache: Any = DynamicCache(config=config)
        best, length = None, 0
        for each in self._kept:
            if each.model_state == model_state:
                common = min(_common_length(each.ids, ids), len(ids) - 1)
                if common > length:
                    best, length = each, common
        if best is None:
            return cache, 0
        if length == len(best.ids):  # the conversation goes on
            self._kept.remove(best)
            return best.cache, length
        for layer, kept in zip(cache.layers, best.cache.layers, strict=True):
            layer.lazy_initialization(kept.keys, kept.values)
            layer.keys, layer.values = kept.keys[..., :length, :], kept.values[..., :length, :]
        return cache, length

    def keep(self, ids: Sequence[int], cache: Any, model_state: object) -> None:
        """Keep a cache for the next turn, as far as it can be used.

        Args:
            ids: of the prompt and of the answer so far.
            cache: what ``generate()`` has made of them. Where it was cut within a step, the layers
                can have different lengths, and the shortest counts.
            model_state: see `take`.
        """
        lengths = _lengths(cache)
        if not lengths or not 0 < min(lengths) <= len(ids):
            return  # longer than its text: it holds something else as well
        length = min(lengths)
        for layer in cache.layers:
            layer.keys = _cut(layer.keys, length)
            layer.values = _cut(layer.values, length)
        size = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
        if self._max_bytes is None:
            self._max_bytes = self._max_share * (free_bytes(self._device) + size)
        if size > self._max_bytes:
            return  # all others would have to go, and it still could not stay
        new = _Kept(list(ids[:length]), cache, model_state, size)
        latest = next((each for each in self._kept if _holds(each, new)), new)
        self._kept = [each for each in self._kept if not _holds(latest, each)]
        self._kept.append(latest)
        while len(self) > self._max_conversations or self.bytes > self._max_bytes:
            del self._kept[0]

    def clear(self) -> None:
        """Give all memory back."""
        self._kept.clear()


def _holds(one: _Kept, other: _Kept) -> bool:
    """Whether everything that *other* can serve is in *one* as well."""
    ids = other.ids
    return one.ids[: len(ids)] == ids and one.model_state == other.model_state


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids are the same from the start on.

    Slices are compared in C: a loop in Python over the ids of eight long conversations would delay
    the first token.
    """
    shorter = min(len(one), len(other))
    return bisect.bisect_left(range(shorter), True, key=lambda i: one[: i + 1] != other[: i + 1])


def _lengths(cache: Any) -> list[int]:
    """How many positions each tensor has; empty if there is a layer that is not known here."""
    layers = cache.layers
    if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers):
        return []
    # An error can strike between the two tensors of a layer.
    tensors = [each for layer in layers for each in (layer.keys, layer.values)]
    return [each.shape[-2] if each.ndim > 1 else 0 for each in tensors]


def _cut(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Its first *length* positions, in memory of their own: a view keeps all of the other's."""
    tensor = tensor[..., :length, :]
    is_view = tensor.untyped_storage().nbytes() > tensor.nbytes
    return tensor.clone(memory_format=torch.contiguous_format) if is_view else tensor
