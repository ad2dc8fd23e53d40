"""What a bare `import anystreamer` costs, and which way its modules import."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import grimp
import pytest

import anystreamer

# What anyio itself loads on use counts as anyio's.
LOADED_BY_IMPORT = """
import json, sys
import anyio, anyio.abc, anyio.from_thread, anyio.lowlevel, anyio.streams.memory, anyio.to_thread
before = set(sys.modules)
import anystreamer
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that a fresh interpreter loads for `import anystreamer`, beyond anyio's."""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED_BY_IMPORT],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return set(json.loads(output))


def test_import_loads_nothing_heavy(loaded: set[str]) -> None:
    """Neither a model library nor an event loop: a program may import it and never use it."""
    heavy = {"asyncio", "numpy", "rich", "tokenizers", "torch", "transformers", "trio", "typer"}
    heavy |= {"prometheus_client", "pydantic", "starlette"}
    assert heavy.isdisjoint(name.partition(".")[0] for name in loaded)


def test_import_is_quick(loaded: set[str]) -> None:
    """Well under 0.1 s (0.5 ms a module). Counted in modules, which load cannot change."""
    own = {name for name in loaded if name.partition(".")[0] == "anystreamer"}
    assert len(own) <= 120
    assert len(loaded - own) <= 45


def test_what_is_tested_is_installed(pytestconfig: pytest.Config) -> None:
    """nox builds a wheel. That it is not shadowed by the files beside the tests, is seen here."""
    if not os.environ.get("ANYSTREAMER_REQUIRE_INSTALLED"):
        pytest.skip("ANYSTREAMER_REQUIRE_INSTALLED is not set")
    assert not Path(anystreamer.__file__).is_relative_to(pytestconfig.rootpath / "src")


@pytest.mark.parametrize("name", anystreamer.__all__)
def test_public_names(name: str) -> None:
    """Each is there, or says which extra it needs."""
    assert name in dir(anystreamer)
    message = None
    try:
        getattr(anystreamer, name)
    except ImportError as error:
        message = str(error)
    if importlib.util.find_spec("transformers") is not None:
        assert message is None
    elif message is not None:
        assert "anystreamer[transformers]" in message


@pytest.mark.parametrize(
    "module", ["", ".demo", ".pytest_plugin", ".remote", ".server", ".sync", ".testing"]
)
def test_import_without_torch_and_without_warnings(module: str) -> None:
    """What needs neither a model nor tensors can be imported where there are none."""
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None;"
        f"import anystreamer{module}"
    )
    imported = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert (imported.returncode, imported.stderr) == (0, "")


def test_unknown_name() -> None:
    """A lazy package still says that a name is missing, so that `hasattr` and typos work."""
    with pytest.raises(AttributeError, match="no_such_name"):
        anystreamer.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_typed() -> None:
    """Type checkers read the annotations of a package that carries this file."""
    assert files(anystreamer).joinpath("py.typed").is_file()


def test_imports_point_one_way(pytestconfig: pytest.Config) -> None:
    """The contracts in pyproject.toml hold: layers, no event loop, no torch in the pure modules."""
    linted = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout


def test_a_package_is_imported_by_its_own_name() -> None:
    """What a package needs of another, that one exports: its modules are its own affair."""
    graph = grimp.build_graph("anystreamer", cache_dir=None)
    across = {
        f"{importer} -> {module}"
        for module in graph.modules
        if module.count(".") > 1
        for importer in graph.find_modules_that_directly_import(module)
        if importer.split(".")[1:2] != module.split(".")[1:2]
    }
    assert across == set()
