"""Links a scripted model in the test's process to a replica of Ray Serve in another process.

The contract tests play scripts, open gates and look inside the engine that has the model. Under Ray
Serve, that engine is in a replica. There, `LinkedModel` calls the test's model over a socket for
each step. Over a second socket, it answers the test's questions about the engine.
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
    """In the replica: a model that does in each step what the linked model does."""

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
        """Play the linked model's script, with the streamer and the criteria given here."""
        raised: BaseException | None = None  # by the streamer or a criterion: it ends both calls
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
    """In the test: stands for the engine in the replica, for the functions of `inside.py`."""

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
    """Stands for the state of a request. The replica does not say which request it is."""

    def __init__(self, engine: RemoteLook) -> None:
        self._engine = engine

    @property
    def should_end(self) -> bool:
        return all(self._engine.ask()[0])


@asynccontextmanager
async def linked(model: ScriptedModel, path: str) -> AsyncIterator[RemoteLook]:
    """Link *model* to the replica that listens at *path*, until its engine has no more requests."""
    with Client(path, "AF_UNIX") as generations:
        generations.send(GENERATIONS)
        generations.recv()
        async with create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, _generate, model, generations)
            with Client(path, "AF_UNIX") as questions:  # when it ends, the replica closes both
                questions.send(QUESTIONS)
                engine = RemoteLook(questions)
                try:
                    yield engine
                finally:
                    model.open_gates()
                    with CancelScope(shield=True):
                        await until(lambda: is_idle(engine))


def _generate(model: ScriptedModel, link: Connection[Any, Any]) -> None:
    """Generate what the replica requests, until it closes the link."""

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
