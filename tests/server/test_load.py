"""The edge under load: 200 clients at once, a third of whom leave, on real servers and engines.

Who stays is answered to the letter, and of who leaves nothing remains. Many rounds of it are for
``nox -s nightly``.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import httpx
import pytest
import sniffio
from anyio import CancelScope, Event, create_task_group, get_running_tasks, sleep

from anystreamer import Engine, TextStream, open_engine
from anystreamer.demo import load_demo
from anystreamer.server import create_app

from ..conftest import installed
from ..helpers.levels import Level
from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, client_of, data_of, limited_serving

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("asyncio_complains_of_nothing", "one_thread_for_the_model"),
    LEFT_GENERATORS,
]

CLIENTS = 200
MOST = 12  # tokens of an answer
BATCHING = ["none", "continuous"]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

demo = cache(load_demo)

# As they are in use: in debug mode asyncio takes the stack at each step, which is most of the load.
LOOPS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(
        ("asyncio", {"use_uvloop": True}),
        id="uvloop",
        marks=pytest.mark.skipif(not installed("uvloop"), reason="there is none for Windows"),
    ),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def counts(usage: dict[str, Any]) -> dict[str, int]:
    """Without what depends on the requests before: how much of the prompt was in a cache."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


@dataclass(frozen=True)
class Question:
    """What clients ask, and the ids of the greedy answer to it."""

    path: str
    body: dict[str, Any]
    prompt_tokens: int
    ids: list[int]

    @classmethod
    def of(cls, path: str, body: dict[str, Any]) -> Question:
        model, tokenizer = cast("Any", demo())
        if path == TEXT:
            inputs = tokenizer(body["prompt"], return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        length = inputs["input_ids"].shape[-1]
        output = model.generate(**inputs, max_new_tokens=MOST, do_sample=False)
        return cls(path, body, length, output[0, length:].tolist())

    def answer(self, most: int) -> tuple[str, str, dict[str, int]]:
        """The text, finish reason and usage of an answer of at most so many tokens."""
        model, tokenizer = cast("Any", demo())
        ids = self.ids[:most]
        has_ended = ids[-1] == model.generation_config.eos_token_id
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(ids),
            "total_tokens": self.prompt_tokens + len(ids),
        }
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return text, "stop" if has_ended else "length", usage

    def read(self, body: str) -> tuple[str, str, dict[str, int]]:
        """The same, of what has come: an answer in one piece or in events."""
        if body.startswith("{"):  # events may begin with a comment that keeps them alive
            answer = json.loads(body)
            (choice,) = answer["choices"]
            text = choice["text"] if self.path == TEXT else choice["message"]["content"]
            return text, choice["finish_reason"], counts(answer["usage"])
        *chunks, usage, done = data_of(body)
        assert done == "[DONE]"
        assert usage["choices"] == []
        choices = [chunk["choices"][0] for chunk in chunks]
        parts = [choice if self.path == TEXT else choice["delta"] for choice in choices]
        text = "".join(part.get("text") or part.get("content") or "" for part in parts)
        return text, choices[-1]["finish_reason"], counts(usage["usage"])


@cache
def questions() -> list[Question]:
    numbers = "one two three four five six seven eight nine ten".split()
    texts = [f"An increasing sequence: {number}," for number in numbers] + [
        "递增数列:",
        "The hours:",
    ]
    counts = zip(numbers, numbers[3:], strict=False)
    chats = [f"Count from {first} to {last}." for first, last in counts]
    return [
        *(Question.of(TEXT, {"prompt": text}) for text in texts),
        *(Question.of(CHAT, {"messages": [{"role": "user", "content": chat}]}) for chat in chats),
    ]


