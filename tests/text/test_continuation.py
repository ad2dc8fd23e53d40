"""An answer that goes on from its prompt: its text is what it adds to the prompt's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models

from anystreamer._text import ContinuationDecoder, TextDecoder, text_decoder
from anystreamer._text.continuation import CONTEXT

from ..helpers import tokenizer_families as families
from ..helpers.tokenizer_families import FAMILIES, SAMPLE

pytestmark = pytest.mark.torch

BY_NAME = {family.name: family for family in FAMILIES if family.exact}
every_family = pytest.mark.parametrize("name", BY_NAME)


@cache
def made(name: str) -> Any:
    return BY_NAME[name].make()


@cache
def encoded(name: str) -> tuple[int, ...]:
    encoding = made(name).encode(SAMPLE)
    return tuple(getattr(encoding, "ids", encoding))


def size(tokenizer: Any) -> int:
    return tokenizer.get_vocab_size() if isinstance(tokenizer, Tokenizer) else len(tokenizer)


def added(tokenizer: Any, prompt: list[int], answer: list[int], **kwargs: Any) -> str:
    """What an answer adds to the text of its prompt, by the tokenizer's own decode()."""
    before, after = tokenizer.decode(prompt, **kwargs), tokenizer.decode(prompt + answer, **kwargs)
    pairs = zip(before, after, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    return str(after[same:])


def streamed(decoder: TextDecoder, ids: list[int]) -> str:
    return "".join([*(decoder.decode([token_id]) for token_id in ids), decoder.flush()])


def continued(tokenizer: Any, prompt: list[int], answer: list[int], **kwargs: Any) -> str:
    return streamed(ContinuationDecoder(lambda: text_decoder(tokenizer, **kwargs), prompt), answer)


def strips(*steps: Any) -> Any:
    """The decoder of Llama 2 and Mistral, after other steps: it drops a text's first space."""
    return decoders.Sequence([*steps, decoders.Fuse(), decoders.Strip(" ", 1, 0)])


LEADING_SPACE = {
    "metaspace": decoders.Metaspace(),
    "strip": strips(decoders.Replace("▁", " ")),
    "strip, byte fallback": strips(decoders.Replace("▁", " "), decoders.ByteFallback()),
}


def sentence_pieces(decoder: Any) -> Any:
    pieces = ["<unk>", "<s>", "▁the", "▁quick", "▁brown", "▁", "s", *families.byte_tokens()]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    return families.fast(tokenizer, bos_token="<s>")


def slow_sentence_pieces() -> Any:
    return families.PythonSentencePiece(["▁the", "▁quick", "▁brown", "▁", "s"])


@pytest.mark.parametrize("kind", [*LEADING_SPACE, "slow"])
def test_a_continuation_keeps_its_leading_space(kind: str) -> None:
    """These decoders drop the space of a text's beginning, and the answer is not one."""
    decoder = LEADING_SPACE.get(kind)
    tokenizer = slow_sentence_pieces() if decoder is None else sentence_pieces(decoder)
    the, quick, brown = tokenizer.convert_tokens_to_ids(["▁the", "▁quick", "▁brown"])
    for skip in (True, False):
        kwargs = {"skip_special_tokens": skip}
        prompt = [tokenizer.bos_token_id, the]
        text = continued(tokenizer, prompt, [quick, brown], **kwargs)
        assert text == " quick brown"
        assert tokenizer.decode([*prompt, quick, brown], **kwargs).endswith("the quick brown")
    assert tokenizer.decode([quick, brown]) == "quick brown"


def test_after_special_tokens_alone_a_text_begins() -> None:
    """They are skipped, so what follows them is decoded as the first."""
    tokenizer = sentence_pieces(decoders.Metaspace())
    the, bos = tokenizer.convert_tokens_to_ids("▁the"), tokenizer.bos_token_id
    prompt = [bos] * 3 * CONTEXT
    assert continued(tokenizer, prompt, [the, the], skip_special_tokens=True) == "the the"
    assert continued(tokenizer, [the, *prompt], [the], skip_special_tokens=True) == " the"


def test_a_character_that_begins_in_the_prompt() -> None:
    """The prompt's text has U+FFFD for it; the whole character is new."""
    tokenizer = made("byte level")
    start, end = list("aé👍".encode())[:-2], list("👍".encode())[-2:]
    assert continued(tokenizer, start, [*end, *b"b"]) == "👍b"
    assert continued(tokenizer, start, [*b"b"]) == "b"
    assert continued(tokenizer, start, []) == ""


def test_a_prompt_that_ends_in_a_long_run_of_bytes() -> None:
    """It is not cut inside a character, however long: half of one would spoil the run."""
    tokenizer = families.own_inner_decode()
    for length in range(CONTEXT, CONTEXT + 4):
        prompt = [*b"ab", *("京" * length).encode()]
        answer = [*"都é".encode(), *b"!"]
        assert continued(tokenizer, prompt, answer) == "都é!"


@every_family
@given(data=st.data())
def test_it_is_what_the_answer_adds(name: str, data: st.DataObject) -> None:
    """Any ids after any ids."""
    tokenizer = made(name)
    any_ids = st.lists(st.integers(0, size(tokenizer) + 1), max_size=CONTEXT)
    prompt, answer = data.draw(any_ids), data.draw(any_ids)
    kwargs = {"skip_special_tokens": data.draw(st.booleans())}
    text = continued(tokenizer, prompt, answer, hold_byte_runs=True, **kwargs)
    assert text == added(tokenizer, prompt, answer, **kwargs)


@every_family
@given(data=st.data())
def test_it_is_what_the_answer_adds_to_a_long_prompt(name: str, data: st.DataObject) -> None:
    """Only the prompt's end is decoded, which makes no difference to a text cut anywhere."""
    tokenizer, ids = made(name), list(encoded(name))
    cut = data.draw(st.integers(1, len(ids)))
    prompt = ids[:cut] * data.draw(st.integers(1, 3))
    answer = ids[cut : cut + 30]
    assert continued(tokenizer, prompt, answer) == added(tokenizer, prompt, answer)


@every_family
def test_the_length_of_the_prompt_does_not_matter(name: str) -> None:
    """A few of its tokens are decoded, and not all."""
    taken: list[int] = []

    class Counting(TextDecoder):
        def __init__(self) -> None:
            self.decoder = text_decoder(made(name))

        def decode(self, token_ids: Any) -> str:
            taken.extend(token_ids)
            return self.decoder.decode(token_ids)

        def flush(self) -> str:
            return self.decoder.flush()

    ContinuationDecoder(Counting, list(encoded(name)) * 100)
    assert len(taken) <= 8 * CONTEXT


@every_family
def test_after_flush_another_text_begins(name: str) -> None:
    """As with every decoder; the prompt is not before it."""
    tokenizer, ids = made(name), list(encoded(name))
    decoder = ContinuationDecoder(lambda: text_decoder(tokenizer), ids[:20])
    first, second = streamed(decoder, ids[20:60]), streamed(decoder, ids[:40])
    assert first == added(tokenizer, ids[:20], ids[20:60])
    assert second == tokenizer.decode(ids[:40])
    assert decoder.exact is True
