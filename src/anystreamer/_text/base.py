"""What a decoder needs of a tokenizer, and what all decoders have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import index
from typing import Any, Protocol


class SupportsDecode(Protocol):
    """What a tokenizer must have: `decode(token_ids, **kwargs) -> str`."""

    # Typed loosely, so that both transformers' and tokenizers' match: they take and return more.
    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the text of the ids of one sequence, a list of ints."""


class TextDecoder(ABC):
    """Turns the ids of one sequence into text as they come; made by `text_decoder`.

    Do not share it between threads. Any number of decoders can share a tokenizer.
    """

    exact: bool | None = None
    """Whether the texts joined are what `tokenizer.decode` makes of all the ids.

    None until `flush`. False is rare, and never silent: see `text_decoder`.
    """

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Take the next ids, and return the text that they make final ("" while held back)."""

    @abstractmethod
    def flush(self) -> str:
        """End the text and return what was held back. The next `decode` starts a new text."""


def validated_ids(token_ids: Sequence[int]) -> list[int]:
    """The ids as ints. TypeError where they are not a flat list."""
    try:
        return [index(token_id) for token_id in token_ids]
    except TypeError:
        raise TypeError(
            "decode() takes the token ids of one sequence, a flat list of ints,"
            f" got {token_ids!r:.80}; decode each sequence with a decoder of its own"
        ) from None


def common_prefix(one: str, other: str) -> int:
    """The number of characters that two texts have in common at their beginnings."""
    if one.startswith(other) or other.startswith(one):
        return min(len(one), len(other))
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def rust_backend(tokenizer: Any) -> Any:
    """The tokenizer of the tokenizers library behind a tokenizer; None for one in Python."""
    is_one = type(tokenizer).__module__ == "tokenizers"
    return tokenizer if is_one else getattr(tokenizer, "backend_tokenizer", None)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that a tokenizer calls special: what `skip_special_tokens` is about."""
    named = getattr(tokenizer, "all_special_ids", None) or ()
    get_added: Any = getattr(rust_backend(tokenizer), "get_added_tokens_decoder", dict)
    added: dict[int, Any] = get_added()
    return frozenset(named) | {each for each, token in added.items() if token.special}
