"""The names that a model is served by."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ._errors import APIError

__all__ = ["ModelNames"]

# What the client of huggingface_hub sends if it has an address and no name.
PLACEHOLDERS = ("dummy",)


class ModelNames:
    """One name that responses have, and more that requests can use.

    Args:
        main: the name in responses.
        aliases: more names for requests. None accepts the names that clients send by default, and
            does not list them.
        modalities: what messages can have, such as ``"text"`` and ``"image"``.
    """

    def __init__(
        self, main: str, aliases: Sequence[str] | None, modalities: Sequence[str] = ("text",)
    ) -> None:
        self.main = main
        self._listed = list(dict.fromkeys((main, *(aliases or ()))))
        self._taken = {*self._listed, *(PLACEHOLDERS if aliases is None else ())}
        self._modalities = list(modalities)
        self._created = int(time.time())

    def check(self, name: str | None) -> None:
        """Check a name in a request; None means the main one. Raises APIError if it is unknown."""
        if name is None or name in self._taken:
            return
        names = ", ".join(map(repr, self._listed))
        raise APIError(
            f"the model {name[:200]!r} does not exist: use {names}",
            param="model",
            status=404,
            code="model_not_found",
        )

    def cards(self) -> list[dict[str, object]]:
        """All names, as OpenAI's API lists models."""
        return [self._card(name) for name in self._listed]

    def card(self, name: str) -> dict[str, object]:
        """One name, as OpenAI's API describes a model. Raises APIError if it is unknown."""
        self.check(name)
        return self._card(name)

    def _card(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "anystreamer",
            "input_modalities": self._modalities,
        }
