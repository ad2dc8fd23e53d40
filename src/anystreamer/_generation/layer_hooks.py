"""Stopping inside a forward pass, between the layers of a model. Needs torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from .._errors import GenerationStopped

__all__ = ["StopBetweenLayers", "layers_of"]


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a model of transformers: modules that it checkpoints, or must not split.

    Raises:
        ValueError: it has no layers of a known kind.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in names
    ]
    if not layers:
        raise ValueError(
            f"cancel_within='layer': {type(model).__name__} has no layers of a known kind; "
            "use cancel_within='step'"
        )
    return layers


class StopBetweenLayers:
    """While entered, raises `GenerationStopped` before a layer if *should_stop* returns True.

    Every user of the model calls the hooks on its layers, so they act in one thread only: the one
    that has entered.
    """

    def __init__(self, layers: Iterable[torch.nn.Module], should_stop: Callable[[], bool]) -> None:
        self._layers = layers
        self._should_stop = should_stop
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        # Local names, which the hook of each layer looks up faster.
        get_thread, should_stop = threading.get_ident, self._should_stop
        thread = get_thread()

        def stop_before(layer: torch.nn.Module, args: Any) -> None:
            if get_thread() == thread and should_stop():
                raise GenerationStopped

        self._handles = [layer.register_forward_pre_hook(stop_before) for layer in self._layers]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
