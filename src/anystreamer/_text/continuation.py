"""Decodes an answer as the continuation of its prompt: what it adds to the prompt's text."""

from collections.abc import Callable, Sequence

from .base import TextDecoder, common_prefix

# Tokens of the prompt that are decoded along, if they have text that can stand at the beginning.
CONTEXT = 16


# The beginning of a text is decoded in its own way: many decoders drop a space there. So the
# prompt's last tokens are decoded first, and their text is left out. What the decoder holds of it
# (half a character, a space before a mark) can still change: it is left out if it comes unchanged.
class ContinuationDecoder(TextDecoder):
    """Joined, its texts are what the answer adds to `decode(prompt)` in `decode(prompt + answer)`.

    Args:
        new_decoder: makes a decoder of the tokenizer, as `text_decoder` does.
        prompt_ids: the tokens of the prompt.
    """

    def __init__(self, new_decoder: Callable[[], TextDecoder], prompt_ids: Sequence[int]) -> None:
        self._decoder = new_decoder()
        context, text = _context(new_decoder, prompt_ids)
        self._left_out = text[len(self._decoder.decode(context)) :]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._without_prompt(self._decoder.decode(token_ids))

    def flush(self) -> str:
        text = self._without_prompt(self._decoder.flush())
        self.exact, self._left_out = self._decoder.exact, ""
        return text

    def _without_prompt(self, text: str) -> str:
        if not (self._left_out and text):
            return text
        same = common_prefix(text, self._left_out)
        self._left_out = self._left_out[same:] if same == len(text) else ""
        return text[same:]


def _context(
    new_decoder: Callable[[], TextDecoder], prompt_ids: Sequence[int]
) -> tuple[Sequence[int], str]:
    """The prompt's last tokens, and their text. More of them where these have none, or half of it.

    A text of special tokens and spaces alone does not show what a decoder does after a text, and
    one that begins with U+FFFD can have lost the beginning of a character.
    """
    decoder, count = new_decoder(), CONTEXT
    while True:
        context = prompt_ids[-count:]
        text = decoder.decode(context) + decoder.flush()
        if count >= len(prompt_ids) or (text.strip() and not text.startswith("\ufffd")):
            return context, text
        count *= 2
