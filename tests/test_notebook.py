"""In a real Jupyter kernel: what a notebook shows of streams, completes, and displays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import installed
from .helpers.frameworks import skip_without
from .helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(PROGRAM_TIMEOUT)]

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "notebook.md"
SETUP = """
from anystreamer import open_engine, stream_batch, stream_text, sync
from anystreamer.demo import load_demo

model, tokenizer = load_demo()
"""


class Kernel:
    """A kernel, and what a notebook asks of it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, code: str) -> list[dict[str, Any]]:
        """Run a cell. Returns the contents of its outputs."""
        outputs: list[dict[str, Any]] = []
        reply = self._client.execute_interactive(
            code,
            timeout=PROGRAM_PATIENCE,
            output_hook=lambda message: outputs.append(message["content"]),
            allow_stdin=False,
        )["content"]
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", []))
        return outputs

    def text(self, code: str) -> str:
        """Run a cell. Returns what it prints, and the text of its value."""
        outputs = self.run(code)
        printed = "".join(each.get("text", "") for each in outputs)
        return printed + "".join(each["data"]["text/plain"] for each in outputs if "data" in each)

    def completions(self, code: str) -> list[str]:
        """What Tab offers at the end of *code*."""
        names: list[str] = self._ask("complete", code)["matches"]
        return names

    def help(self, code: str) -> str:
        """What Shift-Tab shows at the end of *code*."""
        shown = self._ask("inspect", code)["data"]["text/plain"]
        return re.sub(r"\x1b\[[\d;]*m", "", shown)  # without colours

    def _ask(self, what: str, code: str) -> dict[str, Any]:
        ask = getattr(self._client, what)
        content: dict[str, Any] = ask(code, len(code), reply=True, timeout=PROGRAM_PATIENCE)[
            "content"
        ]
        return content


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    if missing := [each for each in ("jupyter_client", "ipykernel") if not installed(each)]:
        skip_without(*missing)
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=PROGRAM_PATIENCE)
    try:
        notebook = Kernel(client)
        notebook.run(SETUP)
        yield notebook
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def test_the_cells_of_the_page_run(kernel: Kernel) -> None:
    cells = re.findall(r"^```py\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(cells) > 2
    first, *others = cells
    assert kernel.text(first) == " two, three, four, five,"
    for cell in others:
        kernel.run(cell)


def test_a_stream_shows_where_it_is(kernel: Kernel) -> None:
    code = """
async with stream_text(model, tokenizer, "Count", max_new_tokens=4) as stream:
    text = await stream.read()
stream
"""
    assert kernel.text(code) == "<anystreamer.TextStream closed, length, 4 tokens>"
    assert "not opened" in kernel.text("sync.stream_text(model, tokenizer, 'Count')")


@pytest.mark.parametrize("kind", ["stream_text", "stream_batch"])
@pytest.mark.parametrize("api", ["", "sync."], ids=["async", "sync"])
def test_it_completes_the_attributes_of_a_stream(kernel: Kernel, api: str, kind: str) -> None:
    prompt = "'Count'" if kind == "stream_text" else "['Count', 'Count']"
    kernel.run(
        f"""
{"" if api else "async "}with {api}{kind}(model, tokenizer, {prompt}, max_new_tokens=4) as stream:
    pass
"""
    )
    for name in ("text", "usage", "timing", "finish_reason", "read", "stop"):
        assert name in kernel.completions(f"stream.{name[:2]}")


@pytest.mark.parametrize(
    "function",
    [
        "stream_text",
        "stream_batch",
        "sync.stream_text",
        "sync.stream_batch",
        "engine.stream_text",
        "sync.SyncEngine(engine).stream_text",
    ],
)
def test_shift_tab_shows_every_argument(kernel: Kernel, function: str) -> None:
    if "engine" in function:
        kernel.run("async with open_engine(model, tokenizer) as engine:\n    pass")
        kernel.run("shown = " + function)
        function = "shown"
    shown = kernel.help(f"{function}(")
    for name in ("stop", "timeout", "max_buffer_size", "response_format", "generate_kwargs"):
        assert re.search(rf"\b{name}\b", shown.partition("Docstring:")[0]), shown
    assert "Docstring:" in shown


def test_progress_is_shown_in_place_and_a_plot_as_a_picture(kernel: Kernel) -> None:
    if not installed("ipywidgets"):
        skip_without("ipywidgets")
    outputs = kernel.run(
        """
from anystreamer.display import plot_tokens_per_second, show_progress
async with stream_batch(
    model, tokenizer, ["An increasing sequence: one,"] * 2, max_new_tokens=100
) as stream:
    with show_progress(stream, max_new_tokens=100):
        chunks = [chunk async for chunk in stream]
"""
    )
    kinds = {kind for each in outputs for kind in each.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds
    shown = [each["data"].get("text/html", "") for each in outputs if "data" in each]
    texts = [text for each in shown if (text := re.sub(r"<[^>]*>", "", each).strip())]
    assert re.search(r"row 0 .*100 tokens.*length\s+row 1 .*100 tokens.*length", texts[-1])
    assert "Warning" not in str(outputs)
    figures = kernel.run("%matplotlib inline\nplot_tokens_per_second(chunks)")
    assert any("image/png" in each.get("data", {}) for each in figures)
