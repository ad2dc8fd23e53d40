"""Token ids to text, piece by piece. Pure: no threads, no async, no I/O, no imports of ours.

`text_decoder` looks at how a tokenizer decodes and picks one of three ways:

- `_ByteLevelDecoder`: every token is some bytes of one UTF-8 text. Exact.
- `_PieceDecoder`: every token is a piece of text, or one byte of a run of byte tokens. Exact.
- `_WindowDecoder`: nothing is known of the tokenizer but its `decode`. Checked at the end.

The two exact ways read the Rust decoder's own description (Replace, ByteFallback, Fuse, ...) and
redo it one token at a time. They cover what transformers' own `decode` does with it; a class that
brings a `decode` of its own, and every Python-level tokenizer, goes through the window.
"""

import codecs
import json
import logging
import re
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any, Literal, Protocol

logger = logging.getLogger("anystreamer")


class SupportsDecode(Protocol):
    """What a tokenizer must have: `decode(token_ids, **kwargs) -> str`."""

    # So loosely typed, transformers' and tokenizers' both match: these take and return more.
    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The text of the ids of one sequence, a list of ints."""


class TextDecoder(ABC):
    """Turns the ids of one sequence into text as they come; made by `text_decoder`.

    Not to be shared between threads; any number of decoders may share a tokenizer.
    """

    exact: bool | None = None
    """Whether the pieces joined are what `tokenizer.decode` makes of all the ids.

    None until `flush`. False is rare, and never silent: see `text_decoder`.
    """

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Take the next ids, and return the text that they make final ("" while held back)."""

    @abstractmethod
    def flush(self) -> str:
        """End the text and return what was held back. The next `decode` starts a new text."""


def text_decoder(
    tokenizer: SupportsDecode, *, hold_byte_runs: bool = False, **decode_kwargs: Any
) -> TextDecoder:
    """Make an incremental decoder: its pieces joined are `tokenizer.decode(ids, **decode_kwargs)`.

    A piece never ends inside a character, and text that can no longer change is not held back.

    One difference is on purpose. Tokenizers with byte fallback decode a run of byte tokens as a
    whole: one byte that is invalid, or cut off by `max_new_tokens`, turns all the run's characters
    into U+FFFD. Nobody can know that before the run has ended, so by default each character is
    shown once its bytes are there, and only bytes that belong to none become U+FFFD (one each, as
    in the reference). `hold_byte_runs=True` waits for the run's end instead, and is exact.

    A tokenizer that is known by its `decode` alone (Python-level, or with a `decode` of its own) is
    decoded through a window of its latest tokens, and the whole is compared at the end. There, what
    ends in U+FFFD and byte runs are held back until the text goes on, whatever `hold_byte_runs`.

    The decoder's `exact` says after `flush` whether the text was the reference's. It is False after
    a run as above, and where a `decode` changed text after it was shown; the latter is also logged,
    as a warning of the logger "anystreamer".

    Args:
        tokenizer: whose decoder it follows, now and not later: one that is changed needs a new one.
        hold_byte_runs: show a run of byte tokens when it has ended, and not before.
        decode_kwargs: as `decode` takes them, such as `skip_special_tokens=True`.

    Raises:
        TypeError: *tokenizer* has no `decode`.
    """
    if not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"text_decoder() needs an object with decode(), not {tokenizer!r:.80}")
    stages: list[_Stage] = []
    backend = None
    kwargs = dict(decode_kwargs)
    owner = _owner(tokenizer, "_decode")
    if _owner(tokenizer, "decode") == _BASE and owner in _INNER_DECODES:
        if owner == _RUST_BACKED and _owner(tokenizer, "convert_tokens_to_string") == owner:
            backend = getattr(tokenizer, "backend_tokenizer", None)
        if not _cleans_up(tokenizer, kwargs):
            kwargs["clean_up_tokenization_spaces"] = False
        elif _owner(tokenizer, "clean_up_tokenization") == _BASE:
            kwargs["clean_up_tokenization_spaces"] = False
            stages.append(_CleanUp())
        else:
            backend = None
    elif type(tokenizer).__module__ == "tokenizers" and kwargs.keys() <= {"skip_special_tokens"}:
        backend = tokenizer
        kwargs.setdefault("skip_special_tokens", True)  # its own default
    plan = None if backend is None else _read_plan(backend)
    if plan is None:
        return _WindowDecoder(tokenizer, kwargs, stages)
    vocabulary = _Vocabulary(tokenizer, backend, bool(kwargs.get("skip_special_tokens")), plan)
    stages = [*(make() for make in plan.text_stages), *stages]
    if plan.core == "bytes":
        return _ByteLevelDecoder(vocabulary, stages)
    return _PieceDecoder(vocabulary, stages, hold_byte_runs)


