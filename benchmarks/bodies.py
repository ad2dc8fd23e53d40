"""What one large request does to a server: how long others wait, and how much memory it takes.

``python -m benchmarks.bodies`` prints a row for each kind of body, of almost one megabyte, which is
the limit. Each server is a new process with the embedded model. Meanwhile ``/health`` is requested
again and again: its longest wait is how long the event loop stood still.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import psutil

from .method import run_on, serve_with_uvicorn, server_process

SIZE = 1000 * 1000
USER = '{"role":"user","content":"Hi"}'
PATH = "/v1/chat/completions"


def serve(listener: socket.socket) -> None:
    from anystreamer import open_engine
    from anystreamer.demo import load_demo
    from anystreamer.server import create_app

    async def main() -> None:
        model, tokenizer = load_demo()
        async with open_engine(model, tokenizer) as engine:
            await serve_with_uvicorn(create_app(engine), listener)

    run_on("asyncio", main)


def filled(before: str, item: str, after: str) -> str:
    """The item as often as there is space, between two texts."""
    count = (SIZE - len(before) - len(after)) // (len(item) + 1)
    return before + ",".join([item] * count) + after


def bodies() -> dict[str, str]:
    chat = f'{{"messages":[{USER}],"max_tokens":1,'
    return {
        "a short message": f'{{"messages":[{USER}],"max_tokens":1}}',
        "`messages` of `{}`": filled('{"messages":[', "{}", "]}"),
        "content parts of `{}`": filled('{"messages":[{"role":"user","content":[', "{}", "]}]}"),
        "tool calls of `{}`": filled(
            '{"messages":[{"role":"assistant","tool_calls":[', "{}", "]}]}"
        ),
        "tools of `{}`": filled(chat + '"tools":[', "{}", "]}"),
        "unknown fields": chat + ",".join(f'"{n}":0' for n in range(90_000)) + "}",
        "messages of 2 characters": filled('{"messages":[', USER, '],"max_tokens":1}'),
        "one long message": json.dumps(
            {"messages": [{"role": "user", "content": "one, " * 199_000}], "max_tokens": 1}
        ),
        "one stop string": chat + json.dumps({"stop": "ab" * 499_000})[1:],
        "16 stop strings": chat + json.dumps({"stop": [f"{n:2}" * 31_000 for n in range(16)]})[1:],
    }


class Health:
    """Requests ``/health`` again and again, in a thread."""

    def __init__(self, port: int) -> None:
        self.longest = 0.0
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._port)
        while not self._is_over.wait(0.002):
            started = time.perf_counter()
            client.request("GET", "/health")
            client.getresponse().read()
            self.longest = max(self.longest, time.perf_counter() - started)
        client.close()


def post(port: int, body: str) -> int:
    client = http.client.HTTPConnection("127.0.0.1", port)
    client.request("POST", PATH, body, {"content-type": "application/json"})
    response = client.getresponse()
    response.read()
    client.close()
    return response.status


def most_memory(process: int) -> float:
    """The most that a process has had in memory, in MB."""
    with open(f"/proc/{process}/status") as status:
        (line,) = [each for each in status if each.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    print(f"{psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}")
    print("| body | status | longest wait, ms | more memory, MB |")
    print("| --- | --- | --- | --- |")
    for name, body in bodies().items():
        with server_process(serve) as (port, process):
            for _ in range(3):
                post(port, bodies()["a short message"])
            before = most_memory(process.pid)
            with Health(port) as health:
                status = post(port, body)
            growth = most_memory(process.pid) - before
        print(f"| {name} | {status} | {health.longest * 1e3:,.0f} | {growth:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
