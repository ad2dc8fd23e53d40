"""Token ids to text, piece by piece. Pure: no threads, no async, no I/O, no imports of ours.

`text_decoder` looks at how a tokenizer decodes and picks one of three ways:

- `_ByteLevelDecoder`: every token is some bytes of one UTF-8 text. Exact.
- `_PieceDecoder`: every token is a piece of text, or one byte of a run of byte tokens. Exact.
- `_WindowDecoder`: nothing is known of the tokenizer but its `decode`. Checked at the end.

The two exact ways read the Rust decoder's own description (Replace, ByteFallback, Fuse, ...) and
redo it one token at a time. They cover what transformers' own `decode` does with it; a class that
brings a `decode` of its own, and every Python-level tokenizer, goes through the window.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import index
from typing import Any, Protocol

from .decoder_plan import ByteRun, Utf8Decoder, Vocabulary, read_plan
from .text_stages import CleanUp, TextStage, end_stages

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
    stages: list[TextStage] = []
    backend = None
    kwargs = dict(decode_kwargs)
    owner = _defining_module(tokenizer, "_decode")
    if _defining_module(tokenizer, "decode") == _BASE and owner in _INNER_DECODES:
        if (
            owner == _RUST_BACKED
            and _defining_module(tokenizer, "convert_tokens_to_string") == owner
        ):
            backend = getattr(tokenizer, "backend_tokenizer", None)
        if not _cleans_up(tokenizer, kwargs):
            kwargs["clean_up_tokenization_spaces"] = False
        elif _defining_module(tokenizer, "clean_up_tokenization") == _BASE:
            kwargs["clean_up_tokenization_spaces"] = False
            stages.append(CleanUp())
        else:
            backend = None
    elif type(tokenizer).__module__ == "tokenizers" and kwargs.keys() <= {"skip_special_tokens"}:
        backend = tokenizer
        kwargs.setdefault("skip_special_tokens", True)  # its own default
    plan = None if backend is None else read_plan(backend)
    if plan is None:
        return _WindowDecoder(tokenizer, kwargs, stages)
    vocabulary = Vocabulary(tokenizer, backend, bool(kwargs.get("skip_special_tokens")), plan)
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


def _defining_module(tokenizer: object, method: str) -> str | None:
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


# Invariant: the text given so far is that of all bytes so far, except at most three, which the
# codec holds because they begin a character.
class _ByteLevelDecoder(TextDecoder):
    def __init__(self, vocabulary: Vocabulary, stages: list[TextStage]) -> None:
        self._vocabulary, self._stages = vocabulary, stages
        self._table = vocabulary.table
        self._codec = Utf8Decoder("replace")

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
        return end_stages(self._stages, self._codec.decode(b"", True))


# Invariant: the text given so far is the pieces of all tokens so far, except what the current run
# of byte tokens holds and, after the joining, the stages.
class _PieceDecoder(TextDecoder):
    def __init__(self, vocabulary: Vocabulary, stages: list[TextStage], hold: bool) -> None:
        self._vocabulary, self._stages = vocabulary, stages
        self._table = vocabulary.table
        self._run = ByteRun(hold)
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
        text = end_stages(self._stages, self._run.end())
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

    def __init__(self, tokenizer: Any, kwargs: dict[str, Any], stages: list[TextStage]) -> None:
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
        return end_stages(self._stages, rest)


def _common_prefix(one: str, other: str) -> int:
    if one.startswith(other) or other.startswith(one):
        return min(len(one), len(other))
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
