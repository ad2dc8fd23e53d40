"""transformers' streamer of the same name, on any loop and stoppable."""

from .drop_in import AsyncTextIteratorStreamer

__all__ = ["AsyncTextIteratorStreamer"]