# The modules whose `decode` and `_decode` were read: what they do beyond the Rust decoder is to
# clean up, and nothing else. A method from anywhere else may do anything.
_BASE = "transformers.tokenization_utils_base"
_RUST_BACKED = "transformers.tokenization_utils_tokenizers"
_INNER_DECODES = {
    _RUST_BACKED,
    "transformers.tokenization_python",
    "transformers.tokenization_utils_sentencepiece",
}


def _owner(tokenizer: object, method: str) -> str | None:
    """The module of the class that a tokenizer has a method from; None if it was patched in."""
    if method in getattr(tokenizer, "__dict__", {}):
        return None
    owners = (cls for cls in type(tokenizer).__mro__ if method in vars(cls))
    return next((cls.__module__ for cls in owners), None)


def _cleans_up(tokenizer: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `decode` goes through `clean_up_tokenization`, decided as transformers does."""
    asked = kwargs.get("clean_up_tokenization_spaces")
    if asked is None:
        asked = getattr(tokenizer, "clean_up_tokenization_spaces", False)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if type(model).__name__ == "BPE":  # where this attribute is missing, BPE was no exception yet
        name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        return bool(asked and getattr(tokenizer, name, True))
    return bool(asked)


def _checked(token_ids: Sequence[int]) -> list[int]:
    try:
        return [index(token_id) for token_id in token_ids]
    except TypeError:
        raise TypeError(
            "decode() takes the token ids of one sequence, a flat list of ints,"
            f" not {token_ids!r:.80}"
        ) from None


# What may still be done to the joined text, each stage on what the one before it lets through.
# Invariant of a stage: `feed` and `end` joined are the whole text transformed, and what is held
# between two calls is the shortest suffix that the transformation may still touch.
class _Stage(Protocol):
    def feed(self, text: str) -> str: ...

    def end(self) -> str: ...


def _end(stages: list[_Stage], text: str) -> str:
    for stage in stages:
        text = stage.feed(text) + stage.end()
    return text


# Holds: the text's end where it begins like one of the strings to replace.
class _Replacing:
    def __init__(self, new: dict[str, str]) -> None:
        self._new = new
        self._find = re.compile("|".join(map(re.escape, new))).finditer
        beginnings = {old[:n] for old in new for n in range(1, len(old))}
        self._beginnings = tuple(sorted(beginnings, key=len, reverse=True))
        self.held = ""

    def feed(self, text: str) -> str:
        text = self.held + text
        done, at = "", 0
        for match in self._find(text):
            done += text[at : match.start()] + self._new[match[0]]
            at = match.end()
        tail = text[at:]
        self.held = ""
        if tail.endswith(self._beginnings):
            self.held = next(start for start in self._beginnings if tail.endswith(start))
            tail = tail[: -len(self.held)]
        return done + tail

    def end(self) -> str:
        held, self.held = self.held, ""
        return held


# Holds nothing: whether a leading character goes is known when it comes.
class _StrippingStart:
    def __init__(self, content: str, count: int) -> None:
        self._content, self._count = content, count
        self._left = count

    def feed(self, text: str) -> str:
        if not (self._left and text):
            return text
        rest = text.lstrip(self._content)
        cut = min(self._left, len(text) - len(rest))
        self._left = self._left - cut if cut == len(text) else 0
        return text[cut:]

    def end(self) -> str:
        self._left = self._count
        return ""


# transformers' clean_up_tokenization: " ." becomes "." and so on, one replacement after the other.
# Those in one line here can be done together: none makes or breaks a match of another one. Each
# begins with a space: a text without one of certain characters after a space passes.
_MARKS = {" " + mark: mark for mark in (".", "?", "!", ",")}
_QUOTES = {" ' ": "'"}
_ENDINGS = {" " + ending: ending for ending in ("n't", "'m", "'s", "'ve", "'re")}
_NOTHING_TO_CLEAN = re.compile(r"(?:[^ ]| [^ .?!,n'])*").fullmatch


class _CleanUp:
    def __init__(self) -> None:
        self._stages = (
            _Replacing(_MARKS),
            _Replacing(_QUOTES),
            _Replacing(_ENDINGS),
        )

    def feed(self, text: str) -> str:
        marks, quotes, endings = self._stages
        if not (marks.held or quotes.held or endings.held) and _NOTHING_TO_CLEAN(text):
            return text
        text = quotes.feed(marks.feed(text))
        # What a stage holds narrows down what the next one can get: a space or a mark,
        if marks.held and quotes.held == " ":
            text += quotes.end()
        text = endings.feed(text)
        # or a space, a mark or a quote.
        if (marks.held or quotes.held) and endings.held not in (" ", " n"):
            text += endings.end()
        return text

    def end(self) -> str:
        return _end(list(self._stages), "")


# A Rust decoder's steps, sorted: on single tokens, how these are joined, on the joined text.
# Invariant: the steps applied in this order are the decoder.
class _Plan:
    def __init__(self) -> None:
        self.token_steps: list[Callable[[str, bool], str]] = []
        self.core: Literal["text", "bytes", "runs"] = "text"
        self.text_stages: list[Callable[[], _Stage]] = []

    def entry(self, token: str) -> tuple[Any, Any]:
        """What a token adds as the first of a text, and later: str, or bytes where it is bytes."""
        first = later = token
        for step in self.token_steps:
            first, later = step(first, True), step(later, False)
        if self.core == "text":
            return first, later
        convert = _level_bytes if self.core == "bytes" else _fallback_byte
        return convert(first), convert(later)

    def twice(self, first: Any, later: Any) -> str:
        """The text of a token that comes twice, by the reference's rules."""
        if self.core == "bytes":
            text = (first + later).decode("utf-8", "replace")
        else:
            run = _ByteRun(hold=True)
            text = run.join([first, later]) + run.end()
        return _end([make() for make in self.text_stages], text)


def _read_plan(backend: Any) -> _Plan | None:
    """The plan of a tokenizer, or None if some part of its decoder is not known here."""
    if backend.decoder is None:
        plan = _Plan()
        plan.token_steps.append(lambda token, first: token if first else " " + token)
        return plan
    try:
        return _sort(_flat(json.loads(backend.decoder.__getstate__())))
    except Exception:  # one written in Python, or described in a way that is not known here
        return None


def _sort(steps: list[dict[str, Any]]) -> _Plan | None:
    plan = _Plan()
    joined = positional = False
    for position, step in enumerate(steps):
        kind = step["type"]
        if kind == "Fuse":
            joined = True
        elif kind == "Replace" and step["pattern"].get("String"):
            old, new = step["pattern"]["String"], step["content"]
            if joined:
                plan.text_stages.append(partial(_Replacing, {old: new}))
            else:
                plan.token_steps.append(partial(_replace, old, new))
        elif kind == "Strip" and not step["stop"]:
            if joined:
                plan.text_stages.append(partial(_StrippingStart, step["content"], step["start"]))
            else:
                plan.token_steps.append(partial(_strip, step["content"], step["start"]))
        elif kind == "Metaspace" and not joined:
            positional = True
            drops_first = step["prepend_scheme"] != "never"
            plan.token_steps.append(partial(_metaspace, step["replacement"], drops_first))
        elif kind == "WordPiece" and not joined:
            positional = True
            plan.token_steps.append(partial(_word_piece, step["prefix"], step["cleanup"]))
        elif kind == "ByteLevel" and not joined and not positional:
            plan.core, joined = "bytes", True
        elif kind == "ByteFallback" and not joined:
            # Without Fuse the next step would see the run's text as one token, or one per byte.
            if steps[position + 1 :] and steps[position + 1]["type"] != "Fuse":
                return None
            plan.core, joined = "runs", True
        else:
            return None
    return plan


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for outer in step["decoders"] for inner in _flat(outer)]


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
        for old, new in (_MARKS | _QUOTES | {" do not": " don't"} | _ENDINGS).items():
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


