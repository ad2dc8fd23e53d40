"""The pages keep their word: examples print what they say, and the tests that are named exist."""

from __future__ import annotations

import ast
import gc
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
from ..helpers.tiny_processors import kind_named, picture, recording, wav
from ..helpers.whisper_folder import save_whisper

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


@dataclass(frozen=True)
class Part:
    """How a block of ``py`` runs, which is a part of a program or loads a large model.

    Args:
        before: what comes before it. It can await, and enter blocks into ``stack``.
        instead: what takes the place of names and addresses in it.
        needs: packages without which it is skipped.
        reason: why it does not run in this file; then the rest counts for nothing.
    """

    before: str = ""
    instead: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    reason: str = ""


OPENING = """
from anystreamer import open_engine
from anystreamer.demo import load_demo
from anystreamer.remote import open_remote_engine

model, tokenizer = load_demo()
"""
IN_A_KERNEL = Part(reason="tests/test_notebook.py runs it, in a kernel")
# The blocks of ``py`` of each page, in their order.
PARTS = {
    "remote.md": [Part(OPENING), Part(OPENING)],
    "scale.md": [
        Part(
            f"""{OPENING}
from types import SimpleNamespace

app = SimpleNamespace(state=SimpleNamespace())
"""
        )
    ],
    "how-to/engines.md": [
        Part(
            f"""{OPENING}
import contextlib

engine = await stack.enter_async_context(open_engine(model, tokenizer))
question = "Count from one to three."

async def answer(engine, question):
    async with engine.stream_text(question, max_new_tokens=5) as stream:
        async for text in stream:
            yield text
"""
        )
    ],
    "how-to/gradio.md": [Part(reason="tests/test_gradio.py serves it")],
    "how-to/llama-cpp.md": [
        Part(
            "messages = [{'role': 'user', 'content': 'Count from one to three.'}]",
            (("http://localhost:11434", ADDRESS), ("qwen3", "anystreamer-demo")),
        )
    ],
    "how-to/notebook.md": [IN_A_KERNEL] * 3,
    "how-to/own-model.md": [
        Part(needs=("accelerate",)),
        Part(reason="peft is not among what the tests install, and me/my-lora does not exist"),
    ],
    "how-to/pictures.md": [
        Part(instead=(("Qwen/Qwen2.5-VL-3B-Instruct", "{seeing}"), ("photo.jpg", "{photo}"))),
    ],
    "how-to/streamlit.md": [Part(reason="tests/test_streamlit.py runs it")],
    "how-to/whisper.md": [
        Part(
            instead=(("openai/whisper-small", "{hearing}"), ("speech.wav", "{speech}")),
            needs=("soundfile",),
        ),
        Part(
            """
import soundfile
from anystreamer import stream_text
from transformers import WhisperForConditionalGeneration, WhisperProcessor

model = WhisperForConditionalGeneration.from_pretrained("{hearing}")
processor = WhisperProcessor.from_pretrained("{hearing}")
samples, rate = soundfile.read("{speech}")
""",
            needs=("soundfile",),
        ),
    ],
}
PART = re.compile(r"^```py(?: title=.*?)?\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def parts() -> Iterator[Any]:
    for name, found in PARTS.items():
        blocks = PART.findall((ROOT / "docs" / name).read_text(encoding="utf-8"))
        for number, (part, code) in enumerate(zip(found, blocks, strict=True), 1):
            any_loop = "async with" in code
            for loop in (LOOPS if any_loop else LOOPS[:1]) if not part.reason else ():
                test = f"{name}-{number}"
                yield pytest.param(
                    *loop.values, part, code, id=f"{loop.id}-{test}" if any_loop else test
                )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the parts load, by the names that they have in `PARTS`."""
    folder = tmp_path_factory.mktemp("files")
    kind = kind_named("llava")
    for each in (kind.model, kind.processor):
        each.save_pretrained(folder / "seeing")
    save_whisper(folder / "hearing")
    picture().save(folder / "photo.jpg")
    (folder / "speech.wav").write_bytes(wav(recording(seconds=2.5)))  # more than a window
    names = {"seeing": "seeing", "hearing": "hearing", "photo": "photo.jpg", "speech": "speech.wav"}
    return {name: str(folder / file) for name, file in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("anyio_backend", "part", "code"), list(parts()), indirect=["anyio_backend"]
)
def test_a_part_of_a_program_runs(
    part: Part,
    code: str,
    anyio_backend: tuple[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    model_folder: str,
    files: dict[str, str],
) -> None:
    for needed in part.needs:
        pytest.importorskip(needed)
    code = f"{part.before}\n{code}".replace(MODEL, model_folder)
    for old, new in part.instead:
        assert old in code
        code = code.replace(old, new)
    for name, path in files.items():
        code = code.replace(f"{{{name}}}", path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    backend, options = anyio_backend
    run = anyio.run

    async def run_with_server() -> None:
        async with serving(executed(SERVED)["app"], lifespan="on") as url:
            await run_part(code.replace(ADDRESS, url))

    if ADDRESS in code:
        run(run_with_server, backend=backend, backend_options=options)
    elif "anyio.run(" in code:
        monkeypatch.setattr(
            anyio, "run", lambda main: run(main, backend=backend, backend_options=options)
        )
        executed(code)
    else:
        run(run_part, code, backend=backend, backend_options=options)


async def run_part(code: str) -> None:
    """Run a part in this event loop: it can await."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    async with AsyncExitStack() as stack:
        names = {"__name__": "__main__", "stack": stack}
        program = eval(compile(code, "example", "exec", flags=flags, dont_inherit=True), names)
        if inspect.iscoroutine(program):
            await program


def test_each_part_of_a_program_runs_or_says_why_not() -> None:
    found = {}
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        if blocks := PART.findall(text):
            assert text.count("```py\n") + text.count("```py ") == len(blocks), path
            found[path.relative_to(ROOT / "docs").as_posix()] = len(blocks)
    assert found == {name: len(each) for name, each in PARTS.items()}


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
