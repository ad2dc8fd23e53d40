"""What a model computes with: its weights and adapters, as far as they can be changed. Needs torch.

A KV cache that was computed with other weights, or with another adapter, is wrong, and nothing
fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch

__all__ = ["ModelState", "model_state"]

# What the layers of PEFT's adapters have: which ones are active, merged into the weights or
# switched off, and how strong they are.
_OF_ADAPTERS = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a model computed with at some time. Another one is equal if that has not changed."""

    weights: tuple[Any, ...]
    adapters: tuple[Any, ...]
    # A new weight can get the address of a deleted one. Nothing gets that of a reference that
    # we keep: so the id of its weak reference identifies a weight.
    references: tuple[ref[Any], ...] = field(compare=False, repr=False)


def model_state(model: torch.nn.Module) -> ModelState:
    """The state of a model: of its weights and its adapters.

    It knows when a weight is replaced, and when an operation of torch changes it in place. It does
    not know what is written through ``weight.data``.
    """
    weights = list(model.parameters())
    references = tuple(map(ref, weights))
    adapters = [
        (name, repr(value) if isinstance(value, Mapping | list | tuple) else value)
        for module in model.modules()
        if hasattr(module, "merged_adapters")
        for name in _OF_ADAPTERS
        if isinstance(value := getattr(module, name, None), Mapping | list | tuple | str | bool)
    ]
    return ModelState(tuple(map(_state_of, weights)), tuple(adapters), references)


def _state_of(weight: torch.Tensor) -> tuple[Any, ...]:
    # Tensors that were made in inference mode count no versions.
    version = 0 if weight.is_inference() else getattr(weight, "_version", 0)
    try:
        place = weight.data_ptr()
    except RuntimeError:  # some quantized weights have no memory of their own
        place = 0
    return id(ref(weight)), place, version, weight.dtype
