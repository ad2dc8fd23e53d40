"""Tokenizers of every family, built in memory: what the tests and the benchmark decode with.

Their vocabularies are small and awkward: single bytes, halves of characters, lone spaces, pieces
that the clean-up reacts to, and added tokens of every sort.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

SAMPLE = (
    "The quick brown fox can't stop , won't stop . It's 3 o'clock ! They 've said : « Où est-il ? "
    "» Größe, naïve, 東京タワー, Привет мир, नमस्ते, שלום, 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪, e\u0301, "
    "tabs\tand\nnew\n\nlines,   spaces , do not 're 's n't ' m ' . x = [1, 2]; "
)

ODD_PIECES = [
    " ", "  ", "'", " '", "' ", "n", "n't", "'s", "'ve", " n", ".", " .", ",", "!", "?", "é", "👍",
    "\u0301", "\u200d", "�", "\n", "\t", "##", "▁", "▁▁", "Ġ", "</w>", "<0x41>", "a", "b", "do",
]  # fmt: skip


def byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def byte_characters() -> list[str]:
    """The characters that stand for bytes 0 to 255 in a byte-level vocabulary."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printable = sorted(char for char in alphabet if ord(char) < 256)
    others = sorted(alphabet - set(printable))
    missing = [byte for byte in range(256) if chr(byte) not in printable]
    return [
        chr(byte) if chr(byte) in printable else others[missing.index(byte)] for byte in range(256)
    ]


BYTE_CHARACTERS = byte_characters()


def to_byte_level(data: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in data)


def add_tokens(tokenizer: Any, *, odd: bool = True) -> Any:
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    if odd:
        tokenizer.add_special_tokens([AddedToken(" <|im end|> ", special=True)])
        tokenizer.add_tokens(
            [
                AddedToken("<tool>", normalized=False),
                AddedToken("  "),
                AddedToken("é👍", normalized=True),
                AddedToken("ĠĠé", normalized=False),
                AddedToken("Ã©", normalized=False),
                AddedToken("<0xE2>!", normalized=False),
            ]
        )
    return tokenizer


def words(sample: str = SAMPLE) -> list[str]:
    """Pieces of the sample of every length from 1 to 4, and each of its words."""
    pieces = {sample[i : i + n] for n in range(1, 5) for i in range(0, len(sample) - n, n + 1)}
    return sorted(pieces | set(sample.split()))


def fast(tokenizer: Tokenizer, **kwargs: Any) -> PreTrainedTokenizerFast:
    kwargs = {"unk_token": None, "clean_up_tokenization_spaces": False} | kwargs
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


def bpe(vocabulary: list[str], **kwargs: Any) -> Tokenizer:
    unique = dict.fromkeys(vocabulary)
    return Tokenizer(models.BPE({piece: n for n, piece in enumerate(unique)}, [], **kwargs))


