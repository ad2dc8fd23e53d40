"""`text_decoder`: picks the way in which a tokenizer's ids become text, token by token.

There are three:

- `ByteLevelDecoder`: each token is some bytes of one UTF-8 text. Exact.
- `PieceDecoder`: each token is a piece of text, or one byte of a run of byte tokens. Exact.
- `WindowDecoder`: only the tokenizer's `decode` is known. Checked at the end.

The two exact ones read the Rust decoder's own description (Replace, ByteFallback, Fuse, ...) and
redo it one token at a time. They cover what transformers' own `decode` does with it; a class that
brings a `decode` of its own, and every Python-level tokenizer, goes through the window.
"""

from typing import Any

from .base import SupportsDecode, TextDecoder
from .decoder_plan import Vocabulary, read_plan
from .exact_decoders import ByteLevelDecoder, PieceDecoder
from .text_stages import CleanUp, TextStage
from .window_decoder import WindowDecoder


def text_decoder(
    tokenizer: SupportsDecode, *, hold_byte_runs: bool = False, **decode_kwargs: Any
) -> TextDecoder:
    """Make an incremental decoder: its texts joined are `tokenizer.decode(ids, **decode_kwargs)`.

    No text ends inside a character, and text that can no longer change is not held back.

    There is one intended difference. Tokenizers with byte fallback decode a run of byte tokens as a
    whole: if one byte is invalid, or cut off by `max_new_tokens`, all characters of the run become
    U+FFFD. This is not known before the run has ended. So by default each character is shown when
    its bytes are complete, and only bytes outside of characters become U+FFFD (one each, as in the
    reference). `hold_byte_runs=True` waits for the end of the run instead, and is exact.

    If only the `decode` of a tokenizer is known (a Python tokenizer, or one with its own `decode`),
    the decoder decodes a window of the latest tokens, and compares the whole text at the end. It
    then always holds back byte runs, and a U+FFFD at the end, until the text continues. If `decode`
    changes text that was already shown, that text stays, and each new token adds the text that it
    has by itself: no text is shown twice.

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
        raise TypeError(f"text_decoder() needs an object with decode(), got {tokenizer!r:.80}")
    kwargs = dict(decode_kwargs)
    backend, stages = _known_parts(tokenizer, kwargs)
    plan = None if backend is None else read_plan(backend)
    if plan is None:
        return WindowDecoder(tokenizer, kwargs, stages, cleans_up=_cleans_up(tokenizer, kwargs))
    vocabulary = Vocabulary(tokenizer, backend, bool(kwargs.get("skip_special_tokens")), plan)
    stages = [*(make() for make in plan.text_stages), *stages]
    if plan.core == "bytes":
        return ByteLevelDecoder(vocabulary, stages)
    return PieceDecoder(vocabulary, stages, hold_byte_runs)


# The modules whose `decode` and `_decode` were read: what they do beyond the Rust decoder is to
# clean up, and nothing else. A method from anywhere else can do anything.
_BASE = "transformers.tokenization_utils_base"
_RUST_BACKED = "transformers.tokenization_utils_tokenizers"
_INNER_DECODES = {
    _RUST_BACKED,
    "transformers.tokenization_python",
    "transformers.tokenization_utils_sentencepiece",
}


def _known_parts(tokenizer: Any, kwargs: dict[str, Any]) -> tuple[Any, list[TextStage]]:
    """The Rust tokenizer that does all of `decode` but the stages; None if that is not certain.

    What is left to the stages is switched off in *kwargs*.
    """
    if type(tokenizer).__module__ == "tokenizers" and kwargs.keys() <= {"skip_special_tokens"}:
        kwargs.setdefault("skip_special_tokens", True)  # its own default
        return tokenizer, []
    owner = _defining_module(tokenizer, "_decode")
    if _defining_module(tokenizer, "decode") != _BASE or owner not in _INNER_DECODES:
        return None, []
    stages: list[TextStage] = []
    if _cleans_up(tokenizer, kwargs):
        if _defining_module(tokenizer, "clean_up_tokenization") != _BASE:
            return None, []
        stages.append(CleanUp())
    kwargs["clean_up_tokenization_spaces"] = False
    joins = _defining_module(tokenizer, "convert_tokens_to_string")
    is_rust = owner == joins == _RUST_BACKED
    return getattr(tokenizer, "backend_tokenizer", None) if is_rust else None, stages


def _defining_module(tokenizer: object, method: str) -> str | None:
    """The module of the class that a tokenizer has a method from; None if it was patched in."""
    if method in getattr(tokenizer, "__dict__", {}):
        return None
    owners = (cls for cls in type(tokenizer).__mro__ if method in vars(cls))
    return next((cls.__module__ for cls in owners), None)


def _cleans_up(tokenizer: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `decode` goes through `clean_up_tokenization`, decided as transformers does."""
    requested = kwargs.get("clean_up_tokenization_spaces")
    if requested is None:
        requested = getattr(tokenizer, "clean_up_tokenization_spaces", False)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if type(model).__name__ == "BPE":  # older releases lack this attribute and did not except BPE
        name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        return bool(requested and getattr(tokenizer, name, True))
    return bool(requested)
