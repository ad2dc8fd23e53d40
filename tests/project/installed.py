"""What the installed wheel does where nothing else is: `nox -s dist` runs this, with the loops.

The interpreter is that of an environment which has neither torch nor any tool of the tests, and it
is told to look nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import anyio

import anystreamer
from anystreamer import FinishReason, stream_iterable, stream_text
from anystreamer.testing import ScriptedModel


def rows() -> Iterator[str]:
    yield from ("one", "two", "three")


async def stream() -> None:
    async with stream_iterable(rows) as items:
        assert [item async for item in items] == ["one", "two", "three"]
    async with stream_iterable(rows) as items:
        assert await items.receive() == "one"  # the others are left
    model = ScriptedModel(["Hello", " world"])
    async with stream_text(model, model.tokenizer, "hi") as text:
        assert await text.read() == "Hello world"
    assert text.finish_reason is FinishReason.EOS


def main(*loops: str) -> None:
    """Stream on each of these loops."""
    place = Path(anystreamer.__file__)
    assert place.is_relative_to(sysconfig.get_path("purelib")), place
    assert importlib.util.find_spec("torch") is None
    importlib.import_module("anystreamer.sync")
    page = files("anystreamer") / "server" / "page" / "chat.html"
    assert "<title>" in page.read_text(encoding="utf-8")
    assert (files("anystreamer") / "demo" / "model" / "model.safetensors").is_file()
    for loop in loops:
        anyio.run(stream, backend=loop)
        print(f"{place.parent} works on {loop}")


if __name__ == "__main__":
    main(*sys.argv[1:])