def byte_level(**kwargs: Any) -> PreTrainedTokenizerFast:
    """GPT-2, Llama 3, Qwen: every token is some bytes."""
    data = SAMPLE.encode()
    rng = random.Random(0)
    cuts = [data[i : i + n] for i, n in ((rng.randrange(len(data)), n % 6 + 1) for n in range(400))]
    odd = [b"\xff", b"\xf0\x9f", b"\x91\xa9\xe2", b"\xed\xa0", b"\xef\xbf\xbd", b"\xef\xbf"]
    tokenizer = bpe([*BYTE_CHARACTERS, *map(to_byte_level, [*cuts, *odd])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(add_tokens(tokenizer), **kwargs)


def byte_level_normalized() -> PreTrainedTokenizerFast:
    """A byte-level normalizer instead of a pre-tokenizer: added tokens are stored normalized."""
    tokenizer = bpe(BYTE_CHARACTERS)
    tokenizer.normalizer = normalizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    return fast(add_tokens(tokenizer))


def byte_fallback(*, strip: bool, nested: bool = False, metaspace: bool = False) -> Any:
    """Llama 2 (with Strip), Gemma (without), TIPSv2 (with Metaspace instead of Replace)."""
    pieces = [piece.replace(" ", "▁") for piece in [*words(), *ODD_PIECES]]
    tokenizer = bpe([*byte_tokens(), *pieces], byte_fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    spaces: Any = decoders.Metaspace() if metaspace else decoders.Replace("▁", " ")
    steps: list[Any] = [spaces, decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    if nested:
        steps = [decoders.Sequence(steps[:2]), decoders.Sequence([decoders.Sequence(steps[2:])])]
    tokenizer.decoder = decoders.Sequence(steps)
    return fast(add_tokens(tokenizer))


def unigram(**kwargs: Any) -> PreTrainedTokenizerFast:
    """T5, XLM-R: pieces with a leading ▁."""
    pieces = dict.fromkeys(p.replace(" ", "▁") for p in ["<unk>", *words(), *ODD_PIECES])
    tokenizer = Tokenizer(models.Unigram([(p, -1.0) for p in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return fast(add_tokens(tokenizer), **kwargs)


def word_piece(*, cleanup: bool = True, **kwargs: Any) -> PreTrainedTokenizerFast:
    """BERT: continuations begin with ##, everything else with a space."""
    pieces = [p for word in words() for p in (word.strip(), "##" + word.strip())]
    vocabulary = {p: n for n, p in enumerate(dict.fromkeys(["[UNK]", *pieces, *ODD_PIECES]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return fast(add_tokens(tokenizer), **kwargs)


def no_decoder() -> PreTrainedTokenizerFast:
    """A Rust tokenizer without a decoder joins its tokens with spaces."""
    vocabulary = {p: n for n, p in enumerate(dict.fromkeys(["[UNK]", *words(), *ODD_PIECES]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return fast(add_tokens(tokenizer))


def replaced_after_fuse() -> PreTrainedTokenizerFast:
    """Replace on the joined text, where a match may lie across tokens."""
    tokenizer = bpe(["a", "b", "ab", "aab", "c", "▁", "▁a", "ba", "abab", *words()])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.Fuse(),
            decoders.Replace("abac", "-"),
            decoders.Strip("a", 3, 0),
            decoders.Replace("  ", " "),
        ]
    )
    return fast(add_tokens(tokenizer))


def bpe_suffix() -> PreTrainedTokenizerFast:
    """GPT-1, CLIP: a suffix ends a word, and is dropped from the last one. By the window."""
    pieces = [p for word in SAMPLE.split() for p in (word + "</w>", word[:2], word[2:] + "</w>")]
    tokenizer = bpe([*pieces, *ODD_PIECES])
    tokenizer.decoder = decoders.BPEDecoder()
    return fast(add_tokens(tokenizer))


def regex_replace() -> PreTrainedTokenizerFast:
    """A decoder that is not redone here: by the window."""
    tokenizer = bpe([*ODD_PIECES, *words()])
    tokenizer.decoder = decoders.Replace(Regex("[▁ ]+"), " ")
    return fast(add_tokens(tokenizer))


class PythonLevel(PreTrainedTokenizer):
    """A Python-level tokenizer over a list of pieces; how they are joined is up to subclasses."""

    def __init__(self, pieces: list[str], **kwargs: Any) -> None:
        self._pieces = list(dict.fromkeys(["<unk>", "<s>", "</s>", *pieces]))
        self._index = {piece: n for n, piece in enumerate(self._pieces)}
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        super().__init__(**names, **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._index)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._index.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._pieces[index] if 0 <= index < len(self._pieces) else "<unk>"


class PythonSentencePiece(PythonLevel):
    """Joins and strips as transformers' SentencePieceBackend does."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").strip()


class PythonWordPiece(PythonLevel):
    """Joins and strips as BertTokenizerLegacy does."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens).replace(" ##", "").strip()


class PythonSubword(PythonLevel):
    """Joins as CTRL does: a token's own end may vanish when the next one comes."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens).replace("@@ ", "").strip()


class PythonBytes(PythonLevel):
    """Joins as ByT5 does: single bytes, the invalid ones dropped."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        data = b"".join(t.encode() if len(t) > 1 else bytes([ord(t) % 256]) for t in tokens)
        return data.decode("utf-8", errors="ignore")


def python_sentence_piece(**kwargs: Any) -> PythonLevel:
    pieces = [p.replace(" ", "▁") for p in [*words(), *ODD_PIECES]]
    return PythonSentencePiece(pieces, clean_up_tokenization_spaces=False, **kwargs)


def python_word_piece(**kwargs: Any) -> PythonLevel:
    kwargs = {"clean_up_tokenization_spaces": True} | kwargs
    pieces = [p for word in words() for p in (word.strip(), "##" + word.strip()) if p]
    return PythonWordPiece(pieces, **kwargs)


def python_subword() -> PythonLevel:
    pieces = [p for word in SAMPLE.split() for p in (word, word[:2] + "@@")]
    return PythonSubword(pieces, clean_up_tokenization_spaces=False)


def python_bytes() -> PythonLevel:
    return PythonBytes([chr(n) for n in range(256)], clean_up_tokenization_spaces=False)


class OwnDecode(PreTrainedTokenizerFast):
    """Filters the decoded text, as Whisper's tokenizers filter timestamps."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> Any:
        text: Any = super().decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return text.replace("<tool>", "")


def own_decode() -> PreTrainedTokenizerFast:
    inner = byte_level()._tokenizer
    return OwnDecode(tokenizer_object=inner, clean_up_tokenization_spaces=False)


class OwnInnerDecode(PreTrainedTokenizerFast):
    """Overrides `_decode` as MistralCommonBackend does."""

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._decode([t for t in token_ids if t != 300], *args, **kwargs)


def own_inner_decode() -> PreTrainedTokenizerFast:
    inner = byte_fallback(strip=True)._tokenizer
    return OwnInnerDecode(tokenizer_object=inner, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Family:
    name: str
    make: Callable[[], Any]
    way: str  # the class of decoder that it must get
    exact: bool = True  # whether any sequence of ids at all is decoded exactly


FAMILIES = [
    Family("byte level", byte_level, "ByteLevelDecoder"),
    Family("byte level, normalizer", byte_level_normalized, "ByteLevelDecoder"),
    Family("byte fallback", lambda: byte_fallback(strip=False), "PieceDecoder"),
    Family("byte fallback, strip", lambda: byte_fallback(strip=True), "PieceDecoder"),
    Family("byte fallback, nested", lambda: byte_fallback(strip=True, nested=True), "PieceDecoder"),
    Family(
        "byte fallback, metaspace",
        lambda: byte_fallback(strip=False, metaspace=True),
        "PieceDecoder",
    ),
    Family("unigram", unigram, "PieceDecoder"),
    Family("unigram, clean-up", lambda: unigram(clean_up_tokenization_spaces=True), "PieceDecoder"),
    Family("word piece", word_piece, "PieceDecoder"),
    Family(
        "word piece, clean-up",
        lambda: word_piece(cleanup=False, clean_up_tokenization_spaces=True),
        "PieceDecoder",
    ),
    Family("no decoder", no_decoder, "PieceDecoder"),
    Family("replace after fuse", replaced_after_fuse, "PieceDecoder"),
    Family("raw tokenizer", lambda: byte_level()._tokenizer, "ByteLevelDecoder"),
    Family("word suffix", bpe_suffix, "WindowDecoder"),
    Family("regex", regex_replace, "WindowDecoder"),
    Family("own decode", own_decode, "WindowDecoder"),
    Family("own _decode", own_inner_decode, "WindowDecoder", exact=False),
    Family("python, sentencepiece", python_sentence_piece, "WindowDecoder"),
    Family("python, word piece", python_word_piece, "WindowDecoder"),
    Family("python, subword", python_subword, "WindowDecoder"),
    Family("python, bytes", python_bytes, "WindowDecoder"),
]
