"""The streams of generated text that a consumer holds: of one sequence, and of several."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .._bridge import ThreadStream
from .state import GenerationState
from .types import FinishReason, Row, TextChunk, Timing, Usage

__all__ = ["BatchStream", "GenerationStream", "TextStream"]


class GenerationStream(ThreadStream[TextChunk]):
    """The part that streams of one sequence and of several have in common."""

    _kept = "; stream.text has what was delivered"
    _read_all = " or 'await stream.read()'"

    def __init__(self, state: GenerationState) -> None:
        super().__init__(state)
        self._generation = state

    @property
    def timing(self) -> Timing | None:
        """The seconds that the generation took; None until the end."""
        return self._generation.timing

    @property
    def queue_position(self) -> int | None:
        """How many requests are before this one in the queue of its engine.

        None once its turn has come, and for a stream without an engine.
        """
        ticket = self._generation.ticket
        return None if ticket is None else ticket.position

    @property
    def unread_tokens(self) -> int:
        """How many tokens have been generated that this consumer has not received yet."""
        computed, delivered = self._generation.progress()
        return max(0, computed - delivered)

    @property
    def output(self) -> Any:
        """The result of ``generate()``; None until the end, and if ``generate()`` raised."""
        return self._generation.output

    @property
    def _rows(self) -> list[Row]:
        return self._generation.rows

    def _how(self) -> str:
        reasons = Counter(row.finish_reason for row in self._rows)
        if None in reasons:
            position = self.queue_position
            return f"{position} before it" if position else ""
        if len(reasons) == 1:
            return str(next(iter(reasons)))
        return ", ".join(f"{count} {reason}" for reason, count in reasons.items())

    def _amount(self) -> str:
        _, delivered = self._generation.progress()
        return f"{delivered} tokens" if delivered else ""

    def _waiting(self) -> int:
        return self.unread_tokens


class TextStream(GenerationStream):
    """Generated text, as an `anyio.abc.ObjectReceiveStream` of `TextChunk`, which is a `str`.

    A consumer that is slower than the model gets all the text that is ready as one chunk.
    Attributes that are None during the generation are set before the iteration ends. All attributes
    can be read from any thread.
    """

    async def read(self) -> str:
        """Return the rest of the text, once it is complete.

        As with iteration, a cancelled scope around the block stops the model at once, and a scope
        inside the block stops it when the block is left. `text` then has what was delivered.

        Raises:
            BaseException: the exception of ``generate()``; `text` has the text before it.
        """
        return "".join(await self._rest())

    @property
    def text(self) -> str:
        """All the text delivered so far."""
        return self._rows[0].text

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens delivered so far; at the end, also of tokens that have no text."""
        return list(self._rows[0].token_ids)

    @property
    def textless_end(self) -> TextChunk | None:
        """The tokens after the last chunk, as a chunk without text: an end-of-sequence token.

        With ``logprobs`` it has their log-probabilities. None until the end, and if the last chunk
        has all tokens: a consumer that is slower than the model gets them joined to it.
        """
        return self._rows[0].textless_end

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ids of the prompt's tokens; empty if it has none (``inputs_embeds``, audio)."""
        return list(self._rows[0].prompt_token_ids)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the generation ended; None until then."""
        return self._rows[0].finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it; None until then, and if no stop string ended it."""
        return self._rows[0].stop_string

    @property
    def usage(self) -> Usage | None:
        """Numbers of tokens; None until the end."""
        return self._rows[0].usage

    @property
    def message(self) -> dict[str, Any] | None:
        """The answer as a chat message to append to the conversation, with ``parse_response``.

        It has everything that was generated, also after a stop or an error, except for values that
        were cut off or are malformed, such as a tool call. None until the end.
        """
        return self._rows[0].message

    @property
    def parsed(self) -> Any:
        """The answer as an object, with ``response_format``.

        An instance of the pydantic model class; the object of a JSON schema or of ``"json"``; the
        text of a `Regex`, `Choice` or `Grammar`. None until the end, and if the answer was cut off
        by a limit, a stop, a cancelled scope or an error.

        Raises:
            pydantic.ValidationError: a validator of the class, which its schema does not show, does
                not accept the answer.
        """
        return self._rows[0].parsed


class BatchStream(GenerationStream):
    """The texts of several sequences, as an `anyio.abc.ObjectReceiveStream` of `TextChunk`.

    The chunks of all rows come in one stream; ``chunk.row`` is the number of the row. Row
    ``p * n + k`` is the k-th of ``num_return_sequences=n`` answers to prompt p. The attributes are
    those of `TextStream`, as lists with one entry for each row. A row that has ended gets no more
    text, and when all rows have ended, the model stops.
    """

    async def read(self) -> list[str]:
        """Return the rest of each row's text, once all are complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has the text before it.
        """
        texts: list[list[str]] = [[] for _ in self._rows]
        for chunk in await self._rest():
            texts[chunk.row].append(chunk)
        return ["".join(chunks) for chunks in texts]

    def stop(self, row: int | None = None) -> None:
        """Ask one row to end after the current step, or all rows. Safe from any thread.

        Raises:
            IndexError: there is no row of this number.
        """
        if row is None:
            super().stop()
        else:
            self._rows[row].stop_requested = True

    @property
    def text(self) -> list[str]:
        """All the text of each row delivered so far."""
        return [row.text for row in self._rows]

    @property
    def token_ids(self) -> list[list[int]]:
        """The ids of all tokens of each row delivered so far."""
        return [list(row.token_ids) for row in self._rows]

    @property
    def textless_end(self) -> list[TextChunk | None]:
        """The tokens after the last chunk of each row; see `TextStream.textless_end`."""
        return [row.textless_end for row in self._rows]

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        """The ids of each row's prompt, without padding."""
        return [list(row.prompt_token_ids) for row in self._rows]

    @property
    def finish_reason(self) -> list[FinishReason | None]:
        """Why each row ended; None until all have."""
        return [row.finish_reason for row in self._rows]

    @property
    def stop_string(self) -> list[str | None]:
        """The stop string that ended each row; None for a row that no stop string ended."""
        return [row.stop_string for row in self._rows]

    @property
    def usage(self) -> list[Usage | None]:
        """Numbers of tokens of each row; None until the end."""
        return [row.usage for row in self._rows]

    @property
    def message(self) -> list[dict[str, Any] | None]:
        """Each row's answer as a chat message; see `TextStream.message`. None until the end."""
        return [row.message for row in self._rows]

    @property
    def parsed(self) -> list[Any]:
        """Each row's answer as an object; see `TextStream.parsed`."""
        return [row.parsed for row in self._rows]
