"""A scripted model, for tests of code that uses this library. Needs no torch."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import sleep
from types import SimpleNamespace
from typing import Any, NoReturn

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["Gate", "Script", "ScriptedModel", "ScriptedTokenizer"]

# Ids of characters are their code points; ids of a script's pieces come after all of them.
_FIRST_PIECE = 0x110000
_EOS = _FIRST_PIECE - 1

# Seconds between two looks at what a thread does.
_POLL = 0.001


class Gate:
    """Where a scripted model halts in the middle of a step until the test lets it go on."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def open(self) -> None:
        """Let the model pass, now or when it comes."""
        self._opened.set()

    async def reached(self) -> None:
        """Wait until the model stands before the gate."""
        await checkpoint()
        while not self._reached.is_set():  # no thread waits: it would outlive a test that fails
            await anyio.sleep(_POLL)

    def _pass(self) -> None:
        self._reached.set()
        self._opened.wait()


Script = Iterable[str | float | Gate | BaseException]
"""What a `ScriptedModel` plays."""


class ScriptedTokenizer:
    """The tokenizer of a `ScriptedModel`: a token is a character, or a piece of the script."""

    eos_token_id: int = _EOS  #: ends each script

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def __call__(self, text: str | Sequence[str], **kwargs: Any) -> dict[str, list[list[int]]]:
        """Encode one text, or several."""
        texts = [text] if isinstance(text, str) else text
        return {"input_ids": [[ord(character) for character in each] for each in texts]}

    def apply_chat_template(
        self, messages: Iterable[Mapping[str, str]], **kwargs: Any
    ) -> dict[str, list[list[int]]]:
        """Encode chat messages, a line each, and the beginning of the answer."""
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return self("".join([*lines, "assistant: "]))

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Decode ids of characters and of pieces."""
        return "".join(self._text(token_id, skip_special_tokens) for token_id in token_ids)

    def _text(self, token_id: int, skip_special_tokens: bool) -> str:
        if token_id == _EOS:
            return "" if skip_special_tokens else "<eos>"
        return self._pieces[token_id - _FIRST_PIECE] if token_id > _EOS else chr(token_id)

    def _add(self, piece: str) -> int:
        self._pieces.append(piece)
        return _FIRST_PIECE + len(self._pieces) - 1


class ScriptedModel:
    """A model that plays a script, for ``stream_text(model, model.tokenizer, prompt)``.

    Args:
        script: what each call of ``generate()`` plays, in order. A `str` is a token with that
            text; a number is a pause of so many seconds, and a `Gate` one until the test opens it,
            both inside of the step that follows; an exception is raised. At the script's end comes
            an end-of-sequence token.
        prefill: seconds from the call to the first step. Like a real one, it cannot be stopped.
        delay: seconds for each token.

    Raises:
        TypeError: something in *script* is none of these.
    """

    uses_torch: bool = False  #: `stream_text` hands it lists, not tensors

    def __init__(
        self,
        script: Script,
        *,
        prefill: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self.tokenizer: ScriptedTokenizer = ScriptedTokenizer()  #: to be given along with it
        self.generation_config: SimpleNamespace = SimpleNamespace(eos_token_id=_EOS)
        self.steps: int = 0  #: tokens made so far, over all calls
        self.calls: list[dict[str, Any]] = []  #: the arguments of each call
        self.is_generating: bool = False  #: whether a call of ``generate()`` has not returned
        self._prefill = prefill
        self._delay = delay
        self._script: list[_Play] = []
        self._gates: list[Gate] = []
        for item in script:
            if isinstance(item, str):
                self._script.append(partial(self._step, self.tokenizer._add(item)))
            elif isinstance(item, BaseException):
                self._script.append(partial(_fail, item))
            elif isinstance(item, Gate):
                self._gates.append(item)
                self._script.append(partial(_pause, item._pass))
            elif isinstance(item, int | float):
                self._script.append(partial(_pause, partial(sleep, item)))
            else:
                raise TypeError(f"a script has str, seconds, Gate and exceptions, not {item!r}")
        self._script.append(partial(self._step, _EOS))

    def generate(
        self,
        *,
        input_ids: Sequence[Sequence[int]],
        streamer: Any = None,
        stopping_criteria: Iterable[Callable[[Any, Any], bool]] = (),
        max_new_tokens: float = math.inf,
        **kwargs: Any,
    ) -> list[list[int]]:
        """Play the script as transformers' ``generate()`` would generate: one row of ids.

        Raises:
            BaseException: an exception of the script, when its turn has come.
        """
        self.calls.append({"input_ids": input_ids, "max_new_tokens": max_new_tokens, **kwargs})
        self.is_generating = True
        try:
            (prompt,) = input_ids
            sequence = [*prompt]
            if streamer is not None:
                streamer.put([sequence])
            sleep(self._prefill)
            for play in self._script:
                token_id = play()
                if token_id is None:
                    continue
                sequence.append(token_id)
                # Asked before put(), as transformers does, and each one of them.
                answers = [asked([sequence], None) for asked in stopping_criteria]
                if streamer is not None:
                    streamer.put([token_id])
                if any(answers) or len(sequence) - len(prompt) >= max_new_tokens:
                    break
            if streamer is not None:
                streamer.end()
            return [sequence]
        finally:
            self.is_generating = False

    def open_gates(self) -> None:
        """Open every gate of the script, as a test does when it is over."""
        for gate in self._gates:
            gate.open()

    def _step(self, token_id: int) -> int:
        sleep(self._delay)
        self.steps += 1
        return token_id


_Play = Callable[[], int | None]


def _pause(wait: Callable[[], object]) -> None:
    wait()


def _fail(error: BaseException) -> NoReturn:
    raise error
