"""The server under Ray Serve, on a real cluster of two nodes: what is lost with a part of it, and
what is not.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .helpers.remote_engines import remote_engine
from .helpers.scripted import CLUSTER_PATIENCE, CLUSTER_TIMEOUT
from .helpers.serving import data_of
from .helpers.two_nodes import MOST_WAITING, Cluster, idle

with warnings.catch_warnings():  # of Ray's own, at its import
    warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
    from ray.serve.schema import ServeDeploySchema

from anystreamer import Engine, EngineBusy, open_engine
from anystreamer.ray import Settings, _Replica, error_objects
from anystreamer.testing import ScriptedModel

# The cluster starts within the time of the first test, and a replica within that of others.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLUSTER_TIMEOUT)]

TEXT = "/v1/completions"
NUMBERS = "one two three four five six seven eight nine ten".split()
SHORT = 2
LONG = 800  # tokens: seconds of the model's time


# It runs in Serve's own loop. That of the clients makes no difference.
@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def replicas(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Both, by their names; when what the last test has broken is whole again."""
    return {each["replica_id"]: each for each in cluster.do("replicas", number=2)}


def question(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    prompt = f"An increasing sequence: {NUMBERS[number % len(NUMBERS)]},"
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """What the model answers to each question, by its prompt."""
    import torch

    from anystreamer.demo import load_demo

    model, tokenizer = load_demo()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the replicas have the rest
    texts: dict[str, str] = {}
    for number in range(len(NUMBERS)):
        prompt = question(number, LONG)["prompt"]
        inputs = tokenizer(prompt, return_tensors="pt")
        most = LONG if number < 2 else SHORT
        ids = model.generate(**inputs, max_new_tokens=most, do_sample=False)[0]  # type: ignore[misc]
        texts[prompt] = str(tokenizer.decode(ids[inputs["input_ids"].shape[1] :]))
    torch.set_num_threads(threads)
    return texts


class Stream:
    """An open answer: which replica it comes from, and what has come of it."""

    def __init__(self, prompt: str, response: httpx.Response) -> None:
        self.prompt = prompt
        self.replica = response.headers["x-replica"]
        self.body = ""
        self._parts = response.aiter_text()

    async def read_some(self) -> None:
        while self.body.count("data: ") < 5:
            self.body += await anext(self._parts)

    async def read(self) -> None:
        async for part in self._parts:
            self.body += part

    @property
    def text(self) -> str:
        """All but an event that was cut off."""
        whole = self.body.rpartition("\n\n")[0] + "\n\n"
        events = [each for each in data_of(whole) if each != "[DONE]"]
        return "".join(choice["text"] for each in events for choice in each["choices"])


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, number: int) -> AsyncIterator[Stream]:
    body = question(number, LONG, stream=True)
    async with client.stream("POST", TEXT, json=body) as response:
        assert response.status_code == 200
        stream = Stream(body["prompt"], response)
        await stream.read_some()
        yield stream


