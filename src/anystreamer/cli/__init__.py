"""The command line: ``demo``, ``chat``, ``serve``. Heavy imports wait until a command runs."""

import signal

from .common import INSTALL
from .terminal import exit_now, fail

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # As a KeyboardInterrupt, Ctrl-C could hit a __del__ during an import, which swallows it; and a
    # second one could hit an event loop that is just ending.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so under nohup
        signal.signal(signal.SIGINT, exit_now)
    try:
        from .commands import app
    except ImportError as exc:
        fail(f"the command line needs typer and rich ({exc}): {INSTALL}")
    try:
        app(prog_name="anystreamer")
    except OSError as exc:  # a full disk, an unreadable file
        fail(str(exc))
