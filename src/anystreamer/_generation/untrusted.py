"""Chat messages whose special tokens are text: what users write does not become a role."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["UntrustedMessages", "encode_untrusted", "strings_in"]

# Arguments of a chat template with text that others can have written.
_WITH_TEXT = ("tools", "documents")


class UntrustedMessages(list[Mapping[str, Any]]):
    """Chat messages with text that others have written: users, or the pages that a tool has read.

    Use it as a prompt: ``UntrustedMessages([{"role": "user", "content": text}])``. A special token
    in the text, such as ``<|im_end|>``, would end the message, and the next one could begin another
    role. Here it is encoded as the characters that it is written with, and only the chat template
    makes special tokens. This holds for all strings of the messages, of ``tools``, and of
    ``documents`` in ``chat_template_kwargs``. Text without special tokens is encoded as usual.

    A template whose markers are ordinary text (``[INST]`` of Llama 2) has no such protection: no
    token tells its markers from those that users write.
    """


# transformers' own `sanitize_control_tokens` is not in all supported releases. It also leaves the
# keys of dicts alone, calls the tokenizer for each token that it finds, and fails where a tokenizer
# makes a special token of ordinary text (Unigram, whose vocabulary has it).
def encode_untrusted(
    tokenizer: Any, decoding: Any, messages: UntrustedMessages, settings: Mapping[str, Any]
) -> list[int] | None:
    """The ids of messages that have special tokens in their text; None if there are none.

    Args:
        tokenizer: has the chat template.
        decoding: the tokenizer itself, where *tokenizer* is a processor.
        messages: the chat.
        settings: arguments of the chat template.

    Raises:
        ValueError: the messages have images or other parts that are not text.
    """
    chat = _Chat(tokenizer, messages, settings)
    known = _control_tokens(tokenizer, decoding, settings)
    text = "\0".join(strings_in((chat.messages, chat.others)))
    found = [token for token in known if token.text in text]
    if not found:
        return None
    if any(part.get("type", "text") != "text" for part in _parts(messages)):
        raise ValueError(
            f"the messages have the special token {found[0].text!r} in their text, which can be "
            "encoded as text only where no images or other inputs are among them: remove it, or "
            "pass a plain list, where it stays a special token"
        )
    return _Encoder(decoding, known).encode(*chat.split(found))


@dataclass(frozen=True)
class _Token:
    text: str
    id: int
    is_special: bool


def _control_tokens(tokenizer: Any, decoding: Any, settings: Mapping[str, Any]) -> list[_Token]:
    """The tokens that structure a chat, longest first: a token can be a part of another."""
    template = settings.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if not template:  # it encodes messages by itself (Mistral), and text never becomes a token
        return []
    own = getattr(decoding, "chat_control_tokens", None) or ()
    written = "\0".join([str(template), *own])
    tokens = [
        _Token(added.content, id_, added.special)
        for id_, added in getattr(decoding, "added_tokens_decoder", {}).items()
        if len(added.content) > 1 and not added.content.isspace()
        if added.special or _is_marker(added.content, written)
    ]
    return sorted(tokens, key=lambda token: -len(token.text))


def _is_marker(text: str, written: str) -> bool:
    """Whether an added token is one of the template's, though it is not called special.

    DeepSeek does not call the markers of its roles so. Some templates put them together from parts:
    they are known by their form.
    """
    has_form = text.startswith("<|") and text.endswith("|>")
    return has_form or (text in written and not text.isalnum())


class _Chat:
    """The messages and the other texts of a prompt, and their rendering by the template."""

    def __init__(
        self, tokenizer: Any, messages: UntrustedMessages, settings: Mapping[str, Any]
    ) -> None:
        self.messages = list(messages)
        self.others = {name: settings[name] for name in _WITH_TEXT if settings.get(name)}
        self._tokenizer = tokenizer
        self._settings = settings
        # In place of tokens. Of digits alone, which no template changes; nobody can guess them.
        self._mark = str(10**19 + int.from_bytes(os.urandom(8), "big"))

    def split(self, found: Sequence[_Token]) -> tuple[list[str], list[str]]:
        """Render it. Returns its texts, and the tokens that are text between them."""
        replaced = [token.text for token in found if token.is_special]
        others = [token.text for token in found if not token.is_special]
        if others:
            # Templates look for some in a message, such as the </think> of a reasoning that they
            # leave out. Such a token keeps its meaning.
            plain = self._render([])
            replaced += [each for each in others if self._render_and_restore(each) == plain]
        pieces = re.split(f"{self._mark}([0-9]{{5}})", self._render(replaced))
        return pieces[::2], [replaced[int(index)] for index in pieces[1::2]]

    def _render_and_restore(self, token: str) -> str:
        return self._render([token]).replace(self._marks([token])[token], token)

    def _render(self, replaced: Sequence[str]) -> str:
        marks = self._marks(replaced)
        settings = {**self._settings, **_replace(self.others, marks)}
        rendered: str = self._tokenizer.apply_chat_template(
            _replace(self.messages, marks), tokenize=False, **settings
        )
        return rendered

    def _marks(self, replaced: Sequence[str]) -> dict[str, str]:
        return {text: f"{self._mark}{index:05}" for index, text in enumerate(replaced)}


class _Encoder:
    """Encodes texts with special tokens between them that are to stay text."""

    def __init__(self, tokenizer: Any, known: Sequence[_Token]) -> None:
        self._tokenizer = tokenizer
        # The token for what is unknown can come from any text.
        self._control_ids = {each.id for each in known} - {getattr(tokenizer, "unk_token_id", None)}
        (self._newline,) = self._ids_of(["\n"])

    def encode(self, texts: Sequence[str], tokens: Sequence[str]) -> list[int]:
        """The ids of the first text, the first token, the second text and so on."""
        spelled = {token: self._spell(token) for token in set(tokens)}
        first, *rest = texts
        (ids,) = self._ids_of([first]) if first else ([],)
        different = list(dict.fromkeys(rest))
        ids_of = dict(zip(different, self._continue(different), strict=True))
        for token, text in zip(tokens, rest, strict=True):
            ids += spelled[token]
            ids += ids_of[text]
        return ids

    def _spell(self, token: str) -> list[int]:
        """The ids of a token's characters. In two parts, in which no tokenizer can find it."""
        for parts in ([token[:1], token[1:]], list(token)):
            ids = [id_ for part in self._continue(parts) for id_ in part]
            if self._control_ids.isdisjoint(ids):
                break
        return ids

    def _continue(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that follow another text.

        Some tokenizers put a space before the first word of what they get. So a line break comes
        before it, and is taken off again.
        """
        newline = self._newline
        after = self._ids_of([f"\n{text}" for text in texts])
        alone = self._ids_of(
            [text for text, ids in zip(texts, after, strict=True) if ids[: len(newline)] != newline]
        )
        others = iter(alone)
        return [
            ids[len(newline) :] if ids[: len(newline)] == newline else next(others) for ids in after
        ]

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids


def strings_in(value: Any) -> Iterator[str]:
    """All strings in a value of dicts and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from strings_in(pair)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings_in(each)


def _replace(value: Any, marks: Mapping[str, str]) -> Any:
    """The value with the marks in place of their texts, in all of its strings."""
    if isinstance(value, str):
        for text, mark in marks.items():
            value = value.replace(text, mark)
        return value
    if isinstance(value, Mapping):
        return {_replace(key, marks): _replace(each, marks) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(each, marks) for each in value]
    return value


def _parts(messages: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The parts of messages whose content is not one string."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list | tuple):
            yield from (part for part in content if isinstance(part, Mapping))
