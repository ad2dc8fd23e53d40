"""What an open stream and a token of it cost the server, without a model.

    python benchmarks/connections.py [--quick] [--out benchmarks/results/connections.json]

The server is a process of its own, with an engine whose model is scripted: what it uses is what
the engine, the application and uvicorn use. Memory is the growth of its resident set by as many
requests for event streams, all but one of which wait for their turn, for each of them. CPU time
is that of one stream whose model makes a token every two milliseconds, for each token: its thread
and its way into the loop, the text, the event and the socket are in it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from argparse import SUPPRESS
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from common import environment, options_of, write
from tables import show

STREAMS = 1_000
WARM = 50  # streams before the first look: what there is once is there by then
PROMPTS = (16, 4_000)  # tokens
STEP = 0.002
LOOPS = ("asyncio", "uvloop")


def server(loop: str) -> None:
    """The process that is measured."""
    import anyio
    import uvicorn

    from anystreamer import open_engine
    from anystreamer.server import create_app
    from anystreamer.testing import ScriptedModel

    async def main() -> None:
        model = ScriptedModel(["word "] * 100_000, delay=STEP)
        async with open_engine(model, model.tokenizer, max_waiting=10 * STREAMS) as engine:
            app = create_app(engine, context_length=1_000_000)
            listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
            print(listener.getsockname()[1], flush=True)
            config = uvicorn.Config(app, log_config=None, lifespan="off")
            await uvicorn.Server(config).serve(sockets=[listener])

    anyio.run(main, backend_options={"use_uvloop": loop == "uvloop"})


class Server:
    def __init__(self, loop: str) -> None:
        command = [sys.executable, __file__, "--serve", loop]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._address = ("127.0.0.1", int(self._process.stdout.readline()))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, prompt: str, tokens: int) -> socket.socket:
        """Ask for an event stream. Its headers have come when this returns."""
        body = json.dumps({"prompt": prompt, "stream": True, "max_tokens": tokens})
        head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        client = socket.create_connection(self._address)
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        begin = b""
        while b"\r\n\r\n" not in begin:
            begin += client.recv(4096)
        assert b" 200 " in begin
        return client

    def resident(self) -> int:
        pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def kib_of_each_stream(loop: str, prompt: int) -> float:
    with Server(loop) as server, ExitStack() as clients:
        for _ in range(WARM):
            clients.enter_context(server.ask("x" * prompt, 100_000))
        before = server.resident()
        for _ in range(STREAMS):
            clients.enter_context(server.ask("x" * prompt, 100_000))
        return (server.resident() - before) / STREAMS / 1024


def us_of_each_token(loop: str, tokens: int) -> dict[str, float]:
    with Server(loop) as server:
        asked, received = 0.0, b""
        for count in (50, tokens):  # the first is to warm up
            used = server.cpu_seconds()
            client, received = server.ask("x", count), b""
            with client:
                while b"[DONE]" not in received:
                    received += client.recv(65_536)
            asked = server.cpu_seconds() - used
        chunks = received.count(b"data: ") - 2  # the finish reason and [DONE]
        return {"cpu_us": asked / tokens * 1e6, "tokens_per_chunk": tokens / chunks}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--serve", choices=LOOPS, help=SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return server(options.serve)
    results: dict[str, Any] = {
        "environment": environment(options),
        "requests": {"streams": STREAMS, "step_ms": STEP * 1e3},
    }
    rounds, tokens = (1, 1_000) if options.quick else (3, 3_000)
    for loop in LOOPS:
        kib = {n: median(kib_of_each_stream(loop, n) for _ in range(rounds)) for n in PROMPTS}
        each = [us_of_each_token(loop, tokens) for _ in range(rounds)]
        results[loop] = {
            "kib_of_each_stream": {f"prompt of {n} tokens": kib[n] for n in PROMPTS},
            "cpu_us_of_each_token": median(one["cpu_us"] for one in each),
            "tokens_per_chunk": median(one["tokens_per_chunk"] for one in each),
        }
        write(results, options.out)
    show("connections", results)


if __name__ == "__main__":
    main()
