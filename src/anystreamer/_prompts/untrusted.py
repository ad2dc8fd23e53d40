"""Chat messages whose special tokens are text: what users write does not become a role."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

__all__ = [
    "NotText",
    "UntrustedMessages",
    "encode_untrusted",
    "has_plain_tokens",
    "mark_untrusted",
    "strings_in",
    "with_contents",
]

# Arguments of a chat template with text that others can have written.
_WITH_TEXT = ("tools", "documents")


class NotText(str):
    """A string that stands for something else in messages. It goes through as it is."""

    place = ""  # in the messages


class UntrustedMessages(list[Mapping[str, Any]]):
    """Chat messages with text that others have written: users, or the pages that a tool has read.

    Use it as a prompt: ``UntrustedMessages([{"role": "user", "content": text}])``. A special token
    in the text, such as ``<|im_end|>``, would end the message, and the next one could begin another
    role. Here it is encoded as the characters that it is written with, and only the chat template
    makes special tokens. This holds for all strings of the messages, of ``tools``, and of
    ``documents`` in ``chat_template_kwargs``. Text without special tokens is encoded as usual.

    A template whose markers are ordinary text (``[INST]`` of Llama 2) has no such protection: the
    model cannot tell its markers from the text of users.

    Slices, sums and copies are `UntrustedMessages` as well: ``messages[-10:]``, and
    ``[system] + messages``. A sum of two of them allows special tokens if both do, and the hosts
    that both name; so do ``+=``, ``extend`` and slices that are assigned. ``list()`` and
    comprehensions make a plain list.

    Messages can have pictures and recordings. Their files are limited in size, paths are not read,
    and addresses are fetched only from the hosts of *allow_media_from*. If a user writes the token
    that stands for a picture, it stays text, too.

    Args:
        messages: the chat.
        allow_media_from: hosts that pictures and recordings can be fetched from, such as
            ``("example.org",)``. A host has to have a public address. Others have to be named by
            their address and port: ``"127.0.0.1:8000"``. Any public host: ``"*"``.
        allow_special_tokens: leave special tokens in the text as they are. Only the rules for
            pictures and recordings then differ from those for a plain list.

    Raises:
        TypeError, ValueError: *allow_media_from* is not a list of hosts.
    """

    def __init__(
        self,
        messages: Iterable[Mapping[str, Any]] = (),
        *,
        allow_media_from: Sequence[str] = (),
        allow_special_tokens: bool = False,
    ) -> None:
        super().__init__(messages)
        self.allow_special_tokens: bool = allow_special_tokens
        self.allow_media_from: tuple[str, ...] = ()
        if allow_media_from != ():
            from .media_hosts import validate_hosts

            self.allow_media_from = validate_hosts(allow_media_from)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice, /) -> UntrustedMessages: ...

    def __getitem__(self, index: SupportsIndex | slice, /) -> Mapping[str, Any] | UntrustedMessages:
        """Return a message, or several under the same rules."""
        if isinstance(index, slice):
            return self.replaced(super().__getitem__(index))
        return super().__getitem__(index)

    # Of list, a sum of lists with other items has another type. Here there are no others.
    def __add__(  # type: ignore[override]
        self, other: Sequence[Mapping[str, Any]], /
    ) -> UntrustedMessages:
        """Return these messages and others after them."""
        if not isinstance(other, list):
            return NotImplemented
        return self._common_rules(other).replaced([*self, *other])

    def __radd__(self, other: Sequence[Mapping[str, Any]], /) -> UntrustedMessages:
        """Return these messages and others before them."""
        if not isinstance(other, list):
            return NotImplemented
        return self.replaced([*other, *self])

    def __iadd__(  # type: ignore[override]
        self, other: Iterable[Mapping[str, Any]], /
    ) -> UntrustedMessages:
        """Append others, as `extend` does."""
        self.extend(other)
        return self

    def __mul__(self, times: SupportsIndex, /) -> UntrustedMessages:
        """Return these messages several times."""
        return self.replaced(super().__mul__(times))

    def __rmul__(self, times: SupportsIndex, /) -> UntrustedMessages:
        """Return these messages several times."""
        return self * times

    def extend(self, messages: Iterable[Mapping[str, Any]], /) -> None:
        """Append others. Of `UntrustedMessages`, their rules apply as well, as in a sum."""
        self._also_apply_rules_of(messages)
        super().extend(messages)

    @overload
    def __setitem__(self, index: SupportsIndex, value: Mapping[str, Any], /) -> None: ...

    @overload
    def __setitem__(self, index: slice, value: Iterable[Mapping[str, Any]], /) -> None: ...

    def __setitem__(self, index: Any, value: Any, /) -> None:
        """Replace a message, or several by others, whose rules then apply as well."""
        self._also_apply_rules_of(value)
        super().__setitem__(index, value)

    def _also_apply_rules_of(self, messages: object) -> None:
        if isinstance(messages, UntrustedMessages):  # not while it is unpickled: without rules yet
            rules = self._common_rules(messages)
            self.allow_media_from = rules.allow_media_from
            self.allow_special_tokens = rules.allow_special_tokens

    def copy(self) -> UntrustedMessages:
        """Return the same messages, under the same rules, in a new list."""
        return self.replaced(self)

    def _common_rules(self, other: object) -> UntrustedMessages:
        """No messages, with what both lists allow. A plain list is the caller's own."""
        if not isinstance(other, UntrustedMessages):
            return self.replaced(())
        return UntrustedMessages(
            allow_media_from=[
                each for each in self.allow_media_from if each in other.allow_media_from
            ],
            allow_special_tokens=self.allow_special_tokens and other.allow_special_tokens,
        )

    def replaced(self, messages: Iterable[Mapping[str, Any]]) -> UntrustedMessages:
        """Other messages, under the same rules."""
        return UntrustedMessages(
            messages,
            allow_media_from=self.allow_media_from,
            allow_special_tokens=self.allow_special_tokens,
        )


