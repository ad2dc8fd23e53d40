"""What an engine behind HTTP makes of many clients, and of one who leaves; and transformers serve.

    python benchmarks/edge.py [--quick] [--out benchmarks/results/edge.json]

The same requests go to `anystreamer serve` and to `transformers serve`, each one by one and with
continuous batching, on the embedded model, greedily. All servers have one of torch's threads, and
all but the one that is measured are stopped (SIGSTOP). Clients are in a process of their own, on
plain sockets: each notes when bytes come, and what they say is looked at afterwards. All clients
begin at once, and each asks anew when it is answered. Each round goes through every way once, in an
order that changes. Every answer must be the same for all.

Definitions, as `vllm bench serve` has them:

- TTFT, time to first token: from when the request is sent to the first chunk with content.
- ITL, inter-token latency: from one chunk with content to the next of the same answer. A chunk may
  have several tokens, and several that came with one read have no time between them.
- TPOT, time per output token: of one request, from its first chunk with content to its last, by the
  number of its tokens but one.
- Tokens are counted by the usage that the server tells, not by chunks. Tokens and requests per
  second are all of a round by its time, from the first request to the end of the last.

Leaving: a client closes its connection while the model works on its answer, whether that is
streamed or not. The server writes down the time (CLOCK_MONOTONIC, which is one for the machine) at
the end of each of the model's forward passes, into memory that the client can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Table, environment, options_of, percentile, quartiles, write
from tables import show

TOKENS = 100  # of an answer
# Clients at once, and the requests of each, one after the other. A round of few is too short.
REQUESTS = {1: 10, 4: 4, 8: 2, 16: 2, 32: 2}
LONG = 1000  # tokens of an answer that nobody waits for
STANDS_STILL = 1.0  # seconds without a forward pass: the model has stopped

STEPS = 2  # numbers: how many forward passes there were, and when the last one ended

# The goals of the edge.
TIMES_FIRST_TOKEN = 10
TIMES_TOKENS = 4


@dataclass(frozen=True)
class Way:
    """A server, and how it is started."""

    name: str
    program: str
    options: tuple[str, ...] = ()
    is_rival: bool = False


OURS = Way("anystreamer, none", "anystreamer", ("--batching", "none"))
OURS_BATCHED = Way("anystreamer, continuous", "anystreamer", ("--batching", "continuous"))
THEIRS = Way("transformers, default", "transformers", is_rival=True)
# With its defaults it reserves gigabytes on a CPU, and takes a tenth of a second for each token.
THEIRS_BATCHED = Way(
    "transformers, continuous",
    "transformers",
    ("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "256"),
    is_rival=True,
)
WAYS = (OURS, OURS_BATCHED, THEIRS, THEIRS_BATCHED)


def shared(steps: Path) -> memoryview:
    """Numbers that two processes see. Each is written at once."""
    with steps.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * STEPS)).cast("d")


# -- a server


def serve(program: str, steps: Path, arguments: list[str]) -> None:
    """Become that program, and write down the model's steps."""
    from transformers import LlamaForCausalLM

    forward, memory = LlamaForCausalLM.forward, shared(steps)

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        memory[1] = time.monotonic()
        memory[0] += 1
        return output

    LlamaForCausalLM.forward = counted  # type: ignore[method-assign]
    sys.argv = [program, "serve", *arguments]
    if program == "anystreamer":
        from anystreamer.cli import main
    else:
        from transformers.cli.transformers import main  # type: ignore[import-not-found, no-redef]
    main()


