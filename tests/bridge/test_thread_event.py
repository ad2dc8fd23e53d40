"""`ThreadEvent`: what the loop sets, and a thread waits for."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType
from typing import Any

from anystreamer._bridge import ThreadEvent

from ..helpers.scripted import PATIENCE


def test_it_wakes_its_waiter_and_stays_set_until_it_is_cleared() -> None:
    event = ThreadEvent()
    thread = threading.Thread(target=event.wait, args=(PATIENCE,))
    thread.start()
    event.set()
    thread.join()
    event.set()  # again: it changes nothing
    started = time.monotonic()
    event.wait(PATIENCE)
    event.wait(PATIENCE)
    assert time.monotonic() < started + PATIENCE
    event.clear()
    event.clear()
    event.wait(0.01)
    assert time.monotonic() >= started + 0.01


def set_struck_at(call: int, event: ThreadEvent) -> bool:
    """Set it, with a Ctrl-C at this call. Returns whether there was such a call."""
    calls = 0

    def profile(frame: FrameType, kind: str, arg: Any) -> None:
        nonlocal calls
        calls += kind in ("call", "c_return")
        if calls > call:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        event.set()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_a_ctrl_c_at_any_call_of_set_leaves_it_usable() -> None:
    """`threading.Event` would stay locked."""
    for call in range(100):
        event = ThreadEvent()
        has_struck = set_struck_at(call, event)
        setter = threading.Thread(target=event.set, daemon=True)
        setter.start()
        setter.join(PATIENCE)
        assert not setter.is_alive()
        event.wait(PATIENCE)
        if not has_struck:
            break
    assert call > 3
