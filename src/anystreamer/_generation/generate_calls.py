"""Reports how calls of `generate()` end to their streamers, which transformers does not do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["watch_generate_calls"]

_watched: set[type] = set()


def watch_generate_calls(watch: Callable[[Any], AbstractContextManager[object]]) -> None:
    """Enter ``watch(streamer)`` around each call of ``generate()`` that has a streamer.

    It wraps transformers' method, once, and only if transformers has been imported. Nothing else
    shows that a call has raised before its first ``put()``: until then ``generate()`` uses nothing
    of a streamer, and a thread that has ended leaves no trace.
    """
    mixin: Any = getattr(sys.modules.get("transformers.generation.utils"), "GenerationMixin", None)
    if mixin is None or mixin in _watched:
        return
    _watched.add(mixin)
    generate = mixin.generate

    @functools.wraps(generate)
    def watched_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        streamer = kwargs.get("streamer")
        if streamer is None:
            return generate(self, *args, **kwargs)
        with watch(streamer):
            return generate(self, *args, **kwargs)

    mixin.generate = watched_generate
