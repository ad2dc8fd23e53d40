"""Reports how calls of `generate()` end to their streamers, which transformers does not do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

from .._errors import PreservingContext

__all__ = ["watch_generate_calls"]

Watch = Callable[[Any], AbstractContextManager[object]]

# Where models have `generate()` from: some classes have one of their own.
ROOTS = (
    ("transformers.generation.utils", "GenerationMixin"),
    ("transformers.modeling_utils", "PreTrainedModel"),
)

_watched = WeakSet[type]()


def watch_generate_calls(watch: Watch) -> None:
    """Enter ``watch(streamer)`` around each call of ``generate()`` that has a streamer.

    It wraps the method in the classes of transformers that have been imported, each once. Nothing
    else shows that a call has raised before its first ``put()``: until then ``generate()`` uses
    nothing of a streamer, and a thread that has ended leaves no trace.
    """
    for module, name in ROOTS:
        root = getattr(sys.modules.get(module), name, None)
        for cls in () if root is None else _with_subclasses(root):
            generate = vars(cls).get("generate")
            if callable(generate) and cls not in _watched:
                _watched.add(cls)
                cls.generate = _watched_method(generate, watch)


def _with_subclasses(cls: Any) -> Iterator[Any]:
    yield cls
    for each in cls.__subclasses__():
        yield from _with_subclasses(each)


def _watched_method(generate: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    @functools.wraps(generate)
    def watched_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        streamer = kwargs.get("streamer")
        if streamer is None:
            return generate(self, *args, **kwargs)
        with PreservingContext(watch(streamer)):
            return generate(self, *args, **kwargs)

    return watched_generate