def _fallback_byte(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token


# What a tokenizer's ids add to a text, learnt one by one as they come, shared by its decoders.
# Invariant: every entry of the table was compared with the reference; ids outside the vocabulary
# have none. Threads may race to write an entry: they write the same one. Nothing in `_tables`
# refers to a tokenizer, so it keeps none alive.
_tables: weakref.WeakKeyDictionary[Any, dict[bool, tuple[Any, dict[int, Any]]]]
_tables = weakref.WeakKeyDictionary()
_tables_lock = threading.Lock()


class _Vocabulary:
    def __init__(self, tokenizer: Any, backend: Any, skip: bool, plan: _Plan) -> None:
        self._backend, self._skip, self._plan = backend, skip, plan
        self.doubted = False
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
        if self._plan.twice(first, later) == expected:
            entry = later if self._plan.core == "bytes" else (first, later)
            return self.table.setdefault(token_id, entry)
        if not self.doubted:
            logger.warning("Token %r decodes in an unknown way: the text may be inexact", token)
        self.doubted = True
        text = self._backend.decode([token_id], skip_special_tokens=self._skip)
        return text.encode() if self._plan.core == "bytes" else (text, text)


class _Utf8:
    """The codec's incremental decoder, but for one thing: it holds no half of a surrogate.

    CPython's waits for the third byte of one, which can never become a character.
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


# Invariant: the text given so far is that of all bytes so far, except at most three, which the
# codec holds because they begin a character.
class _ByteLevelDecoder(TextDecoder):
    def __init__(self, vocabulary: _Vocabulary, stages: list[_Stage]) -> None:
        self._vocabulary, self._stages = vocabulary, stages
        self._table = vocabulary.table
        self._codec = _Utf8("replace")

    def decode(self, token_ids: Sequence[int]) -> str:
        table = self._table
        try:
            data = b"".join([table[token_id] for token_id in token_ids])
        except (KeyError, TypeError):  # not learnt yet, or no flat list of ints
            data = b"".join([self._vocabulary.entry(i) for i in _checked(token_ids)])
        text = self._codec.decode(data)
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def flush(self) -> str:
        self.exact = not self._vocabulary.doubted
        self._vocabulary.doubted = False
        return _end(self._stages, self._codec.decode(b"", True))


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


# A run of byte tokens. The reference decodes it as a whole, and if it is not valid UTF-8, makes
# each of its bytes U+FFFD. The codec turns each byte that belongs to no character into a surrogate.
# Invariant: `feed` and `end` joined are the run's text: by default the characters as they are
# completed, and U+FFFD for each byte outside them; if `hold`, the reference's.
class _ByteRun:
    def __init__(self, hold: bool) -> None:
        self._hold = hold
        self._codec = _Utf8("surrogateescape")
        self.mixed = False
        self._start()

    def _start(self) -> None:
        self.length = 0
        self._held: list[str] = []
        self._whole = self._broken = False

    def feed(self, byte: bytes) -> str:
        self.length += 1
        return self._take(self._codec.decode(byte))

    def join(self, pieces: list[str | bytes]) -> str:
        """The text of pieces some of which may be of a run."""
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
        if escaped:  # now nothing can save the run
            self._broken = True
            return "\ufffd" * self.length
        self._held.append(text)
        return ""

    def end(self) -> str:
        """End the run, and note in `mixed` if this is not what the reference makes of it."""
        rest = self._codec.decode(b"", True)
        if self._hold and not self._broken:
            text = "\ufffd" * self.length if rest else "".join(self._held)
        else:
            text = "" if self._hold else self._take(rest)
        self.mixed |= self._whole and self._broken
        self._start()
        return text


# Invariant: the text given so far is the pieces of all tokens so far, except what the current run
# of byte tokens holds and, after the joining, the stages.
class _PieceDecoder(TextDecoder):
    def __init__(self, vocabulary: _Vocabulary, stages: list[_Stage], hold: bool) -> None:
        self._vocabulary, self._stages = vocabulary, stages
        self._table = vocabulary.table
        self._run = _ByteRun(hold)
        self._later = False

    def decode(self, token_ids: Sequence[int]) -> str:
        table = self._table
        try:
            entries = [table[token_id] for token_id in token_ids]
        except (KeyError, TypeError):  # not learnt yet, or no flat list of ints
            entries = [self._vocabulary.entry(i) for i in _checked(token_ids)]
        pieces = []
        for entry in entries:
            if entry is not None:
                pieces.append(entry[self._later])
                self._later = True
        text = self._run.join(pieces)
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def flush(self) -> str:
        text = _end(self._stages, self._run.end())
        self.exact = not (self._run.mixed or self._vocabulary.doubted)
        self._later = self._run.mixed = self._vocabulary.doubted = False
        return text


# Text that may change at its end: the beginning of a character, and of what a clean-up removes.
_INCOMPLETE = re.compile(r"\ufffd*\Z")
_UNCLEAN = re.compile(r"(?: (?:n'?|'[vr ]?)?)?\ufffd*\Z")


# Decodes the latest tokens anew with each one that comes, and gives what they have added.
# Invariant: the window's text begins with `_given`, which has been given; what is given next is
# what follows it there. Text counts as final if it stays the same when the last token is repeated,
# up to a trailing U+FFFD, which may be the beginning of a character.
class _WindowDecoder(TextDecoder):
    CONTEXT = 16  # tokens that are decoded along with new ones; decoders look back two or three
    SLIDE = 32  # drop older ones from here on, if that changes nothing
    LIMIT = 256  # drop them whatever it changes, and give all text: nothing may take for ever

    def __init__(self, tokenizer: Any, kwargs: dict[str, Any], stages: list[_Stage]) -> None:
        self._tokenizer, self._kwargs, self._stages = tokenizer, kwargs, stages
        self._unsettled = _UNCLEAN if _cleans_up(tokenizer, kwargs) else _INCOMPLETE
        self._skipped: dict[int, bool] = {}
        self._start()

    def _start(self) -> None:
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._window: list[int] = []
        self._text = self._given = ""

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, **self._kwargs)
        if not isinstance(text, str):
            raise TypeError(f"the tokenizer's decode() must return a str, not {text!r:.80}")
        return text

    def decode(self, token_ids: Sequence[int]) -> str:
        new = _checked(token_ids)
        given = len(self._pieces)
        for start in range(0, len(new), self.CONTEXT):
            self._advance(new[start : start + self.CONTEXT])
        text = "".join(self._pieces[given:])
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def _advance(self, new: list[int]) -> None:
        seen = [token_id for token_id in new if not self._is_skipped(token_id)]
        if not seen:
            self._ids += new
            return
        window = [*self._window, *seen]
        text = self._decode(window)
        repeated = self._decode([*window, window[-1]])
        self._ids += new
        self._window, self._text = window, text
        self._give(text[: _common_prefix(text, repeated)])
        if len(window) > self.SLIDE:
            self._slide(repeated)

    def _give(self, final: str) -> None:
        final = self._unsettled.sub("", final, count=1)
        if len(final) > len(self._given) and final.startswith(self._given):
            self._pieces.append(final[len(self._given) :])
            self._given = final

    def _is_skipped(self, token_id: int) -> bool:
        """Whether it is a special token, skipped wherever it stands: the window needs none."""
        if not self._kwargs.get("skip_special_tokens"):
            return False
        if token_id not in self._skipped:
            kept = self._kwargs | {"skip_special_tokens": False}
            self._skipped[token_id] = not self._decode([token_id]) and bool(
                self._tokenizer.decode([token_id], **kept)
            )
        return self._skipped[token_id]

    def _slide(self, repeated: str) -> None:
        text, forced = self._text, len(self._window) > self.LIMIT
        if not text.startswith(self._given) and not forced:
            return
        window = self._window[-self.CONTEXT :]
        shorter = self._decode(window)
        held = len(text) - len(self._given)
        same = _common_prefix(text[::-1], shorter[::-1])
        known = shorter[len(shorter) - same : len(shorter) - held]
        longer = self._decode([*window, window[-1]])
        if same > held and known.strip() and repeated[len(text) :] == longer[len(shorter) :]:
            self._window, self._text = window, shorter
            self._given = shorter[: len(shorter) - held]
        elif forced:
            if text.startswith(self._given):
                self._pieces.append(text[len(self._given) :])
            self._window, self._text, self._given = window, shorter, shorter

    def flush(self) -> str:
        reference = self._decode(self._ids) if self._ids else ""
        given = "".join(self._pieces)
        self.exact = reference.startswith(given)
        if self.exact:
            rest = reference[len(given) :]
        else:
            at = _common_prefix(reference, given)
            logger.warning(
                "%s.decode() of all tokens differs from the streamed text from character %d on",
                type(self._tokenizer).__name__,
                at,
            )
            rest = self._text.removeprefix(self._given)
        self._start()
        return _end(self._stages, rest)


def _common_prefix(one: str, other: str) -> int:
    if one.startswith(other) or other.startswith(one):
        return min(len(one), len(other))
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