def with_contents(messages: Any, change: Callable[[int, Any], Any]) -> Any:
    """The same chat with other contents; `UntrustedMessages` stay such.

    Args:
        messages: the chat.
        change: returns the content for a message, from its number and from its content.
    """
    changed = [
        _with_content(message, change(number, message.get("content")))
        for number, message in enumerate(messages)
    ]
    return messages.replaced(changed) if isinstance(messages, UntrustedMessages) else changed


def _with_content(message: Mapping[str, Any], content: Any) -> Mapping[str, Any]:
    return message if content is message.get("content") else {**message, "content": content}


def has_plain_tokens(messages: Any) -> bool:
    """Whether special tokens in the text of these messages are text."""
    return isinstance(messages, UntrustedMessages) and not messages.allow_special_tokens


# transformers' own `sanitize_control_tokens` is not in all supported releases. It also skips the
# keys of dicts, calls the tokenizer for each token that it finds, and fails where a tokenizer
# makes a special token of ordinary text (Unigram, whose vocabulary has it).
def encode_untrusted(
    tokenizer: Any, text_tokenizer: Any, messages: UntrustedMessages, settings: Mapping[str, Any]
) -> list[int] | None:
    """The ids of messages that have special tokens in their text; None if there are none.

    Args:
        tokenizer: has the chat template.
        text_tokenizer: the tokenizer itself, where *tokenizer* is a processor.
        messages: the chat, without pictures or other parts that are not text.
        settings: arguments of the chat template.
    """
    chat = _Chat(tokenizer, [messages], settings)
    known = _control_tokens(tokenizer, text_tokenizer, settings)
    found = chat.find(known)
    if not found:
        return None
    return _Encoder(text_tokenizer, known).encode(*chat.split(chat.replaceable(found)))


def mark_untrusted(
    processor: Any, text_tokenizer: Any, conversations: Sequence[Any], settings: Mapping[str, Any]
) -> Marked | None:
    """The same for a processor, which puts the tokens of pictures into the text before it encodes.

    Args:
        processor: has the chat template.
        text_tokenizer: its tokenizer.
        conversations: one or several chats, of which some are `UntrustedMessages`.
        settings: arguments of the chat template.
    """
    untrusted = [each for each in conversations if has_plain_tokens(each)]
    if not untrusted:
        return None
    chat = _Chat(processor, untrusted, settings)
    known = _control_tokens(processor, text_tokenizer, settings)
    found = chat.find(known)
    if not found:
        return None
    replaced = chat.replaceable(found)
    marked = iter(chat.marked(replaced))
    return Marked(
        processor,
        [next(marked) if has_plain_tokens(each) else list(each) for each in conversations],
        chat.marked_settings(replaced),
        _MarkedTokenizer(text_tokenizer, _Encoder(text_tokenizer, known), chat, replaced),
    )


class Marked:
    """Chats with marks in place of the special tokens in their text, and how to encode them."""

    def __init__(
        self,
        processor: Any,
        conversations: list[list[Mapping[str, Any]]],
        settings: Mapping[str, Any],
        tokenizer: _MarkedTokenizer,
    ) -> None:
        self.conversations = conversations
        self.settings = settings
        #: one that knows the marks, for this prompt alone
        self.processor = copy.copy(processor)
        self.processor.tokenizer = tokenizer
        self._tokenizer = tokenizer

    def check(self) -> None:
        """Refuse a prompt whose marks have become ids. Raises ValueError."""
        if not self._tokenizer.was_called:
            raise ValueError(
                f"the messages have the special token {self._tokenizer.tokens[0]!r} in their text, "
                f"and {type(self.processor).__name__} cannot encode it as text "
                "together with other inputs"
            )


@dataclass(frozen=True)
class _Token:
    text: str
    id: int
    is_special: bool


