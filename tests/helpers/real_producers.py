"""Producers as library authors have them: each blocks in a driver, a program or another thread.

Each is ``produce(emit, should_stop, reach, endless)``. It emits "running" and then makes nothing
more, for ever if it is *endless*. It calls ``reach`` with each phase that it comes to: there a test
can hold it until the stop.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import selectors
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from anystreamer import Emit, Stopping

Reach = Callable[[str], object]
Produce = Callable[[Emit[Any], Stopping, Reach, bool], object]

CONNECTING = "connecting"  # there is nothing yet that could be interrupted
CONNECTED = "connected"  # there is, and it does not run yet
ENDED = "ended"  # it has ended, and the producer has not returned
PHASES = (CONNECTING, CONNECTED, ENDED)

# More than any test waits, in seconds.
FOREVER = 3600


@contextlib.contextmanager
def interrupted(should_stop: Stopping, interrupt: Callable[[], object]) -> Iterator[None]:
    """Interrupt after a stop until the block ends.

    Databases forget an interrupt that comes before a statement, so once is not enough.
    """
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(0.01):
            interrupt()

    thread = threading.Thread(target=repeat, daemon=True)
    should_stop.on_stop(thread.start)
    try:
        yield
    finally:
        is_over.set()
        if thread.ident is not None:
            thread.join()


NUMBERS = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"


def query(endless: bool) -> str:
    """It finds no row, ever, or one."""
    return f"{NUMBERS} where i < 0" if endless else f"{NUMBERS} limit 1"


def sqlite_progress(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    reach(CONNECTING)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.set_progress_handler(should_stop, 1000)
        reach(CONNECTED)
        emit("running")
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute(query(endless)).fetchall()
        reach(ENDED)


def sqlite_interrupt(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    reach(CONNECTING)
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    with contextlib.closing(connection), interrupted(should_stop, connection.interrupt):
        reach(CONNECTED)
        emit.offer("running")
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute(query(endless)).fetchall()
        reach(ENDED)


def duckdb_interrupt(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    duckdb = pytest.importorskip("duckdb")
    reach(CONNECTING)
    with (
        contextlib.closing(duckdb.connect(":memory:")) as connection,
        interrupted(should_stop, connection.interrupt),
    ):
        reach(CONNECTED)
        emit.offer("running")
        with contextlib.suppress(duckdb.InterruptException):
            count = 10**15 if endless else 1
            connection.execute(f"select count(*) from range({count})").fetchall()
        reach(ENDED)


def program(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    """It is silent, because nothing is written to its input."""
    reach(CONNECTING)
    given = subprocess.PIPE if endless else subprocess.DEVNULL
    with subprocess.Popen(["cat"], stdin=given, stdout=subprocess.PIPE) as process:
        should_stop.on_stop(process.kill)
        reach(CONNECTED)
        emit("running")
        assert process.stdout is not None
        assert process.stdout.read() == b""
        process.wait()
        reach(ENDED)


def programs(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    """A program that starts another one. That one keeps the pipe open if only the first ends."""
    command = ["sh", "-c", f"sleep {FOREVER if endless else 0} & wait"]
    reach(CONNECTING)
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:

        def kill_all() -> None:
            with contextlib.suppress(ProcessLookupError):  # they have ended
                os.killpg(process.pid, signal.SIGKILL)

        should_stop.on_stop(kill_all)
        reach(CONNECTED)
        emit("running")
        assert process.stdout is not None
        process.stdout.read()
        reach(ENDED)


@contextlib.contextmanager
def server_without_room(endless: bool) -> Iterator[tuple[str, int]]:
    """A server that takes no connection, as if its machine did not answer; or one that does."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = server.getsockname()
        for _ in range(8 if endless else 0):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address