class Server:
    """A server's process, stopped while another one is measured."""

    def __init__(self, way: Way, model: Path, folder: Path) -> None:
        self.way = way
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.steps = folder / f"{self.port}.steps"
        self.steps.write_bytes(bytes(8 * STEPS))
        self.log = (folder / f"{self.port}.log").open("w+")
        command = [sys.executable, __file__, "--serve", way.program, "--steps", str(self.steps)]
        command += ["--", str(model), "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, *way.options],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    def wait(self) -> None:
        """Until it takes requests."""
        open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        deadline = time.monotonic() + 120
        while True:
            try:
                open_url(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.log.seek(0)
                    raise SystemExit(f"{self.way.name} did not start:\n{self.log.read()}") from None
                time.sleep(0.05)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGCONT)
        yield
        self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


# -- the clients, in a process of their own


def request(body: Table) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + content


async def ask(port: int, body: Table) -> tuple[float, list[tuple[float, bytes]]]:
    """When the request was sent, and what came when."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = request(body)
    sent = time.monotonic()
    writer.write(content)
    parts = []
    while part := await reader.read(2**16):
        parts.append((time.monotonic(), part))
    writer.close()
    return sent, parts


def answer(sent: float, parts: list[tuple[float, bytes]]) -> Table:
    """What an answer said, and the times of it. Both servers put whole events into each chunk."""
    body, times, text, usage = b"", [], "", None
    head, _, rest = b"".join(part for _, part in parts).partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise SystemExit(f"refused: {head!r} {rest!r}")
    for at, part in parts:
        *events, body = (body + part).split(b"\n\n")
        for event in events:
            _, found, data = event.partition(b"data: ")
            if not found or data == b"[DONE]":
                continue
            chunk = json.loads(data)
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if choice["text"]:
                    times.append(at)
                    text += choice["text"]
    assert usage is not None
    assert usage["completion_tokens"] == TOKENS
    return {
        "sent": sent,
        "ended": parts[-1][0],
        "ttft": times[0] - sent,
        "itl": [after - before for before, after in pairwise(times)],
        "tpot": (times[-1] - times[0]) / max(1, usage["completion_tokens"] - 1),
        "tokens": usage["completion_tokens"],
        "text": text,
    }


def question(number: int) -> Table:
    """A sequence that goes on for ever, another one for each of ten clients."""
    numbers = "one two three four five six seven eight nine ten".split()
    return {
        "prompt": f"An increasing sequence: {numbers[number % len(numbers)]},",
        "max_tokens": TOKENS,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def all_at_once(port: int, clients: int) -> list[list[Table]]:
    async def client(number: int) -> list[tuple[float, list[tuple[float, bytes]]]]:
        return [await ask(port, question(number)) for _ in range(REQUESTS[clients])]

    each = await asyncio.gather(*map(client, range(clients)))
    return [[answer(*one) for one in answers] for answers in each]


def leave(port: int, steps: Path, stream: bool) -> Table:
    """Leave while the model works. Seconds until its last step had ended, and steps after that."""
    memory = shared(steps)
    body = {
        "prompt": "An increasing sequence: one,",
        "max_tokens": LONG,
        "temperature": 0.0,
        "stream": stream,
    }
    before = memory[0]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request(body))
        received = b""
        while memory[0] < before + 20 or (stream and received.count(b"data: ") < 10):
            if stream:
                part = connection.recv(2**16)
                assert part, received
                received += part
            else:
                time.sleep(0.0005)
        left = time.monotonic()
        made = memory[0]
    while time.monotonic() - max(left, memory[1]) < STANDS_STILL:
        time.sleep(0.01)
    return {"seconds": max(0.0, memory[1] - left), "steps": int(memory[0] - made)}


def client(job: Table) -> Any:
    port = job["port"]
    if "clients" in job:
        return asyncio.run(all_at_once(port, job["clients"]))
    return leave(port, Path(job["steps"]), job["stream"])


class Clients:
    """Their process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--clients"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, **job: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the clients have failed")
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


# -- the rounds