def _control_tokens(
    tokenizer: Any, text_tokenizer: Any, settings: Mapping[str, Any]
) -> list[_Token]:
    """The tokens that structure a chat, longest first: a token can be a part of another."""
    template = settings.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if not template:  # it encodes messages by itself (Mistral), and text never becomes a token
        return []
    own = getattr(text_tokenizer, "chat_control_tokens", None) or ()
    written = "\0".join([str(template), *own])
    tokens = [
        _Token(added.content, id_, added.special)
        for id_, added in getattr(text_tokenizer, "added_tokens_decoder", {}).items()
        if len(added.content) > 1 and not added.content.isspace()
        if added.special or _is_marker(added.content, written)
    ]
    return sorted(tokens, key=lambda token: -len(token.text))


def _is_marker(text: str, written: str) -> bool:
    """Whether an added token is one of the template's, though it is not called special.

    DeepSeek's markers of roles are not special, for example. Some templates put markers together
    from parts: these are recognised by their form.
    """
    has_form = text.startswith("<|") and text.endswith("|>")
    return has_form or (text in written and not text.isalnum())


class _Chat:
    """The messages and the other texts of a prompt, and their rendering by the template.

    Args:
        tokenizer: has the chat template.
        conversations: one or several chats.
        settings: arguments of the chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        settings: Mapping[str, Any],
    ) -> None:
        self._conversations = [list(each) for each in conversations]
        self._others = {name: settings[name] for name in _WITH_TEXT if settings.get(name)}
        self._tokenizer = tokenizer
        self._settings = settings
        # In place of tokens: digits alone, which no template changes, and which no one can guess.
        self._mark = str(10**19 + int.from_bytes(os.urandom(8), "big"))

    def find(self, known: Sequence[_Token]) -> list[_Token]:
        """Those of the tokens that are in the texts."""
        text = "\0".join(strings_in((self._conversations, self._others)))
        return [token for token in known if token.text in text]

    def replaceable(self, found: Sequence[_Token]) -> list[str]:
        """The texts of those tokens that are text, and not for the template to look for."""
        replaced = [token.text for token in found if token.is_special]
        others = [token.text for token in found if not token.is_special]
        if others:
            # Templates look for some in a message, such as the </think> of a reasoning that they
            # leave out. Such a token keeps its meaning.
            plain = self._render([])
            replaced += [each for each in others if self._render_and_restore(each) == plain]
        return replaced

    def split(
        self, replaced: Sequence[str], rendered: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Split a rendered text at the marks, into texts and the tokens between them."""
        if rendered is None:
            rendered = self._render(replaced)
        pieces = re.split(f"{self._mark}([0-9]{{5}})", rendered)
        return pieces[::2], [replaced[int(index)] for index in pieces[1::2]]

    def marked(self, replaced: Sequence[str]) -> list[list[Mapping[str, Any]]]:
        """The conversations with marks in place of these tokens."""
        marked: list[list[Mapping[str, Any]]] = _replace(self._conversations, self._marks(replaced))
        return marked

    def marked_settings(self, replaced: Sequence[str]) -> dict[str, Any]:
        """The settings with marks in place of these tokens."""
        return {**self._settings, **_replace(self._others, self._marks(replaced))}

    def _render_and_restore(self, token: str) -> str:
        return self._render([token]).replace(self._marks([token])[token], token)

    def _render(self, replaced: Sequence[str]) -> str:
        settings = self.marked_settings(replaced)
        return "\0".join(
            self._tokenizer.apply_chat_template(each, tokenize=False, **settings)
            for each in self.marked(replaced)
        )

    def _marks(self, replaced: Sequence[str]) -> dict[str, str]:
        return {text: f"{self._mark}{index:05}" for index, text in enumerate(replaced)}


class _MarkedTokenizer:
    """A tokenizer for a processor. Marks in its texts become the characters of their tokens."""

    def __init__(
        self, tokenizer: Any, encoder: _Encoder, chat: _Chat, tokens: Sequence[str]
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._chat = chat
        self.tokens = tokens
        self.was_called = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # while it is copied, it has no tokenizer yet
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Encode one text, or several, as the tokenizer itself does."""
        self.was_called = True
        texts = [text] if isinstance(text, str) else list(text)
        begin, end = self._added() if kwargs.get("add_special_tokens", True) else ([], [])
        rows = [
            [*begin, *self._encoder.encode(*self._chat.split(self.tokens, each)), *end]
            for each in texts
        ]
        encoded: dict[str, Any] = {
            "input_ids": rows,
            "attention_mask": [[1] * len(row) for row in rows],
        }
        if "token_type_ids" in getattr(self._tokenizer, "model_input_names", ()):
            encoded["token_type_ids"] = [[0] * len(row) for row in rows]
        if isinstance(text, str):
            encoded = {name: values[0] for name, values in encoded.items()}
        names = ("padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors")
        how = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return self._tokenizer.pad(encoded, **{"padding": False, **how})

    def _added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds before and after a text."""
        bare = self._tokenizer("\n", add_special_tokens=False)["input_ids"]
        whole = self._tokenizer("\n")["input_ids"]
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]


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
    if isinstance(value, NotText):
        return value
    if isinstance(value, str):
        for text, mark in marks.items():
            value = value.replace(text, mark)
        return value
    if isinstance(value, Mapping):
        return {_replace(key, marks): _replace(each, marks) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(each, marks) for each in value]
    return value
