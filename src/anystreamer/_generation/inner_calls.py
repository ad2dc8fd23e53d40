"""Reports what a model's own ``generate()`` passes on to the ``generate()`` of a model inside it.

BLIP ends its text by a token that it names in that call alone, BLIP-2 by one in the generation
config of the model inside, and Qwen-Omni has arguments for each of its models. Nothing else shows
which tokens end the text, and how many there can be.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["inner_calls_reported"]

# Runs of one model can overlap, if the caller's limiter lets them.
_lock = threading.Lock()
_users: dict[int, int] = {}


@contextlib.contextmanager
def inner_calls_reported(model: Any) -> Iterator[None]:
    """Within the block, report each such call to the streamer among its arguments.

    By ``streamer.begin_inner(inner_model, kwargs)``, before the inner model begins.
    """
    inner = list(_inner_models(model))
    with _lock:
        for each in inner:
            _users[id(each)] = _users.get(id(each), 0) + 1
            if _users[id(each)] == 1:
                each.generate = _Reporting(each)
    try:
        yield
    finally:
        with _lock:
            for each in inner:
                _users[id(each)] -= 1
                if not _users[id(each)]:
                    del _users[id(each)]
                    _unwrap(each)


def _inner_models(model: Any) -> Iterator[Any]:
    """The models inside one that has a ``generate()`` of its own."""
    from transformers import GenerationMixin, PreTrainedModel

    own = getattr(type(model), "generate", None)
    if not isinstance(model, PreTrainedModel) or own is GenerationMixin.generate:
        return
    for each in model.modules():
        if each is not model and callable(getattr(type(each), "generate", None)):
            yield each


class _Reporting:
    """In place of the ``generate()`` of a model inside."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.own: Callable[..., Any] | None = vars(model).get("generate")  #: an instance's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _report(self._model, kwargs)
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self._model).generate(self._model, *args, **kwargs)


def _unwrap(model: Any) -> None:
    reporting = vars(model).get("generate")
    if not isinstance(reporting, _Reporting):  # it was given another one meanwhile
        return
    del model.generate
    if reporting.own is not None:
        model.generate = reporting.own


def _report(model: Any, kwargs: Mapping[str, Any]) -> None:
    begin_inner = getattr(kwargs.get("streamer"), "begin_inner", None)
    if begin_inner is not None:  # another thread's call can have a streamer of its own
        begin_inner(model, kwargs)
