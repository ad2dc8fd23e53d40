"""Decoders that redo the Rust decoder one token at a time: exact, and each id is decoded once."""

from collections.abc import Sequence

from .base import TextDecoder, validated_ids
from .decoder_plan import ByteRun, Utf8Decoder, Vocabulary
from .text_stages import TextStage, end_stages


# Invariant: the text returned so far is the text of all bytes so far, except at most three, which
# the codec holds because they begin a character.
class ByteLevelDecoder(TextDecoder):
    def __init__(self, vocabulary: Vocabulary, stages: list[TextStage]) -> None:
        self._vocabulary, self._stages = vocabulary, stages
        self._table = vocabulary.table
        self._codec = Utf8Decoder("replace")

    def decode(self, token_ids: Sequence[int]) -> str:
        table = self._table
        try:
            data = b"".join([table[token_id] for token_id in token_ids])
        except (KeyError, TypeError):  # not learnt yet, or not a flat list of ints
            data = b"".join([self._vocabulary.entry(i) for i in validated_ids(token_ids)])
        text = self._codec.decode(data)
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def flush(self) -> str:
        self.exact = not self._vocabulary.take_doubt()
        return end_stages(self._stages, self._codec.decode(b"", True))


# Invariant: the text returned so far is the pieces of all tokens so far, except what the current
# run of byte tokens holds and, after the joining, the stages.
class PieceDecoder(TextDecoder):
    def __init__(self, vocabulary: Vocabulary, stages: list[TextStage], hold: bool) -> None:
        self._vocabulary, self._stages = vocabulary, stages
        self._table = vocabulary.table
        self._run = ByteRun(hold)
        self._later = False

    def decode(self, token_ids: Sequence[int]) -> str:
        table = self._table
        try:
            entries = [table[token_id] for token_id in token_ids]
        except (KeyError, TypeError):  # not learnt yet, or not a flat list of ints
            entries = [self._vocabulary.entry(i) for i in validated_ids(token_ids)]
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
        is_mixed, has_doubt = self._run.take_mixed(), self._vocabulary.take_doubt()
        self.exact = not (is_mixed or has_doubt)
        self._later = False
        return text
