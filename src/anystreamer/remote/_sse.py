"""Server-sent events: from bytes, however they are split, to the data of each event. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ._limits import Limits

__all__ = ["EventData"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventData:
    """Takes the bytes of an event stream and yields the ``data`` of its events, as bytes.

    Lines are joined before anything is decoded, so that no character is cut. Ids, comments and most
    names are ignored: servers that stream text do not use them. An event without an empty line at
    its end is dropped, as the standard demands. An event with the name ``error``, or a field
    ``error``, becomes an event with an error: DashScope and others send errors in this way, and
    llama.cpp did until 2025.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._line = bytearray()  # the line that has not ended
        self._is_first_line = True
        self._after_cr = False  # the part ended with CR: an LF that comes now ends the same line
        self._data: list[bytes] = []  # of the event that has not ended
        self._size = 0  # of the lines with this data, in bytes
        self._is_error = False  # by the name of the event that has not ended

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Take more bytes, and yield the data of each event that they end.

        Raises:
            LimitExceeded: an event is too large. Nothing can be fed after that.
        """
        if self._after_cr and part:
            part = part.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in part:
            self._after_cr = part.endswith(b"\r")
            part = part.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *others = part.split(b"\n")
        self._line += first
        for rest in others:
            self._check_size()
            line, self._line = bytes(self._line), bytearray(rest)
            if (data := self._end_line(line)) is not None:
                yield data
        self._check_size()

    def _check_size(self) -> None:
        if self._size + len(self._line) > self._limits.max_event_size:
            raise self._limits.exceeded("max_event_size", "an event of the answer")

    def _end_line(self, line: bytes) -> bytes | None:
        """Take a line. Returns the data of the event that it ends."""
        if self._is_first_line:
            line = line.removeprefix(BYTE_ORDER_MARK)
            self._is_first_line = False
        if line.startswith(b"data:"):
            self._add(line, line[5:].removeprefix(b" "))
        elif line.startswith(b"error:"):
            self._add(line, b'{"error":%s}' % line[6:])
        elif line.startswith(b"event:"):
            self._is_error = line[6:].strip() == b"error"
        elif not line:
            return self._end_event()
        return None

    def _end_event(self) -> bytes | None:
        data, self._data, self._size = self._data, [], 0
        is_error, self._is_error = self._is_error, False
        if not data:
            return None
        joined = b"\n".join(data)
        # Data with too many values must not be parsed. `ResponseParser` refuses it.
        is_parsed = is_error and joined.count(b",") <= self._limits.max_values
        return _as_error(joined) if is_parsed else joined

    def _add(self, line: bytes, data: bytes) -> None:
        self._data.append(data)
        self._size += len(line) + 1  # one more byte, because empty lines take memory, too


def _as_error(data: bytes) -> bytes:
    """The data of an event with the name ``error``, in the form of errors in OpenAI's API."""
    try:
        error = json.loads(data)
    except (ValueError, RecursionError):
        error = data.decode(errors="replace").strip()
    if isinstance(error, dict):
        error = error.get("error") or error
    return json.dumps({"error": error or True}).encode()
