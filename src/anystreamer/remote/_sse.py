"""Server-sent events: from bytes, however they are split, to the data of each event. Pure."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["EventData"]


class EventData:
    """Takes the bytes of an event stream and yields the ``data`` of its events, as bytes.

    Lines are joined before anything is decoded, so that no character is ever cut. Names, ids and
    comments are ignored: servers that stream text put nothing into them. An event without an empty
    line at its end is dropped, as the standard demands. A field named ``error`` becomes an event
    with an error: llama.cpp sent its errors so until 2025.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the line that has not ended
        self._after_cr = False  # the line has ended: a line feed that comes now belongs to its end
        self._data: list[bytes] = []  # of the event that has not ended

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Take more bytes, and yield the data of each event that they end."""
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
            elif line.startswith(b"error:"):
                self._data.append(b'{"error":%s}' % line[6:])
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data
