"""What a decoder does to text after its tokens have been joined: replace, strip, clean up."""

import re
from typing import Protocol


# One transformation of the joined text; each stage takes what the one before it returns.
# Invariant of a stage: `feed` and `end` joined are the whole text transformed, and between two
# calls it holds only the shortest suffix that the transformation can still change.
class TextStage(Protocol):
    def feed(self, text: str) -> str: ...

    def end(self) -> str: ...


def end_stages(stages: list[TextStage], text: str) -> str:
    for stage in stages:
        text = stage.feed(text) + stage.end()
    return text


# Holds: the text's end where it begins like one of the strings to replace.
class Replacing:
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


# Holds nothing: when a leading character comes, it is known whether it is removed.
class StrippingStart:
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
MARKS = {" " + mark: mark for mark in (".", "?", "!", ",")}
QUOTES = {" ' ": "'"}
ENDINGS = {" " + ending: ending for ending in ("n't", "'m", "'s", "'ve", "'re")}
_NOTHING_TO_CLEAN = re.compile(r"(?:[^ ]| [^ .?!,n'])*").fullmatch


class CleanUp:
    def __init__(self) -> None:
        self._stages = (
            Replacing(MARKS),
            Replacing(QUOTES),
            Replacing(ENDINGS),
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
        return end_stages(list(self._stages), "")
