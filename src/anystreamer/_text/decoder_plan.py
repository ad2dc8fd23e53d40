"""What a tokenizer's Rust decoder does to each token, read from its own description."""

import codecs
import json
import re
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from .._reporting import SafeLogger
from .text_stages import ENDINGS, MARKS, QUOTES, Replacing, StrippingStart, TextStage, end_stages

logger = SafeLogger()


# A Rust decoder's steps, sorted: on single tokens, how these are joined, on the joined text.
# Invariant: the steps applied in this order are the decoder.
class DecoderPlan:
    def __init__(self) -> None:
        self.token_steps: list[Callable[[str, bool], str]] = []
        self.core: Literal["text", "bytes", "runs"] = "text"
        self.text_stages: list[Callable[[], TextStage]] = []

    def entry(self, token: str) -> tuple[Any, Any]:
        """What a token adds as the first of a text, and later: str, or bytes where it is bytes."""
        first = later = token
        for step in self.token_steps:
            first, later = step(first, True), step(later, False)
        if self.core == "text":
            return first, later
        convert = _level_bytes if self.core == "bytes" else fallback_byte
        return convert(first), convert(later)

    def decode_pair(self, first: Any, later: Any) -> str:
        """The text of a token that comes twice, by the reference's rules."""
        if self.core == "bytes":
            text = (first + later).decode("utf-8", "replace")
        else:
            run = ByteRun(hold=True)
            text = run.join([first, later]) + run.end()
        return end_stages([make() for make in self.text_stages], text)


def read_plan(backend: Any) -> DecoderPlan | None:
    """The plan of a tokenizer, or None if some part of its decoder is not known here."""
    if backend.decoder is None:
        plan = DecoderPlan()
        plan.token_steps.append(lambda token, first: token if first else " " + token)
        return plan
    try:
        return _build_plan(_flatten_steps(json.loads(backend.decoder.__getstate__())))
    except Exception:  # one written in Python, or described in a way that is not known here
        return None


def _build_plan(steps: list[dict[str, Any]]) -> DecoderPlan | None:
    builder = _PlanBuilder()
    is_known = all(builder.add(step, steps[n + 1 :]) for n, step in enumerate(steps))
    return builder.plan if is_known else None


# Each method returns False where its step is not known in this place: after a step that has joined
# the tokens, or before one that would see them joined.
class _PlanBuilder:
    def __init__(self) -> None:
        self.plan = DecoderPlan()
        self._joined = self._positional = False

    def add(self, step: dict[str, Any], later: list[dict[str, Any]]) -> bool:
        """Add a step; *later* are those after it. Returns whether it is known."""
        match step["type"]:
            case "Fuse":
                self._joined = True
                return True
            case "Replace":
                return self._replace(step)
            case "Strip":
                return self._strip(step)
            case "Metaspace" | "WordPiece":
                return self._add_positional(step)
            case "ByteLevel":
                return self._byte_level()
            case "ByteFallback":
                return self._byte_fallback(later)
        return False

    def _replace(self, step: dict[str, Any]) -> bool:
        old, new = step["pattern"].get("String"), step["content"]
        if not old:  # a regular expression
            return False
        if self._joined:
            self.plan.text_stages.append(partial(Replacing, {old: new}))
        else:
            self.plan.token_steps.append(partial(_replace, old, new))
        return True

    def _strip(self, step: dict[str, Any]) -> bool:
        content, count = step["content"], step["start"]
        if step["stop"]:
            return False
        if self._joined:
            self.plan.text_stages.append(partial(StrippingStart, content, count))
        else:
            self.plan.token_steps.append(partial(_strip, content, count))
        return True

    def _add_positional(self, step: dict[str, Any]) -> bool:
        """Add a step that treats the first token in another way than the others."""
        if self._joined:
            return False
        self._positional = True
        if step["type"] == "Metaspace":
            drops_first = step["prepend_scheme"] != "never"
            self.plan.token_steps.append(partial(_metaspace, step["replacement"], drops_first))
        else:
            self.plan.token_steps.append(partial(_word_piece, step["prefix"], step["cleanup"]))
        return True

    def _byte_level(self) -> bool:
        if self._joined or self._positional:
            return False
        self.plan.core, self._joined = "bytes", True
        return True

    def _byte_fallback(self, later: list[dict[str, Any]]) -> bool:
        # Without Fuse the next step would see the run's text as one token, or one per byte.
        if self._joined or (later and later[0]["type"] != "Fuse"):
            return False
        self.plan.core, self._joined = "runs", True
        return True


def _flatten_steps(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for outer in step["decoders"] for inner in _flatten_steps(outer)]


def _replace(old: str, new: str, token: str, first: bool) -> str:
    return token.replace(old, new)


def _strip(content: str, count: int, token: str, first: bool) -> str:
    return token[min(count, len(token) - len(token.lstrip(content))) :]


def _metaspace(replacement: str, drops_first: bool, token: str, first: bool) -> str:
    return token.replace(replacement, "" if first and drops_first else " ")


def _word_piece(prefix: str, cleanup: bool, token: str, first: bool) -> str:
    if not first:
        token = token[len(prefix) :] if token.startswith(prefix) else " " + token
    if cleanup:  # tokenizers' list, on single tokens; transformers' comes after the joining
        for old, new in (MARKS | QUOTES | {" do not": " don't"} | ENDINGS).items():
            token = token.replace(old, new)
    return token


