"""Server-sent events: from bytes, however they were cut, to the data of each event. Pure."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["EventData"]


class EventData:
    """Takes the bytes of an event stream and gives the ``data`` of its events, as bytes.

    Lines are put together before anything is decoded, so that no character is ever cut. Names, ids
    and comments are passed over: nobody who streams text says anything with them. As the standard
    has it, an event that no empty line has ended is none.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self._line = bytearray()  # that has not ended
        self._after_cr = False  # a line feed that comes now ends no other line
        self._data: list[bytes] = []  # of the event that has not ended

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Take more, and give each event that it ends."""
        if self._after_cr and part:
            part = part.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in part:
            self._after_cr = part.endswith(b"\r")
            part = part.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *others = part.split(b"\n")
        self._line += first
        for rest in others:
            line, self._line = bytes(self._line), bytearray(rest)
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data
