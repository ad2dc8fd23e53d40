"""For tests of code that streams: a scripted model, gates, and a check for workers left running.

It needs neither torch nor pytest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import sleep
from types import SimpleNamespace
from typing import Any, NoReturn, cast

from ._gate import Gate
from ._generate_arguments import check_arguments, effective_arguments, max_new_tokens
from ._workers import no_worker_left

__all__ = ["Gate", "Script", "ScriptedModel", "ScriptedTokenizer", "no_worker_left"]

# The id of a character is its code point. The ids of a script's tokens come after all of them.
_FIRST_TOKEN = 0x110000
_EOS = _FIRST_TOKEN - 1

Script = Iterable[str | float | Gate | BaseException]
"""What a `ScriptedModel` plays."""


class ScriptedTokenizer:
    """The tokenizer of a `ScriptedModel`: a token is a character, or a string of the script."""

    eos_token_id: int = _EOS  #: the last token of each script

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def __call__(self, text: str | Sequence[str], **kwargs: Any) -> dict[str, list[list[int]]]:
        """Encode one text, or several."""
        texts = [text] if isinstance(text, str) else text
        return {"input_ids": [[ord(character) for character in each] for each in texts]}

    def apply_chat_template(
        self,
        messages: Iterable[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> dict[str, list[list[int]]]:
        """Encode chat messages, each as a line such as ``user: Hello``.

        Args:
            messages: each with a role and a content.
            add_generation_prompt: add the beginning of an answer, ``assistant:``.
            continue_final_message: leave the last line open, for an answer that goes on.
            kwargs: not used, as by a template that does not know them.

        Raises:
            ValueError: both of these were passed.
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "add_generation_prompt and continue_final_message exclude each other: pass one"
            )
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        if continue_final_message:
            text = text.removesuffix("\n")
        return self(f"{text}assistant: " if add_generation_prompt else text)

    def add(self, text: str) -> int:
        """Add a token with this text. Returns its id."""
        self._pieces.append(text)
        return _FIRST_TOKEN + len(self._pieces) - 1

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Decode ids of characters and of the script's tokens. Others have no text."""
        return "".join(self._text(token_id, skip_special_tokens) for token_id in token_ids)

    def _text(self, token_id: int, skip_special_tokens: bool) -> str:
        if token_id == _EOS:
            return "" if skip_special_tokens else "<eos>"
        if token_id > _EOS:
            number = token_id - _FIRST_TOKEN
            return self._pieces[number] if number < len(self._pieces) else ""
        return "" if 0xD800 <= token_id < 0xE000 else chr(token_id)  # half a character of UTF-16


class ScriptedModel:
    """A model that plays a script, for ``stream_text(model, model.tokenizer, prompt)``.

    It refuses arguments that ``generate()`` of transformers refuses: unknown names, and values that
    cannot work. The accepted ones do not change the script, except ``max_new_tokens`` and
    ``max_length``, which can end it.

    Args:
        script: what each call of ``generate()`` plays, in order. A `str` is a token with that text;
            a number is a pause of that many seconds, and a `Gate` one until the test opens it, both
            within the step that follows; an exception is raised. After the script comes an
            end-of-sequence token.
        prefill: seconds from the call to the first step. Like a real prefill, it cannot be stopped.
        delay: seconds for each token.

    Raises:
        TypeError: something in *script* is none of these.
        ValueError: a time is negative.
    """

    uses_torch: bool = False  #: `stream_text` passes it lists of ids, not tensors

    def __init__(
        self,
        script: Script,
        *,
        prefill: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        _check_seconds("prefill", prefill)
        _check_seconds("delay", delay)
        self.tokenizer: ScriptedTokenizer = ScriptedTokenizer()  #: pass it along with the model
        self.generation_config: SimpleNamespace = SimpleNamespace(eos_token_id=_EOS)
        self.steps: int = 0  #: tokens generated so far, in all calls
        self.calls: list[dict[str, Any]] = []  #: the arguments of each call
        self.is_generating: bool = False  #: whether a call of ``generate()`` has not returned yet
        self._prefill = prefill
        self._delay = delay
        self._gates: list[Gate] = []
        # Ids and calls. A script can have 100,000 tokens: an id costs next to nothing.
        self._script: list[_Play] = [self._play_of(item) for item in script]
        self._script.append(_EOS)

    def generate(
        self,
        *,
        input_ids: Sequence[Sequence[int]],
        streamer: Any = None,
        stopping_criteria: Iterable[Callable[[Any, Any], bool]] = (),
        **kwargs: Any,
    ) -> list[list[int]]:
        """Play the script in the way that transformers' ``generate()`` generates one row of ids.

        Raises:
            ValueError, TypeError: for an argument that transformers' ``generate()`` refuses.
            BaseException: an exception of the script, when it is reached.
        """
        self.calls.append({"input_ids": input_ids, "max_new_tokens": math.inf, **kwargs})
        arguments = effective_arguments(kwargs)
        check_arguments(arguments)
        if len(input_ids) != 1:
            raise ValueError(f"a ScriptedModel generates one row, got {len(input_ids)} prompts")
        sequence = [*input_ids[0]]
        end = len(sequence) + max_new_tokens(arguments, len(sequence))
        self.is_generating = True
        try:
            if streamer is not None:
                streamer.put([sequence])
            sleep(self._prefill)
            for play in self._script:
                if not isinstance(play, int):
                    play()
                    continue
                sleep(self._delay)
                self.steps += 1
                sequence.append(play)
                # All of them, and before put(), as transformers does.
                should_stop = [criterion([sequence], None) for criterion in stopping_criteria]
                if streamer is not None:
                    streamer.put([play])
                if any(should_stop) or len(sequence) >= end:
                    break
            if streamer is not None:
                streamer.end()
            return [sequence]
        finally:
            self.is_generating = False

    def open_gates(self) -> None:
        """Open every gate of the script, as at the end of a test."""
        for gate in self._gates:
            gate.open()

    def _play_of(self, item: str | float | Gate | BaseException) -> _Play:
        # By the type: an exception can refuse isinstance(), which asks for its `__class__`.
        if issubclass(type(item), str):
            return self.tokenizer.add(cast("str", item))
        if issubclass(type(item), BaseException):
            return partial(_fail, cast("BaseException", item))
        if isinstance(item, Gate):
            self._gates.append(item)
            return item.wait
        _check_seconds("a pause in a script", item)
        return partial(sleep, cast("float", item))


# The id of a token, or a call that waits or raises.
_Play = int | Callable[[], object]


def _fail(error: BaseException) -> NoReturn:
    raise error


def _check_seconds(name: str, seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(
            f"{name} must be a number of seconds, got {seconds!r}; a script has str, seconds, Gate "
            "and exceptions"
        )
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be at least 0 seconds and finite, got {seconds!r}")