def _byte_map() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_map()
_BYTE_TOKEN = re.compile(r"<0x(\+[0-9a-fA-F]|[0-9a-fA-F]{2})>")  # the + is Rust's number parser's


def _level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:  # one character that stands for no byte: an added token, taken as it is
        return token.encode("utf-8")


def fallback_byte(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token


# What a tokenizer's ids add to a text, learnt one by one as they come, shared by its decoders.
# Invariant: every entry of the table was compared with the reference; ids outside the vocabulary
# have none. Threads can race to write an entry: they write the same one. Nothing in `_tables`
# refers to a tokenizer, so it keeps none alive.
_tables: weakref.WeakKeyDictionary[Any, dict[bool, tuple[Any, dict[int, Any]]]]
_tables = weakref.WeakKeyDictionary()
_tables_lock = threading.Lock()


class Vocabulary:
    def __init__(self, tokenizer: Any, backend: Any, skip: bool, plan: DecoderPlan) -> None:
        self._backend, self._skip, self._plan = backend, skip, plan
        self._has_doubt = False
        # A tokenizer that was changed since starts a new table.
        state = (
            backend.decoder and backend.decoder.__getstate__(),
            backend.get_vocab_size(),
            getattr(tokenizer, "all_special_tokens", None),
        )
        with _tables_lock:
            try:
                tables = _tables.setdefault(tokenizer, {})
            except TypeError:  # no weak references to it, or no hash: nothing is shared
                tables = {}
            if skip not in tables or tables[skip][0] != state:
                tables[skip] = (state, {})
            self.table = tables[skip][1]

    def entry(self, token_id: int) -> Any:
        """What an id adds: bytes for a byte-level decoder, else (as first, later) or None."""
        if token_id in self.table:
            return self.table[token_id]
        nothing = b"" if self._plan.core == "bytes" else None
        token = self._backend.id_to_token(token_id)
        if token is None:
            return nothing
        twice = [token_id, token_id]
        expected = self._backend.decode(twice, skip_special_tokens=self._skip)
        if self._skip and not expected and self._backend.decode(twice, skip_special_tokens=False):
            self.table[token_id] = nothing
            return nothing
        first, later = self._plan.entry(token)
        if self._plan.decode_pair(first, later) == expected:
            entry = later if self._plan.core == "bytes" else (first, later)
            return self.table.setdefault(token_id, entry)
        if not self._has_doubt:
            logger.warning("Token %r decodes in an unknown way: the text can be inexact", token)
        self._has_doubt = True
        text = self._backend.decode([token_id], skip_special_tokens=self._skip)
        return text.encode() if self._plan.core == "bytes" else (text, text)

    def take_doubt(self) -> bool:
        """Return whether a token of this text decoded in an unknown way, and reset that."""
        has_doubt, self._has_doubt = self._has_doubt, False
        return has_doubt


class Utf8Decoder:
    """The codec's incremental decoder, except that it does not hold half of a surrogate.

    CPython's waits for the third byte of one, though it can never become a character.
    """

    def __init__(self, errors: str) -> None:
        self._errors = errors
        self._held = b""

    def decode(self, data: bytes, final: bool = False) -> str:
        data = self._held + data
        text, consumed = codecs.utf_8_decode(data, self._errors, final)
        self._held = data[consumed:]
        if self._held and b"\xed\xa0" <= self._held < b"\xee":
            text += codecs.utf_8_decode(self._held, self._errors, True)[0]
            self._held = b""
        return text


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


# A run of byte tokens. The reference decodes it as a whole, and if it is not valid UTF-8, makes
# each of its bytes U+FFFD. The codec turns each byte that belongs to no character into a surrogate.
# Invariant: `feed` and `end` joined are the run's text: by default the characters as they are
# completed, and U+FFFD for each byte outside them; if `hold`, the reference's.
class ByteRun:
    def __init__(self, hold: bool) -> None:
        self._hold = hold
        self._codec = Utf8Decoder("surrogateescape")
        self._was_mixed = False
        self._start()

    def _start(self) -> None:
        self.length = 0
        self._held: list[str] = []
        self._whole = self._broken = False

    def feed(self, byte: bytes) -> str:
        self.length += 1
        return self._take(self._codec.decode(byte))

    def join(self, pieces: list[str | bytes]) -> str:
        """The text of pieces, of which some are bytes of a run."""
        text = ""
        for piece in pieces:
            if isinstance(piece, bytes):
                text += self.feed(piece)
            else:
                text += self.end() + piece if self.length else piece
        return text

    def _take(self, text: str) -> str:
        shown, escaped = _ESCAPED_BYTE.subn("\ufffd", text)
        if not self._hold:
            self._broken |= escaped > 0
            self._whole |= escaped < len(text)
            return shown
        if self._broken:
            return "\ufffd"
        if escaped:  # now the run is invalid, whatever follows
            self._broken = True
            return "\ufffd" * self.length
        self._held.append(text)
        return ""

    def end(self) -> str:
        """End the run."""
        rest = self._codec.decode(b"", True)
        if self._hold and not self._broken:
            text = "\ufffd" * self.length if rest else "".join(self._held)
        else:
            text = "" if self._hold else self._take(rest)
        self._was_mixed |= self._whole and self._broken
        self._start()
        return text

    def take_mixed(self) -> bool:
        """Return whether the reference shows a run of this text otherwise, and reset that."""
        was_mixed, self._was_mixed = self._was_mixed, False
        return was_mixed
