"""The text that a consumer has got so far: written on the loop, read from any thread."""

from __future__ import annotations

__all__ = ["DeliveredText"]

# This many chunks are kept before they are joined to the text. Each join copies the whole text, and
# each read joins the chunks that are left.
CHUNKS_AT_MOST = 256


class DeliveredText:
    """A text that grows at its end.

    One thread appends. All others only read: what they see is always a beginning of the text.
    """

    def __init__(self) -> None:
        # In one tuple, so that a reader gets a text and the chunks that follow this text.
        self._parts: tuple[str, list[str]] = ("", [])

    def append(self, chunk: str) -> None:
        text, chunks = self._parts
        chunks.append(chunk)
        if len(chunks) >= CHUNKS_AT_MOST:
            self._parts = "".join([text, *chunks]), []

    def __str__(self) -> str:
        text, chunks = self._parts
        return "".join([text, *chunks])
