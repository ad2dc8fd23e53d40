"""A decoder for tokenizers of which only `decode` is known: it decodes the latest tokens again."""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from .._reporting import SafeLogger
from .base import TextDecoder, common_prefix, special_ids, validated_ids
from .text_stages import TextStage, end_stages

logger = SafeLogger()


# Text that can change at its end: the beginning of a character, and of what a clean-up removes.
_INCOMPLETE = re.compile(r"\ufffd*\Z")
_UNCLEAN = re.compile(r"(?: (?:n'?|'[vr ]?)?)?\ufffd*\Z")


# Decodes the latest tokens again with each one that comes, and returns what they have added.
# Invariant: `_shown` is what was returned of the window's text, and what follows it there is
# returned next. Text counts as final if it stays the same when the last token is repeated, up to a
# trailing U+FFFD, which can be the beginning of a character, or a run of bytes with one. A token
# that adds nothing when repeated (an unknown id, for example) gives no information: then an earlier
# one is repeated instead.
#
# A `decode` can break this: a token comes, and text differs that was shown before. It cannot be
# taken back. So the window's new text counts as shown, and what is returned is what the token adds
# to a text by itself: nothing is lost, and nothing is shown twice.
class WindowDecoder(TextDecoder):
    CONTEXT = 16  # tokens that are decoded along with new ones; decoders look back two or three
    SLIDE = 32  # drop older ones from here on, if that changes nothing
    PROBES = 4  # tokens that are tried: more than one or two in a row hardly ever add nothing
    LIMIT = 256  # drop them whatever it changes, and show all text: no token can take forever

    def __init__(
        self, tokenizer: Any, kwargs: dict[str, Any], stages: list[TextStage], *, cleans_up: bool
    ) -> None:
        self._tokenizer, self._kwargs, self._stages = tokenizer, kwargs, stages
        self._unsettled = _UNCLEAN if cleans_up else _INCOMPLETE
        self._skipped: dict[int, bool] = {}
        self._start()

    def _start(self) -> None:
        self._ids: list[int] = []
        self._texts: list[str] = []  # all that was returned
        self._window: list[int] = []
        self._text = self._shown = ""

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, **self._kwargs)
        if not isinstance(text, str):
            raise TypeError(f"the tokenizer's decode() must return a str, got {text!r:.80}")
        return text

    def decode(self, token_ids: Sequence[int]) -> str:
        new = validated_ids(token_ids)
        returned = len(self._texts)
        for start in range(0, len(new), self.CONTEXT):
            self._advance(new[start : start + self.CONTEXT])
        text = "".join(self._texts[returned:])
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def _advance(self, new: list[int]) -> None:
        visible = [token_id for token_id in new if not self._is_skipped(token_id)]
        if not visible:
            self._ids += new
            return
        window = [*self._window, *visible]
        text = self._decode(window)
        changes_shown = self._changes_shown(text)
        if changes_shown and len(visible) > 1:  # find the token that does it
            for token_id in new:
                self._advance([token_id])
            return
        probe, repeated = self._repeat_token(window, text)
        final = self._settled(text[: common_prefix(text, repeated)])
        addition = self._addition(visible[0]) if changes_shown else None
        self._ids += new
        self._window, self._text = window, text
        self._show(final, addition)
        if len(window) > self.SLIDE:
            self._slide(probe, repeated)

    def _show(self, final: str, addition: str | None) -> None:
        """Return text up to the end of *final*; if older text changed, return the *addition*."""
        if addition is not None:
            old = len(self._text) - len(addition)
            self._shown = self._text[: max(old, len(final))]
            self._texts.append(addition[: len(self._shown) - old])
        elif len(final) > len(self._shown):
            self._texts.append(final[len(self._shown) :])
            self._shown = final

    def _settled(self, text: str) -> str:
        return self._unsettled.sub("", text, count=1)

    def _changes_shown(self, text: str) -> bool:
        """Whether a new text of the window differs from what was shown of it."""
        settled = self._settled(text)
        return settled[: len(self._shown)] != self._shown[: len(settled)]

    def _addition(self, token_id: int) -> str:
        """What to return for a token that changes older text: what was held, and its own text."""
        once, twice = self._decode([token_id]), self._decode([token_id, token_id])
        held = self._settled(self._text[len(self._shown) :])
        return held + (twice[len(once) :] if twice.startswith(once) else once)

    def _is_skipped(self, token_id: int) -> bool:
        """Whether a token is left out wherever it stands, so that the window does not need it.

        Not every token that decodes to nothing by itself: a lone word boundary can be a space.
        """
        if token_id not in self._special_ids:
            return False
        if token_id not in self._skipped:
            self._skipped[token_id] = not self._decode([token_id])
        return self._skipped[token_id]

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """The special tokens, if they are to be skipped."""
        is_skipping = self._kwargs.get("skip_special_tokens")
        return special_ids(self._tokenizer) if is_skipping else frozenset()

    def _repeat_token(self, window: list[int], text: str) -> tuple[int, str]:
        """The last token that adds to the window's text when it comes again, and the text then."""
        for token_id in islice(dict.fromkeys(reversed(window)), self.PROBES):
            repeated = self._decode([*window, token_id])
            if repeated != text:
                return token_id, repeated
        return window[-1], text

    def _slide(self, probe: int, repeated: str) -> None:
        text, is_forced = self._text, len(self._window) > self.LIMIT
        if not text.startswith(self._shown) and not is_forced:
            return  # a run of bytes with half a character hides what was shown
        window = self._window[-self.CONTEXT :]
        shorter = self._decode(window)
        held = max(0, len(text) - len(self._shown))
        same = common_prefix(text[::-1], shorter[::-1])
        known = shorter[len(shorter) - same : len(shorter) - held]
        longer = self._decode([*window, probe])
        if same > held and known.strip() and repeated[len(text) :] == longer[len(shorter) :]:
            self._window, self._text = window, shorter
            self._shown = shorter[: len(shorter) - held]
        elif is_forced:
            self._texts.append(text[len(self._shown) :])
            self._window, self._text, self._shown = window, shorter, shorter

    def flush(self) -> str:
        reference = self._decode(self._ids) if self._ids else ""
        returned = "".join(self._texts)
        self.exact = reference.startswith(returned)
        if self.exact:
            rest = reference[len(returned) :]
        else:
            logger.warning(
                "%s.decode() of all tokens differs from the streamed text from character %d on",
                type(self._tokenizer).__name__,
                common_prefix(reference, returned),
            )
            rest = self._text[len(self._shown) :]
        self._start()
        return end_stages(self._stages, rest)
