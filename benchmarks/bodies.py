"""What one large request does to a server: how long others wait, and how much memory it takes.

``python -m benchmarks.bodies`` prints a row for each kind of body. Each server is a new process.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from .clients import connected, whole_answer
from .method import served

SIZE = 1000 * 1000
USER = '{"role":"user","content":"Hi"}'
CHAT = f'{{"messages":[{USER}],"max_tokens":1,'


def new_engine() -> Any:
    from anystreamer import open_engine
    from anystreamer.demo import load_demo

    return open_engine(*load_demo())


def filled(before: str, item: str, after: str) -> str:
    """The item as often as there is space, between two texts."""
    count = (SIZE - len(before) - len(after)) // (len(item) + 1)
    return before + ",".join([item] * count) + after


BODIES = {
    "a short message": f'{{"messages":[{USER}],"max_tokens":1}}',
    "`messages` of `{}`": filled('{"messages":[', "{}", "]}"),
    "content parts of `{}`": filled('{"messages":[{"role":"user","content":[', "{}", "]}]}"),
    "tool calls of `{}`": filled('{"messages":[{"role":"assistant","tool_calls":[', "{}", "]}]}"),
    "tools of `{}`": filled(CHAT + '"tools":[', "{}", "]}"),
    "unknown fields": CHAT + ",".join(f'"{n}":0' for n in range(90_000)) + "}",
    "messages of 2 characters": filled('{"messages":[', USER, '],"max_tokens":1}'),
    "one long message": json.dumps(
        {"messages": [{"role": "user", "content": "one, " * 199_000}], "max_tokens": 1}
    ),
    "one stop string": CHAT + json.dumps({"stop": "ab" * 499_000})[1:],
    "16 stop strings": CHAT + json.dumps({"stop": [f"{n:2}" * 31_000 for n in range(16)]})[1:],
}


def post(port: int, body: str) -> int:
    with connected(port) as client:
        return whole_answer(client, "/v1/chat/completions", body)[0]


def longest_wait(port: int, is_over: threading.Event) -> float:
    """Milliseconds that ``/health`` took at most, requested again and again."""
    longest = 0.0
    with connected(port) as client:
        while not is_over.wait(0.002):
            longest = max(longest, whole_answer(client, "/health")[1])
    return longest


def most_memory(process: int | None) -> float:
    """The most that a process has had in memory, in MB."""
    with open(f"/proc/{process}/status") as status:
        (line,) = [each for each in status if each.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    print(f"{psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}")
    print("| body | status | longest wait, ms | more memory, MB |\n| --- | --- | --- | --- |")
    for name, body in BODIES.items():
        with served(new_engine) as (port, process), ThreadPoolExecutor() as pool:
            for _ in range(3):
                post(port, BODIES["a short message"])
            before, is_over = most_memory(process.pid), threading.Event()
            health = pool.submit(longest_wait, port, is_over)
            try:
                status = post(port, body)
            finally:
                is_over.set()
            wait, growth = health.result(), most_memory(process.pid) - before
        print(f"| {name} | {status} | {wait:,.0f} | {growth:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
