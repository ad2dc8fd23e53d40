"""The command line: ``demo``, ``chat``, ``serve``. Heavy imports wait until a command runs."""

import os
import signal
import sys

from .common import INSTALL
from .terminal import exit_now, fail

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    _open_closed_streams()
    # Ctrl-C exits at once: a KeyboardInterrupt could be raised in a __del__ during an import, where
    # it is lost, and a second one in an event loop that is just ending.
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


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that was closed, as ``>&-`` does.

    Otherwise a socket or a file would get its number, and libraries that write to standard error
    would write into it.
    """
    if sys.platform == "win32":
        return
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