def connecting_socket(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    """It waits for its connection, and a shutdown does not reach a socket that has not begun to."""
    with server_without_room(endless) as address, socket.socket() as client:
        reach(CONNECTING)
        wake, woken = socket.socketpair()
        with wake, woken, selectors.DefaultSelector() as selector:
            client.setblocking(False)
            client.connect_ex(address)
            selector.register(client, selectors.EVENT_WRITE)
            selector.register(woken, selectors.EVENT_READ)
            should_stop.on_stop(lambda: wake.send(b"\0"))
            reach(CONNECTED)
            emit.offer("running")
            selector.select()
            reach(ENDED)


def silent_socket(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    reach(CONNECTING)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:

            def shut_down() -> None:
                with contextlib.suppress(OSError):  # the other side has done it
                    client.shutdown(socket.SHUT_RDWR)

            should_stop.on_stop(shut_down)
            reach(CONNECTED)
            emit("running")
            if not endless:
                server.accept()[0].close()
            assert client.recv(1) == b""
            reach(ENDED)


def pool_of_processes(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    """Its own terminate() blocks, so a stop wakes the producer, which ends it."""
    reach(CONNECTING)
    results: queue.SimpleQueue[object] = queue.SimpleQueue()
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its end terminates it
        should_stop.on_stop(lambda: results.put(None))
        pool.apply_async(str, ("running",), callback=results.put)
        pool.apply_async(time.sleep, (FOREVER if endless else 0,), callback=results.put)
        reach(CONNECTED)
        while (result := results.get()) is not None:
            emit(result)
        reach(ENDED)


def hold_the_interpreter(send: Connection, endless: bool) -> None:
    """As code in C does that never lets go of the interpreter: it holds its own here."""
    send.send("running")
    while endless:
        sum(range(10**6))


def process_in_place_of_a_thread(
    emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool
) -> None:
    reach(CONNECTING)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=hold_the_interpreter, args=(send, endless), daemon=True)
    process.start()
    send.close()  # or its end would never be seen
    should_stop.on_stop(process.kill)
    reach(CONNECTED)
    with receive, contextlib.suppress(EOFError):
        while True:
            emit.offer(receive.recv())
    process.join()
    reach(ENDED)
    process.close()


def training(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    """It reads its texts in a thread of its own, if TOKENIZERS_PARALLELISM allows for that."""
    tokenizers = pytest.importorskip("tokenizers")
    reach(CONNECTING)
    threads = set()

    def texts() -> Iterator[str]:
        reach(CONNECTED)
        emit("running")
        while True:  # at least one
            threads.add(threading.get_ident())
            yield "to be or not to be"
            if should_stop() or not endless:
                return

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=30, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    assert threads
    assert threading.get_ident() not in threads
    reach(ENDED)


def observer_of_files(emit: Emit[Any], should_stop: Stopping, reach: Reach, endless: bool) -> None:
    """It calls a handler in a thread of its own, and holds a lock meanwhile.

    Its stop() waits for that lock. In the event loop, which the handler waits for in emit(), that
    would be a deadlock. So a stop wakes the producer, which stops it.
    """
    events = pytest.importorskip("watchdog.events")
    observers = pytest.importorskip("watchdog.observers")
    reach(CONNECTING)

    class Handler(events.FileSystemEventHandler):  # type: ignore[misc, name-defined]
        def on_created(self, event: Any) -> None:
            assert threading.get_ident() != producer
            emit.offer("running")
            if not endless:
                woken.set()

    producer = threading.get_ident()
    woken = threading.Event()
    should_stop.on_stop(woken.set)
    with tempfile.TemporaryDirectory() as folder:
        observer = observers.Observer()
        observer.schedule(Handler(), folder)
        observer.start()
        reach(CONNECTED)
        with open(os.path.join(folder, "new"), "w"):
            pass
        woken.wait()
        observer.stop()
        observer.join()
        reach(ENDED)


REAL_PRODUCERS: tuple[Produce, ...] = (
    sqlite_progress,
    sqlite_interrupt,
    duckdb_interrupt,
    program,
    programs,
    connecting_socket,
    silent_socket,
    pool_of_processes,
    process_in_place_of_a_thread,
    training,
    observer_of_files,
)
# The packages that they need. Where one is missing, none of its tests can begin.
NEEDS: dict[Produce, str] = {
    duckdb_interrupt: "duckdb",
    training: "tokenizers",
    observer_of_files: "watchdog",
}
# Starting a process of Python takes long.
SLOW = (pool_of_processes, process_in_place_of_a_thread)
