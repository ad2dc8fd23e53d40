"""A scripted model of the test's process that is the model of a replica in another one.

The contract tests play scripts, open gates and look inside the engine that has the model. Under Ray
Serve that engine is elsewhere. So its model calls this one, over a socket, for each of its steps;
and over another it answers a test's questions about the engine.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from types import SimpleNamespace
from typing import Any

from anyio import CancelScope, create_task_group, to_thread

from anystreamer import EngineStatistics
from anystreamer.testing import ScriptedModel

from .inside import is_idle, open_states, pieces_of, share_pieces
from .scripted import until

__all__ = ["LinkedModel", "linked"]

GENERATIONS, QUESTIONS = "generations", "questions"


class LinkedModel(ScriptedModel):
    """In the replica: a model whose steps are those of the model that is linked to it."""

    def __init__(self, path: str, engine: Callable[[], Any]) -> None:
        super().__init__([])
        self._engine = engine
        self._listener = Listener(path, "AF_UNIX")
        self._generations: Connection[Any, Any]
        threading.Thread(target=self._listen, daemon=True).start()

    def generate(
        self,
        *,
        input_ids: Sequence[Sequence[int]],
        streamer: Any = None,
        stopping_criteria: Iterable[Callable[[Any, Any], bool]] = (),
        **kwargs: Any,
    ) -> list[list[int]]:
        """Play the other one's script, with this one's streamer and criteria."""
        raised: BaseException | None = None  # by one of them, which the other one's call ends with
        link = self._generations
        link.send({"input_ids": input_ids, **kwargs})
        share_pieces(self.tokenizer, link.recv())
        while True:
            what, value = link.recv()
            if what == "returns":
                sequences: list[list[int]] = value
                return sequences
            if what == "raises":
                raise raised or value
            answers: list[bool] = []
            try:
                match what:
                    case "put":
                        streamer.put(value)
                    case "end":
                        streamer.end()
                    case "asks":
                        answers = [bool(asked(value, None)) for asked in stopping_criteria]
                link.send(answers)
            except BaseException as exc:
                raised = exc
                link.send(RuntimeError(repr(exc)))

    def _listen(self) -> None:
        while True:
            link = self._listener.accept()
            if link.recv() == GENERATIONS:
                self._generations = link
                link.send(None)
            else:
                threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: Connection[Any, Any]) -> None:
        with link, self._generations, suppress(EOFError):
            while link.recv() is None:
                engine = self._engine()
                stopped = [state.should_end for state in open_states(engine)]
                link.send((stopped, engine.statistics()))


class RemoteLook:
    """In the test: an engine as `inside.py` sees it, which is in the replica."""

    def __init__(self, link: Connection[Any, Any]) -> None:
        self._link = link

    def ask(self) -> tuple[list[bool], EngineStatistics]:
        self._link.send(None)
        answer: tuple[list[bool], EngineStatistics] = self._link.recv()
        return answer

    def statistics(self) -> EngineStatistics:
        return self.ask()[1]

    @property
    def tasks(self) -> list[Any]:
        return [SimpleNamespace(state=_State(self)) for _ in self.ask()[0]]


class _State:
    """The state of one of its requests. Which of them it is is not known."""

    def __init__(self, engine: RemoteLook) -> None:
        self._engine = engine

    @property
    def should_end(self) -> bool:
        return all(self._engine.ask()[0])


@asynccontextmanager
async def linked(model: ScriptedModel, path: str) -> AsyncIterator[RemoteLook]:
    """Link *model* to the replica that listens there. Left when its engine has nothing to do."""
    with Client(path, "AF_UNIX") as generations:
        generations.send(GENERATIONS)
        generations.recv()
        async with create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, _generate, model, generations)
            with Client(path, "AF_UNIX") as questions:  # at its end the replica closes the other
                questions.send(QUESTIONS)
                engine = RemoteLook(questions)
                try:
                    yield engine
                finally:
                    model.open_gates()
                    with CancelScope(shield=True):
                        await until(lambda: is_idle(engine))


def _generate(model: ScriptedModel, link: Connection[Any, Any]) -> None:
    """Make what the replica asks for, until it closes the link."""

    def call(what: str, value: Any = None) -> list[bool]:
        link.send((what, value))
        answer: list[bool] | BaseException = link.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    streamer = SimpleNamespace(put=partial(call, "put"), end=partial(call, "end"))
    with suppress(EOFError):
        while True:
            arguments = link.recv()
            link.send(pieces_of(model.tokenizer))
            try:
                output = model.generate(
                    streamer=streamer,
                    stopping_criteria=[lambda ids, _: any(call("asks", ids))],
                    **arguments,
                )
            except BaseException as exc:
                link.send(("raises", exc))
            else:
                link.send(("returns", output))