@asynccontextmanager
async def one_of_each(client: httpx.AsyncClient) -> AsyncIterator[dict[str, Stream]]:
    """A stream of each replica, by its name: the second request goes where there is none yet."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(streaming(client, each)) for each in (0, 1)]
        yield {each.replica: each for each in streams}


# -- as it should be


async def test_requests_land_on_both_nodes(
    cluster: Cluster, replicas: dict[str, dict[str, Any]], reference: dict[str, str]
) -> None:
    assert len({each["node_id"] for each in replicas.values()}) == 2
    async with cluster.client() as client, one_of_each(client) as streams:
        assert streams.keys() == replicas.keys()
        for stream in streams.values():
            await stream.read()
            assert data_of(stream.body)[-1] == "[DONE]"
            assert stream.text == reference[stream.prompt]


@pytest.mark.parametrize(
    "requests",
    [200, pytest.param(50_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])],
)
async def test_thousands_of_requests_and_every_answer_is_right(
    cluster: Cluster, replicas: dict[str, dict[str, Any]], reference: dict[str, str], requests: int
) -> None:
    answered = dict.fromkeys(replicas, 0)
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            body = question(number, SHORT)
            response = await client.post(TEXT, json=body)
            assert response.status_code == 200, response.text
            answer = response.json()
            assert answer["usage"]["completion_tokens"] == SHORT
            assert answer["choices"][0]["text"]
            assert reference[body["prompt"]].startswith(answer["choices"][0]["text"])
            answered[response.headers["x-replica"]] += 1

    async with cluster.client() as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(work)
    assert sum(answered.values()) == requests
    assert min(answered.values()) > requests / 10


async def left_after(cluster: Cluster, replicas: dict[str, Any], seconds: float | None) -> float:
    """How many tokens the models have made for a client that has left.

    Without *seconds* it leaves a stream whose text has begun; with, a whole answer.
    """
    name = "anystreamer_computed_tokens_total"
    async with cluster.client() as client:
        before = [(await idle(client, each))[name] for each in replicas]
        if seconds is None:
            async with streaming(client, 0):
                pass
        else:
            with anyio.move_on_after(seconds):
                await client.post(TEXT, json=question(0, LONG))
        return sum([(await idle(client, each))[name] for each in replicas]) - sum(before)


def outcomes(figures: list[dict[str, float]], outcome: str) -> float:
    """How many requests for completions have ended so."""
    name = f'anystreamer_http_requests_total{{endpoint="completions",outcome="{outcome}"}}'
    return sum(each.get(name, 0.0) for each in figures)


def reasons(figures: list[dict[str, float]], reason: str) -> float:
    """How many answers have ended for that reason."""
    name = f'anystreamer_http_answers_total{{finish_reason="{reason}"}}'
    return sum(each.get(name, 0.0) for each in figures)


async def test_a_client_that_leaves_stops_the_model(
    cluster: Cluster, replicas: dict[str, dict[str, Any]]
) -> None:
    async with cluster.client() as client:
        before = [await idle(client, each) for each in replicas]
        assert 0 < await left_after(cluster, replicas, None) < LONG
        after = [await idle(client, each) for each in replicas]
    assert outcomes(after, "disconnected") - outcomes(before, "disconnected") == 1
    assert reasons(after, "cancelled") - reasons(before, "cancelled") == 1
    assert outcomes(after, "failed") == outcomes(before, "failed")
    assert reasons(after, "error") == reasons(before, "error")


async def test_a_client_that_does_not_wait_for_its_answer_stops_the_model(
    cluster: Cluster, replicas: dict[str, dict[str, Any]]
) -> None:
    seconds, made = 0.1, 0.0
    async with cluster.client() as client:
        before = [await idle(client, each) for each in replicas]
        while not made:  # what it asked for had not come to the model
            made = await left_after(cluster, replicas, seconds)
            seconds *= 1.5
        after = [await idle(client, each) for each in replicas]
    assert made < LONG
    assert outcomes(after, "disconnected") > outcomes(before, "disconnected")
    assert reasons(after, "cancelled") > reasons(before, "cancelled")
    for outcome in ("200", "500", "failed"):
        assert outcomes(after, outcome) == outcomes(before, outcome)


async def test_what_is_too_much_gets_503_at_once(
    cluster: Cluster, replicas: dict[str, dict[str, Any]]
) -> None:
    refused: list[httpx.Response] = []
    both_are_full = anyio.Event()

    async def ask() -> None:
        # Who has been served asks again, so that they stay full.
        while (response := await client.post(TEXT, json=question(0, LONG))).status_code == 200:
            pass
        refused.append(response)
        both_are_full.set()

    async def refusal_of(engine: Engine) -> EngineBusy:
        while True:  # a place may have come free just then: leave it, and ask again
            with anyio.move_on_after(1.0):
                try:
                    async with engine.stream_text("hi"):
                        pass
                except EngineBusy as refusal:
                    return refusal

    async with cluster.client() as client:
        with anyio.fail_after(CLUSTER_PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(60):
                    tasks.start_soon(ask)
                await both_are_full.wait()
                async with remote_engine(cluster.url, "anystreamer-demo") as engine:
                    assert (await refusal_of(engine)).retry_after == 1
                tasks.cancel_scope.cancel()
        assert {each.status_code for each in refused} == {503}
        assert {each.headers["retry-after"] for each in refused} == {"1"}
        for response in refused:  # by Serve's proxy, and not by a replica
            assert "x-replica" not in response.headers
            assert response.json()["error"] == {
                "message": "the server is busy: try again later",
                "type": "server_error",
                "param": None,
                "code": "engine_busy",
            }
        # And all of that is forgotten with its clients.
        for each in replicas:
            await idle(client, each)
        assert (await client.post(TEXT, json=question(0, 3))).status_code == 200


async def test_a_response_has_the_id_that_is_in_the_log_of_its_replica(
    cluster: Cluster, replicas: dict[str, dict[str, Any]]
) -> None:
    async with cluster.client() as client:
        for headers in ({}, {"x-request-id": "of-the-client"}):
            response = await client.post(TEXT, json=question(0, SHORT), headers=headers)
            (found,) = response.headers.get_list("x-request-id")
            assert len(found) > 20 or found == headers["x-request-id"]
            record = await logged(cluster, found)
            assert (record["method"], record["path"], record["status"]) == ("POST", TEXT, 200)
            assert record["completion_tokens"] == SHORT


async def logged(cluster: Cluster, request_id: str) -> dict[str, Any]:
    """The record of a request in the log of its replica. Ray keeps one of each worker."""
    with anyio.fail_after(CLUSTER_PATIENCE):
        while True:
            for path in Path(cluster.folder).glob("ray/session_2*/logs/worker-*.err"):
                for line in path.read_text(errors="replace").splitlines():
                    if request_id in line:
                        record: dict[str, Any] = json.loads(line)
                        return record
            await anyio.sleep(0.1)


async def test_prometheus_gets_the_metrics_of_each_replica(
    cluster: Cluster, replicas: dict[str, dict[str, Any]]
) -> None:
    async with cluster.client() as client:
        for number in range(20):
            assert (await client.post(TEXT, json=question(number, SHORT))).status_code == 200
    names = ("requests_running", "http_requests_total", "total_seconds_bucket", "limit")
    missing = {(name, replica) for name in names for replica in replicas}
    with anyio.fail_after(CLUSTER_PATIENCE):
        while missing:
            await anyio.sleep(0.5)
            text = await anyio.to_thread.run_sync(cluster.do, "metrics")
            for name, replica in [*missing]:
                line = rf'^ray_anystreamer_{name}\{{.*replica="[^"]*{replica}".*\}} [0-9.e+]+'
                if re.search(line, text, re.MULTILINE):
                    missing.remove((name, replica))
    assert 'le="600.0"' in text
    assert 'application="default"' in text


@pytest.mark.nightly
async def test_replicas_come_and_go_with_the_load(cluster: Cluster) -> None:
    """Serve counts the requests that wait in its queue, too."""
    await anyio.to_thread.run_sync(lambda: cluster.do("scale", seconds=3))
    answered: set[str] = set()

    async def running() -> int:
        return int(await anyio.to_thread.run_sync(lambda: cluster.do("running", name="scaling")))

    async def ask() -> None:
        while True:
            response = await client.post(f"/scaling{TEXT}", json=question(0, LONG))
            assert response.status_code == 200
            answered.add(response.headers["x-replica"])

    try:
        assert await running() == 1
        async with cluster.client() as client:
            with anyio.fail_after(CLUSTER_PATIENCE):
                async with anyio.create_task_group() as load:
                    for _ in range(6):  # five of them wait
                        load.start_soon(ask)
                    while await running() < 2 or len(answered) < 2:
                        await anyio.sleep(0.2)
                    load.cancel_scope.cancel()
            with anyio.fail_after(CLUSTER_PATIENCE):
                while await running() > 1:
                    await anyio.sleep(0.2)
            assert (await client.post(f"/scaling{TEXT}", json=question(0, 3))).status_code == 200
    finally:
        await anyio.to_thread.run_sync(lambda: cluster.do("delete", name="scaling"))


# -- what breaks


async def test_a_killed_replica_takes_its_own_streams_with_it(
    cluster: Cluster, replicas: dict[str, dict[str, Any]], reference: dict[str, str]
) -> None:
    """And nothing of a request that waits: another replica takes it."""
    waiting: list[httpx.Response] = []

    async def wait_in_line() -> None:
        waiting.append(await client.post(TEXT, json=question(2, SHORT)))

    async with cluster.client() as client, one_of_each(client) as streams:
        killed, other = streams
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_in_line)
            await anyio.sleep(0.2)  # it is in the line now, or comes to it later
            os.kill(replicas[killed]["pid"], signal.SIGKILL)
            await check_what_is_left(client, streams[killed], streams[other], reference)
        (response,) = waiting
        assert response.status_code == 200
        assert response.headers["x-replica"] != killed
        text = response.json()["choices"][0]["text"]
        assert reference[question(2, SHORT)["prompt"]].startswith(text)
    cluster.do("replicas", number=2)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
async def test_a_replica_is_killed_at_any_moment(
    cluster: Cluster, reference: dict[str, str]
) -> None:
    """Each answer is right, is cut off, or is an error that says so. Then all is whole again."""
    outcomes: list[str] = []

    async def ask(number: int) -> None:
        body = question(number % 2, LONG, stream=number % 3 > 0)
        text = ""
        try:
            async with client.stream("POST", TEXT, json=body) as response:
                async for part in response.aiter_text():
                    text += part
        except httpx.RemoteProtocolError:
            assert "[DONE]" not in text
            outcomes.append("cut off")
            return
        if response.status_code != 200:
            assert response.status_code == 500
            assert "the replica has died" in json.loads(text)["error"]["message"]
            outcomes.append("error")
            return
        if body["stream"]:
            *events, done = data_of(text)
            assert done == "[DONE]"
            text = "".join(choice["text"] for each in events for choice in each["choices"])
        else:
            text = json.loads(text)["choices"][0]["text"]
        assert text == reference[body["prompt"]]
        outcomes.append("whole")

    seed = random.randrange(1000)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(20):
        replicas = await anyio.to_thread.run_sync(lambda: cluster.do("replicas", number=2))
        async with cluster.client() as client:
            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    tasks.start_soon(ask, number)
                await anyio.sleep(rng.random() * 4)
                os.kill(rng.choice(replicas)["pid"], signal.SIGKILL)
    assert {*outcomes} == {"whole", "cut off", "error"}
    cluster.do("replicas", number=2)


@pytest.mark.nightly
@pytest.mark.parametrize("state", ["STARTING", "STOPPING"])
async def test_a_replica_is_killed_while_it_starts_or_leaves(
    state: str, cluster: Cluster, replicas: dict[str, dict[str, Any]], reference: dict[str, str]
) -> None:
    """The streams of one that leaves are cut off then. Serve starts another one, for each."""
    async with cluster.client() as client, one_of_each(client) as streams:
        if state == "STARTING":
            os.kill(next(iter(replicas.values()))["pid"], signal.SIGKILL)
        else:
            await anyio.to_thread.run_sync(lambda: cluster.do("redeploy"))
        found = await anyio.to_thread.run_sync(lambda: cluster.do("in_state", state=state))
        os.kill(found["pid"], signal.SIGKILL)
        for name, stream in streams.items():
            if name in (found["replica_id"], next(iter(replicas)) * (state == "STARTING")):
                with pytest.raises(httpx.RemoteProtocolError):
                    await stream.read()
            else:
                await stream.read()
                assert stream.text == reference[stream.prompt]
        await anyio.to_thread.run_sync(lambda: cluster.do("replicas", number=2))
        assert (await client.post(TEXT, json=question(0, 3))).status_code == 200


async def test_a_killed_node_takes_its_own_streams_with_it(
    cluster: Cluster, replicas: dict[str, dict[str, Any]], reference: dict[str, str]
) -> None:
    second = cluster.do("second_node")
    (killed,) = [name for name, each in replicas.items() if each["node_id"] == second]
    (other,) = replicas.keys() - {killed}
    async with cluster.client() as client, one_of_each(client) as streams:
        await anyio.to_thread.run_sync(cluster.do, "kill_second_node")
        await check_what_is_left(client, streams[killed], streams[other], reference)
    cluster.do("add_node")
    cluster.do("replicas", number=2)


async def check_what_is_left(
    client: httpx.AsyncClient, lost: Stream, kept: Stream, reference: dict[str, str]
) -> None:
    # The connection is closed before its end has come: which HTTP clients raise.
    with anyio.fail_after(CLUSTER_PATIENCE):
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            await lost.read()
    assert "[DONE]" not in lost.body
    assert lost.text
    assert reference[lost.prompt].startswith(lost.text)
    for number in range(20):
        response = await client.post(TEXT, json=question(number, 3))
        assert response.status_code == 200
        assert response.headers["x-replica"] != lost.replica
    await kept.read()
    assert data_of(kept.body)[-1] == "[DONE]"
    assert kept.text == reference[kept.prompt]


async def test_a_replica_that_leaves_lets_its_streams_end(
    cluster: Cluster, replicas: dict[str, dict[str, Any]], reference: dict[str, str]
) -> None:
    async with cluster.client() as client, one_of_each(client) as streams:
        async with anyio.create_task_group() as tasks:
            for stream in streams.values():
                tasks.start_soon(stream.read)
            found = await anyio.to_thread.run_sync(
                lambda: cluster.do("serve", max_waiting=MOST_WAITING)
            )
        for stream in streams.values():
            assert data_of(stream.body)[-1] == "[DONE]"
            assert stream.text == reference[stream.prompt]
    # Serve takes what it is told to serve for a new version, and replaced them both.
    assert not {each["replica_id"] for each in found} & replicas.keys()


# -- as it is started


def test_settings_say_what_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the key, which other users could see among the arguments, comes from the environment."""
    monkeypatch.setenv("ANYSTREAMER_API_KEY", "secret")
    settings = Settings.model_validate({"batching": "continuous", "max_running": "8"})
    assert settings.running() == 8
    assert Settings.model_validate({"max_running": "8"}).running() == 9  # one beside the batch
    assert Settings.model_validate({"batching": "none"}).running() == 1
    assert settings.api_key == "secret"
    assert "secret" not in repr(settings)
    for wrong in (
        {"batchings": "none"},
        {"batching": "some"},
        {"max_waiting": "0"},  # which Serve does not have
        {"max_running": "8", "batching": "none"},
        {"request_log": "yaml"},
        {"allowed_hosts": ["a.org:8000"]},
        {"allow_origins": ["https://a.org/"]},
        {"allow_media_from": ["https://a.org"]},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings.model_validate(wrong)


@pytest.mark.parametrize(
    ("response", "message", "kind", "code"),
    [
        (
            PlainTextResponse("a queue", 503, {"retry-after": "2"}),
            "the server is busy: try again later",
            "server_error",
            "engine_busy",
        ),
        (
            PlainTextResponse("a queue", 429, {"retry-after": "2"}),
            "the server is busy: try again later",
            "invalid_request_error",
            "engine_busy",
        ),
        (PlainTextResponse("no replica", 503), "no replica", "server_error", None),
        (PlainTextResponse('"in \\"JSON\\""', 500), 'in "JSON"', "server_error", None),
        (
            PlainTextResponse("Path '/é' not found.", 404),
            "Path '/é' not found.",
            "invalid_request_error",
            None,
        ),
    ],
)
async def test_errors_of_serve_s_own_are_error_objects(
    response: PlainTextResponse, message: str, kind: str, code: str | None
) -> None:
    got = await through_the_proxy(response)
    assert got.status_code == response.status_code
    assert got.json()["error"] == {"message": message, "type": kind, "param": None, "code": code}
    assert got.headers.get("retry-after") == response.headers.get("retry-after")
    assert int(got.headers["content-length"]) == len(got.content)


@pytest.mark.parametrize(
    "response",
    [
        PlainTextResponse("a text", 200),
        PlainTextResponse("of a replica", 500, {"x-replica": "a"}),
        JSONResponse({"error": {"code": "engine_busy"}}, 503, {"retry-after": "2"}),
    ],
)
async def test_responses_of_replicas_pass_as_they_are(response: Response) -> None:
    got = await through_the_proxy(response)
    assert (got.status_code, got.content) == (response.status_code, bytes(response.body))
    assert got.headers.raw == response.raw_headers


async def test_a_request_that_serve_does_not_answer_gets_an_error_object() -> None:
    """As it does when a replica has died. The server would send a line of its own."""

    async def silent(*_: object) -> None:
        pass

    got = await through_the_proxy(silent)
    assert got.status_code == 500
    error = got.json()["error"]
    assert error["message"] == "the replica has died before it answered: send the request again"
    assert (error["type"], error["code"]) == ("server_error", None)


async def through_the_proxy(response: Any) -> httpx.Response:
    (middleware,) = error_objects()
    app: Any = middleware.cls(response, *middleware.args, **middleware.kwargs)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


def test_the_config_file_in_the_docs_is_one() -> None:
    page = Path(__file__).parent.parent / "docs" / "scale.md"
    config = re.search(r"^```yaml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert config is not None
    found = ServeDeploySchema.model_validate(yaml.safe_load(config[1]))
    assert (
        Settings.model_validate(found.applications[0].args).running() == 33
    )  # one of them beside the batch


async def test_a_replica_is_as_healthy_as_its_engine() -> None:
    """Serve replaces one that is not."""
    model = ScriptedModel(["never asked"])
    replica: Any
    async with open_engine(model, model.tokenizer) as engine:
        replica = SimpleNamespace(_engine=engine)
        _Replica.check_health(replica)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        _Replica.check_health(replica)


def test_serve_run(cluster: Cluster) -> None:
    """The command that the docs show, with arguments, beside the other application."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking"),
            *("--name", "counting", "--route-prefix", "/counting", "anystreamer.ray:app"),
            *("batching=continuous", "max_running=4", "api_key=key", "model_name=counter"),
        ],
        check=True,
        env=cluster.env | {"RAY_ADDRESS": cluster.do("address")},
    )
    body = question(0, 3, model="counter")
    with httpx.Client(base_url=f"{cluster.url}/counting", trust_env=False, timeout=60) as client:
        assert client.post(TEXT, json=body).status_code == 401
        client.headers["authorization"] = "Bearer key"
        assert client.post(TEXT, json=body).json()["choices"][0]["text"] == " two, three"
    cluster.do("delete", name="counting")
