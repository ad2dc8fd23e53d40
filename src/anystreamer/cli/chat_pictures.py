"""Pictures of a chat: files that the user names, as parts of the next question."""

from __future__ import annotations

import base64
import io
import os
import shlex
import stat
from contextlib import suppress
from glob import escape, glob
from typing import Any

from .._prompts import open_picture

__all__ = ["Part", "as_data", "completed_path", "read_picture"]

Part = dict[str, Any]  # of a message's content

# As on the chat page: models see no more, and servers limit the size of requests.
MAX_SIDE = 1024  # pixels
QUALITY = 85  # of JPEG


def read_picture(path: str) -> Any:
    """Read a file as a picture of Pillow's, upright and in RGB.

    Args:
        path: as it was typed: ``~`` is the home directory, and spaces can be in quotes or after
            backslashes, as terminals write the path of a file that is dropped on them.

    Raises:
        ValueError: with the path, and why it cannot be used.
        ImportError: Pillow is not installed.
    """
    found = _as_typed(path)
    try:
        # To open a pipe could wait forever.
        if not stat.S_ISREG(os.stat(found).st_mode):
            raise ValueError("it is not a file")
        with open(found, "rb") as file:
            return open_picture(file.read())
    except OSError as exc:
        hint = ": addresses are not fetched, so download it first" if "://" in path else ""
        raise ValueError(f"{path}: {exc.strerror or exc}{hint}") from exc
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from exc


def as_data(picture: Any) -> Part:
    """A picture as servers take it, made smaller: each later request of the chat has it, too."""
    smaller = picture.copy()
    smaller.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def completed_path(typed: str) -> list[str]:
    """The paths that begin with what has been typed. Folders end with a separator."""
    expanded = os.path.expanduser(typed)
    return [
        typed + found[len(expanded) :] + (os.sep if os.path.isdir(found) else "")
        for found in sorted(glob(f"{escape(expanded)}*"))
    ]


def _as_typed(path: str) -> str:
    """The path that was typed: if there is no such file, with quotes and backslashes removed."""
    expanded = os.path.expanduser(path)
    if not os.path.lexists(expanded):
        with suppress(ValueError):  # a quote that is not closed
            words = shlex.split(path)
            if len(words) == 1:
                return os.path.expanduser(words[0])
    return expanded
