"""The three event loops, the marks of tests, and what no test can leave behind."""

from __future__ import annotations

import asyncio.constants
import gc
import importlib.util
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# Before anything can import huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Before torch is imported. The models are too small for several cores: threads that wait for each
# other would take a third of the time of all tests. If a program sets two threads, a thread that
# waits sleeps.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest

from .helpers.watchdog import (  # noqa: F401  hooks
    pytest_configure,
    pytest_runtest_setup,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)

# With these variables, typer treats a pipe as a terminal. It reads them when it is imported.
for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
    os.environ.pop(name, None)

# Many more examples are tried at night. Each run tries other examples, also in CI.
for profile, examples in {"quick": 10, "default": 100, "nightly": 5000}.items():
    hypothesis.settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=False, print_blob=True
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# In debug mode, asyncio logs steps that take long. On a busy machine, any step can.
logging.getLogger("asyncio").addFilter(
    lambda record: not str(record.msg).startswith("Executing %s took")
)

# In debug mode each callback, task and future keeps ten of the frames that made it. This takes a
# seventh of the time of the bridge's tests, and the message of a failure needs only the innermost.
asyncio.constants.DEBUG_STACK_DEPTH = 1  # type: ignore[misc]
# Tasks and futures that are made in C use this default. Without it, each reads the lines of all
# frames from their files, which takes a quarter of the time of all tests on asyncio.
traceback.extract_stack.__defaults__ = (None, asyncio.constants.DEBUG_STACK_DEPTH)

# A shell's background jobs ignore Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


# Tests that need torch and transformers have this mark. If these are not installed, such tests are
# skipped. A module whose tests all have the mark is not even imported.
TORCH = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.torch", re.MULTILINE)
HAS_TORCH = installed("torch", "transformers")
HAS_RAY = installed("ray")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if collection_path.name == "test_ray.py" and not HAS_RAY:  # it has a session of its own
        return True
    if collection_path.suffix == ".py" and not HAS_TORCH:
        return bool(TORCH.search(collection_path.read_text(encoding="utf-8"))) or None
    return None


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HAS_TORCH and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="needs torch and transformers"))
        for loop in loops_of(item):
            item.add_marker(loop)
            if loop == "uvloop" and not is_about_the_loop(item):
                item.add_marker(pytest.mark.variant)
    # Workers take files in this order. A file that takes minutes must not be the last one.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def loops_of(item: pytest.Item) -> list[str]:
    """The event loops that the test's parameters name. The marks of these names select it."""
    parameters = item.nodeid.partition("[")[2]
    return [loop for loop in ("asyncio", "uvloop", "trio") if loop in parameters]


# uvloop runs asyncio's own tasks and futures. Its own code handles calls from threads, wake-ups,
# signals and sockets.
ABOUT_THE_LOOP = ("tests/bridge/", "tests/server/test_server.py", "tests/remote/test_faults.py")
PROOFS = (Path(__file__).parents[1] / "docs" / "proofs.md").read_text(encoding="utf-8")
NAMED_AS_PROOF = frozenset(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", PROOFS))


def is_about_the_loop(item: pytest.Item) -> bool:
    """Whether uvloop can change a test's result, or the test proves a promise: CONTRIBUTING.md."""
    if item.get_closest_marker("heavy"):
        return False
    test = item.nodeid.partition("[")[0]
    proves = test in NAMED_AS_PROOF or test.partition("::")[0] in NAMED_AS_PROOF
    return proves or test.startswith(ABOUT_THE_LOOP)


LOOPS = [
    pytest.param(("asyncio", {"debug": True}), id="asyncio"),
    *(
        [pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
        if installed("uvloop")
        else []  # Windows has no uvloop
    ),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The loop that an `async def` test runs on: each of them in turn."""
    return request.param


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes of Ray with the server on both: see `two_nodes.Cluster`."""
    from .helpers.two_nodes import two_nodes  # imports what only its session installs

    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def one_thread_for_the_model() -> Iterator[None]:
    """The model is too small for several threads. The other cores are for clients and servers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect no garbage meanwhile: collections that visit each imported module take seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    collect_garbage()


_modules = 0  # how many were imported at the last collection

# If more objects than this survive a collection, the next ones leave them out. To visit this many
# takes about a millisecond. Vocabularies, grammars and models that tests share are 100,000 objects
# and more: visiting them after each test took as long as the tests.
SURVIVORS = 5000


def collect_garbage() -> None:
    """Let tasks that were not awaited, and sockets that were not closed, warn now.

    Otherwise they would warn in a later test. Later collections leave imported modules out, so a
    collection after each test costs little, also with torch. torch and others import more modules
    when they are used.
    """
    global _modules
    gc.collect()
    if len(sys.modules) > _modules or len(gc.get_objects()) > SURVIVORS:
        _modules = len(sys.modules)
        gc.freeze()


# Event loops keep idle worker threads for a while: AnyIO's until the loop ends, trio's for ten
# seconds longer. The thread of anystreamer.sync stays as long as the process.
POOLED = ("AnyIO worker thread", "Trio thread ", "anystreamer portal")
# A thread is busy while a frame of code in these folders is on its stack.
PACKAGE = importlib.util.find_spec("anystreamer")
OWN_CODE = tuple(
    os.path.join(folder, "")
    for folder in [
        *((PACKAGE and PACKAGE.submodule_search_locations) or []),
        os.path.dirname(__file__),
    ]
)

# How many times a thread gets 10 ms to end. It is not a time, because on a busy machine the thread
# does not run all the time.
GRACE = 200


def runs_own_code(thread: threading.Thread) -> bool:
    if thread.name == "anystreamer portal":
        return False  # it only runs its event loop
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OWN_CODE):
            return True
        frame = frame.f_back
    return False


def stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name}:\n{''.join(traceback.format_stack(frame)) if frame else ''}"


def signal_handling() -> dict[str, Any]:
    """The handler of each signal."""
    return {each.name: signal.getsignal(each) for each in signal.Signals}


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread running, a signal's handler, or garbage that warns."""
    signals = signal_handling()
    stuck = tuple(
        name for marker in request.node.iter_markers("may_leave_stuck") for name in marker.args
    )
    alive = set(threading.enumerate())
    busy = {thread for thread in alive if runs_own_code(thread)}

    def left() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if (
                (runs_own_code(thread) and thread not in busy)
                or (thread not in alive and not thread.name.startswith(POOLED))
            )
            and not (thread.daemon and thread.name in stuck)
        ]

    yield
    for _ in range(GRACE):
        if not (threads := left()):
            break
        threads[0].join(0.01)
    else:
        pytest.fail("Threads left running:\n\n" + "\n".join(map(stack, threads)), pytrace=False)
    assert signal_handling() == signals
    collect_garbage()


@pytest.fixture
def asyncio_complains_of_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No "Task exception was never retrieved", no "Task was destroyed but it is pending"."""
    yield
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    errors = [r.getMessage() for r in records if r.name == "asyncio" and r.levelname == "ERROR"]
    assert not errors


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The exceptions that Python could only report, for example from a finalizer."""
    gc.collect()
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    yield raised
    raised.clear()