def load(servers: list[Server], clients: Clients, rounds: int, out: Table) -> None:
    """Fill *out*: by the number of clients, and by way."""
    for number in REQUESTS:
        runs: dict[str, list[Table]] = {server.way.name: [] for server in servers}
        for _ in range(rounds):
            random.shuffle(servers)
            texts = set()
            for server in servers:
                with server.awake():
                    got = clients.do(port=server.port, clients=number)
                runs[server.way.name].append(figures(got))
                texts.add(json.dumps([[one["text"] for one in answers] for answers in got]))
            assert len(texts) == 1, "not all have answered alike"
        table = out[str(number)] = {}
        for way in WAYS:
            mine, theirs = runs[way.name], runs[THEIRS.name]
            row = table[way.name] = {}
            for name in ("ttft", "itl", "tpot"):
                values = [1e3 * each for run in mine for each in run[name]]
                row[f"{name}_ms"] = {
                    "median": percentile(values, 0.5),
                    "p95": percentile(values, 0.95),
                }
            for name in ("tokens_per_second", "requests_per_second", "tokens_per_chunk"):
                row[name] = quartiles([run[name] for run in mine])
            row["ttft_of_the_last_ms"] = quartiles([1e3 * run["ttft_of_the_last"] for run in mine])
            pairs = list(zip(mine, theirs, strict=True))
            row["tokens_per_second_to_transformers"] = quartiles(
                [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
            )
            row["ttft_of_the_last_to_transformers"] = quartiles(
                [other["ttft_of_the_last"] / one["ttft_of_the_last"] for one, other in pairs]
            )


def figures(got: list[list[Table]]) -> Table:
    answers = [one for each in got for one in each]
    seconds = max(one["ended"] for one in answers) - min(one["sent"] for one in answers)
    tokens = sum(one["tokens"] for one in answers)
    return {
        "ttft": [one["ttft"] for one in answers],
        "itl": [each for one in answers for each in one["itl"]],
        "tpot": [one["tpot"] for one in answers],
        "tokens_per_second": tokens / seconds,
        "requests_per_second": len(answers) / seconds,
        "tokens_per_chunk": tokens / sum(len(one["itl"]) + 1 for one in answers),
        "ttft_of_the_last": max(each[0]["ttft"] for each in got),  # of those that began together
    }


def leaving(servers: list[Server], clients: Clients, times: int) -> Table:
    kinds = {True: "streamed", False: "whole"}
    found: dict[str, dict[str, list[Table]]] = {
        way.name: {kind: [] for kind in kinds.values()} for way in WAYS
    }
    for _ in range(times):
        random.shuffle(servers)
        for server in servers:
            for stream, kind in kinds.items():
                with server.awake():
                    one = clients.do(port=server.port, steps=str(server.steps), stream=stream)
                found[server.way.name][kind].append(one)
    return {
        name: {
            kind: {
                "times": times,
                "ms": {
                    "median": 1e3 * percentile([one["seconds"] for one in each], 0.5),
                    "max": 1e3 * max(one["seconds"] for one in each),
                },
                "steps": {
                    "median": percentile([one["steps"] for one in each], 0.5),
                    "max": max(one["steps"] for one in each),
                },
            }
            for kind, each in kinds_.items()
        }
        for name, kinds_ in found.items()
    }


def goals(results: Table) -> list[Table]:
    four, sixteen = results["load"]["4"], results["load"]["16"]
    return [
        {"goal": what, "way": way.name, "sign": ">=", "limit": least}
        | {"measured": ratio, "is_met": ratio >= least}
        for way in (OURS, OURS_BATCHED)
        for what, least, ratio in (
            (
                "times sooner than transformers serve: the last first token of 4 clients",
                TIMES_FIRST_TOKEN,
                four[way.name]["ttft_of_the_last_to_transformers"]["median"],
            ),
            (
                "times transformers serve's tokens per second, 16 clients",
                TIMES_TOKENS,
                sixteen[way.name]["tokens_per_second_to_transformers"]["median"],
            ),
        )
    ]


def measure(options: Namespace) -> None:
    from anystreamer.demo import load_demo

    results: Table = {
        "environment": environment(options),
        "requests": {"new_tokens": TOKENS, "of_each_client": REQUESTS},
        "load": {},
    }
    results["environment"]["torch_threads"] = 1  # of each server
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in load_demo():
            part.save_pretrained(folder / "model")
        servers = []
        for way in WAYS:
            server = Server(way, folder / "model", folder)
            stack.callback(server.end)
            servers.append(server)
        clients = Clients()
        stack.callback(clients.end)
        for server in servers:  # all start at the same time; then each warms up alone
            server.wait()
        for server in servers:
            server.process.send_signal(signal.SIGSTOP)
        for server in servers:
            with server.awake():
                for number in (1, 4):
                    clients.do(port=server.port, clients=number)
        load(servers, clients, 2 if options.quick else 6, results["load"])
        results["leaving"] = leaving(servers, clients, 3 if options.quick else 10)
    results["goals"] = goals(results)
    write(results, options.out)
    show("edge", results)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--clients", action="store_true", help=SUPPRESS)
    parser.add_argument("--serve", help=SUPPRESS)
    parser.add_argument("--steps", type=Path, help=SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.steps, options.arguments)
    elif options.clients:
        for line in sys.stdin:
            print(json.dumps(client(json.loads(line))), flush=True)
    else:
        measure(options)


if __name__ == "__main__":
    main()
