"""The pages keep their word: examples print what they say, and the tests that are named exist."""

from __future__ import annotations

import ast
import gc
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

from anystreamer import demo

from ..conftest import LOOPS, installed
from ..helpers.frameworks import skip_without
from ..helpers.gguf_model import write_gguf
from ..helpers.inside import start_portal
from ..helpers.serving import serving

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
# A python block, its file if it has one, and the text block right after it, which is its output.
BLOCK = re.compile(
    r'^```python(?: title="(.*?)")?\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?',
    re.DOTALL | re.MULTILINE,
)
# Libraries of others that a page drives. Where one is not installed, its example is skipped. Those
# of the second line are large: `nox -s night_with_frameworks` installs them.
DRIVEN = ("ctranslate2", "duckdb", "watchdog")
FRAMEWORKS = (
    *("langchain_core", "langchain_openai", "llama_cpp", "llama_index", "pydantic_ai"),
    "websockets",
)
# What the examples in the pages call their server. Where they have no application of their own, it
# is what `anystreamer serve` serves.
ADDRESS = "http://127.0.0.1:8000"
SERVED = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anystreamer import open_engine
from anystreamer.demo import load_demo
from anystreamer.server import create_app
from starlette.applications import Starlette


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with open_engine(*load_demo()) as engine:
        app.mount("/", create_app(engine, model_name="anystreamer-demo"))
        yield


app = Starlette(lifespan=lifespan)
"""
# What they load. A folder with the embedded model takes its place.
MODEL = "Qwen/Qwen3-0.6B"
GGUF = "model.gguf"  # and a file of it


def examples() -> Iterator[Any]:
    """Each block of each page, on each loop if it uses one that can be chosen.

    A block that is the file of an application is served while the one after it runs.
    """
    for path in PAGES:
        app = None
        for number, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")), 1):
            file, code, output = match.groups()
            if file == "app.py":
                app = code
                continue
            if app is None and ADDRESS in code:
                app = SERVED
            any_loop = app is not None or "anyio.run(" in code or "async def test_" in code
            for loop in LOOPS if any_loop else LOOPS[:1]:
                if loop.id != "trio" and "quart_trio" in (app or ""):
                    continue  # it has no other
                name = f"{path.relative_to(ROOT).as_posix()}-{number}"
                yield pytest.param(
                    *loop.values, app, code, output, id=f"{loop.id}-{name}" if any_loop else name
                )
            app = None


def missing_libraries(code: str) -> list[str]:
    """The libraries of others that a program drives and that are not installed here."""
    return [
        library
        for library in (*DRIVEN, *FRAMEWORKS)
        if re.search(rf"^(import|from) {library}\b", code, re.MULTILINE) and not installed(library)
    ]


def executed(code: str) -> dict[str, Any]:
    """Run a program. Returns its names."""
    names = {"__name__": "__main__"}
    # Without this file's own `from __future__`, which would make strings of its annotations.
    exec(compile(code, "example", "exec", dont_inherit=True), names)
    return names


@pytest.fixture(scope="module", autouse=True)
def one_model_for_all() -> Iterator[None]:
    """Load the embedded model once, and keep it out of each test's garbage collection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_demo", cache(demo.load_demo))
        patch.setattr("tqdm.tqdm.monitor_interval", 0)  # a thread that stays, for progress bars
        demo.load_demo()
        gc.freeze()
        yield


EXAMPLES = list(examples())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    for each in demo.load_demo():
        each.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / GGUF
    write_gguf(path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("anyio_backend", "app", "code", "output"), EXAMPLES, indirect=["anyio_backend"]
)
def test_example(
    app: str | None,
    code: str,
    output: str | None,
    anyio_backend: tuple[str, dict[str, Any]],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: str,
) -> None:
    code = code.replace(MODEL, model_folder)
    if missing := missing_libraries(code):
        skip_without(*missing)
    if GGUF in code:
        code = code.replace(GGUF, request.getfixturevalue("model_file"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    start_portal()  # its loop is not one of these
    run = anyio.run
    backend, options = anyio_backend

    def run_here(func: Callable[..., Any], *args: Any, **_: Any) -> Any:
        return run(func, *args, backend=backend, backend_options=options)

    async def run_against(app: str) -> None:
        async with serving(executed(app)["app"], lifespan="on") as url:
            await anyio.to_thread.run_sync(executed, code.replace(ADDRESS, url))

    monkeypatch.setattr(anyio, "run", run_here)
    if app is not None:
        run_here(run_against, app)
    else:
        for name, value in executed(code).items():
            if name.startswith("test_"):
                fixtures = map(request.getfixturevalue, inspect.signature(value).parameters)
                run_here(value, *fixtures)
    if output is not None:
        assert capsys.readouterr().out == output


def test_there_are_examples() -> None:
    """And each block of code, and each block of output, is a part of one."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        blocks = BLOCK.findall(text)
        assert text.count("```python") == len(blocks), path
        assert text.count("```text") == sum(bool(output) for _, _, output in blocks), path
    assert len(EXAMPLES) > 50


def test_each_test_that_a_page_names_exists() -> None:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
            assert not name or name in functions_of(file), f"{path.name} names {file}::{name}"
            assert (ROOT / file).is_file(), f"{path.name} names {file}"


def test_each_promise_has_a_test() -> None:
    """The page of proofs goes through all that is promised, in the same order and words."""
    promises = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    proofs = (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")
    promised = re.findall(
        r"^(?:\d+\.|-) \*\*(.*?)\*\*", promises.partition("\n## ")[0], re.MULTILINE
    )
    sections = re.split(r"^## (?:\d+\. )?", proofs, flags=re.MULTILINE)[1:]
    assert [each.partition("\n")[0] for each in sections] == [
        each.rstrip(".,") for each in promised
    ]
    for section in sections:
        assert "::test_" in section


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {
        each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
