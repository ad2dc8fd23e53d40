"""`AsyncTextIteratorStreamer` in place of transformers' class: for any loop, with a stop."""

from .drop_in import AsyncTextIteratorStreamer

__all__ = ["AsyncTextIteratorStreamer"]