@cache
def long_questions() -> list[Question]:
    """No two of which are the same."""
    counting = "one, two, three, " * 100
    return [
        Question.of(TEXT, {"prompt": f"{number}: {counting}"}) for number in range(CLIENTS // 9 + 1)
    ]


class Load:
    """An engine behind a server, its clients, and what became of them."""

    def __init__(self, engine: Engine, url: str, may_refuse: bool) -> None:
        self.engine = engine
        self.url = url
        self.may_refuse = may_refuse
        self.rng = random.Random(6)
        self.outcomes: Counter[str] = Counter()
        self.answered: list[Event] = []  # each is set by one answer
        self.streams: dict[str, TextStream] = {}  # by prompt
        self.turns: dict[str, Event] = {}  # of those that want to know of it, by prompt
        self._stream_text = engine.stream_text
        engine.stream_text = self.stream_text  # type: ignore[assignment, method-assign]

    @asynccontextmanager
    async def stream_text(self, prompt: Any, **arguments: Any) -> AsyncIterator[TextStream]:
        """The engine's, watched."""
        async with self._stream_text(prompt, **arguments) as stream:
            self.streams[str(prompt)] = stream
            try:
                yield stream
            finally:
                if stream.finish_reason is None:  # not at its end
                    is_waiting = stream.queue_position is not None
                    place = "answer" if stream.token_ids else "line" if is_waiting else "prefill"
                    self.outcomes[f"left in the {place}"] += 1

    async def round(self, clients: int) -> None:
        """So many clients at once, every third of whom leaves."""
        self.answered = [Event() for _ in range(clients)]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with client_of(self.url, limits=limits, timeout=None) as client:
            async with create_task_group() as watching:
                watching.start_soon(self.watch_turns)
                async with create_task_group() as tasks:
                    for number in range(clients):
                        tasks.start_soon(Visit(self, client, number).run)
                watching.cancel_scope.cancel()
            await self.check_that_nothing_is_left(client)
        self.streams.clear()
        self.turns.clear()

    async def watch_turns(self) -> None:
        while True:
            for prompt, turn in self.turns.items():
                if (stream := self.streams.get(prompt)) and stream.queue_position is None:
                    turn.set()
            await sleep(0.002)

    async def check_that_nothing_is_left(self, client: httpx.AsyncClient) -> None:
        statistics = self.engine.statistics
        await until(lambda: not (statistics().running or statistics().waiting))
        # From now on the model does what one client asks, and nothing else.
        before = statistics().computed_tokens
        question = questions()[0]
        with passes() as counted:
            body = {**question.body, "max_tokens": MOST}
            response = await client.post(question.path, json=body)
            assert question.read(response.text) == question.answer(MOST)
            await until(lambda: not statistics().running)
        assert statistics().computed_tokens - before == MOST
        # With continuous batching the manager may still begin one for whoever left last.
        assert MOST <= len(counted) <= MOST + 1


class Visit:
    """One client: what it asks, and when it leaves."""

    def __init__(self, load: Load, client: httpx.AsyncClient, number: int) -> None:
        rng = load.rng
        self.load = load
        self.client = client
        self.question = rng.choice(questions())
        self.most_tokens = rng.randint(1, MOST)
        self.most_events = 10**6
        self.moment: Event | None = None
        streams = rng.random() < 0.6
        if number % 9 == 0:  # in the line, or just before its answer
            self.moment = rng.choice(load.answered[: len(load.answered) // 2])
        elif number % 9 == 3:  # in prefill, of a prompt that takes a while
            self.question = long_questions()[number // 9]
            self.moment = load.turns[self.question.body["prompt"]] = Event()
        elif number % 9 == 6:  # in the answer
            streams, self.most_tokens, self.most_events = True, MOST, rng.randint(1, 4)
        self.body = {**self.question.body, "max_tokens": self.most_tokens}
        if streams:
            self.body |= {"stream": True, "stream_options": {"include_usage": True}}

    async def run(self) -> None:
        async with create_task_group() as tasks:
            if self.moment is not None:
                tasks.start_soon(self._leave, self.moment, tasks.cancel_scope)
            await self._ask()
            tasks.cancel_scope.cancel()

    async def _leave(self, moment: Event, scope: CancelScope) -> None:
        await moment.wait()
        scope.cancel()

    async def _ask(self) -> None:
        load, question = self.load, self.question
        text = ""
        async with self.client.stream("POST", question.path, json=self.body) as response:
            async for part in response.aiter_text():
                text += part
                if text.count("data: ") > self.most_events:
                    return
        if response.status_code == 503 and load.may_refuse:
            assert int(response.headers["retry-after"]) > 0
            error = json.loads(text)["error"]
            assert (error["type"], error["code"]) == ("server_error", "engine_busy")
            load.outcomes["refused"] += 1
        else:
            assert response.status_code == 200, text
            assert question.read(text) == question.answer(self.most_tokens)
            load.outcomes["answered"] += 1
        next(event for event in load.answered if not event.is_set()).set()


@contextmanager
def passes() -> Iterator[list[object]]:
    """Those that the model makes in the block."""
    counted: list[object] = []
    hook = demo()[0].register_forward_hook(lambda *_: counted.append(None))
    try:
        yield counted
    finally:
        hook.remove()


# By day the usual one of each loop. hypercorn on asyncio has the code of hypercorn on trio, but for
# its sockets.
each_server = pytest.mark.parametrize(
    "server", [pytest.param("", id="usual"), pytest.param("hypercorn", marks=pytest.mark.variant)]
)


@asynccontextmanager
async def load_of(
    batching: Any, server: str = "", max_waiting: int | None = None
) -> AsyncIterator[Load]:
    questions(), long_questions()  # before the loop has anything to do
    # Few at once, so that there is a line.
    kind: dict[str, Any] = {"max_running": 4} if batching == "continuous" else {}
    # Kept caches would be objects that stay.
    kind |= {"reuse_cache": False} if batching == "none" else {}
    async with open_engine(*demo(), batching=batching, max_waiting=max_waiting, **kind) as engine:
        usual = "hypercorn" if sniffio.current_async_library() == "trio" else "uvicorn"
        async with limited_serving(create_app(engine), server or usual) as url:
            yield Load(engine, url, may_refuse=max_waiting is not None)


@pytest.fixture(autouse=True)
def nothing_fails_in_the_server(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.ERROR, logger="asyncio")  # its slow callbacks would fill the log
    yield
    assert not [record for record in caplog.get_records("call") if record.levelname == "ERROR"]


@pytest.mark.heavy
@each_server
@pytest.mark.parametrize("batching", BATCHING)
async def test_who_stays_is_answered_and_who_leaves_is_gone(batching: str, server: str) -> None:
    async with load_of(batching, server) as load:
        await load.round(CLIENTS)
    print(load.outcomes)
    assert load.outcomes["answered"] >= CLIENTS * 2 // 3
    places = {outcome for outcome, count in load.outcomes.items() if count}
    assert places >= {"left in the line", "left in the prefill", "left in the answer"}


@pytest.mark.heavy
@each_server
@pytest.mark.parametrize("batching", BATCHING)
async def test_only_clients_that_find_no_room_get_an_error(batching: str, server: str) -> None:
    async with load_of(batching, server, max_waiting=10) as load:
        await load.round(CLIENTS)
    print(load.outcomes)
    assert load.outcomes["answered"] > 0
    assert load.outcomes["refused"] > 0


ROUNDS = [
    pytest.param(4, 30, id="short"),
    pytest.param(100, CLIENTS, id="long", marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("rounds", "clients"), ROUNDS)
@pytest.mark.parametrize("batching", BATCHING)
async def test_memory_stays_flat(batching: str, rounds: int, clients: int) -> None:
    levels = []
    async with load_of(batching) as load:
        await load.round(3)  # what is begun at the first request is there from now on
        idle = await Level.now()
        for _ in range(rounds):
            await load.round(clients)
            await until(lambda: len(get_running_tasks()) <= idle.tasks)  # connections are closed
            levels.append(await Level.now())
            print(levels[-1])
    print(load.outcomes)
    half = rounds // 2
    least = [
        {name: min(getattr(level, name) for level in part) for name in vars(levels[0])}
        for part in (levels[:half], levels[half:])
    ]
    grown = {name: least[1][name] - least[0][name] for name in least[0]}
    assert grown["threads"] <= 2  # the pool's
    assert grown["files"] <= 0
    # A request that is held has a stream, its chunks and a task: dozens of objects.
    assert grown["objects"] < 500
    assert grown["resident"] < 2**23
