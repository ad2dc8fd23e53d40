"""What is public: `__all__`, the names that a module shows, and the reference say the same."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import anystreamer

ROOT = Path(__file__).parents[2]
PACKAGE = Path(anystreamer.__file__).parent

# Modules that are run and not imported: what is in them is nobody else's.
PROGRAMS = ("anystreamer.cli", "anystreamer.demo.sequences", "anystreamer.demo.train")
# What a public function returns, and nobody makes or names: its methods are in the reference.
NAMELESS = {"anystreamer._text.TextDecoder"}
PUBLIC = sorted(
    {
        name
        for name in (
            "anystreamer",
            *(each.name for each in pkgutil.walk_packages([str(PACKAGE)], "anystreamer.")),
        )
        if "._" not in name and not name.startswith(PROGRAMS)
    }
)


def source_of(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(name: str) -> ModuleType:
    """A public module; the test is skipped where the extra that it needs is not installed."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Ray has some of its own
            return importlib.import_module(name)
    except ImportError as missing:
        pytest.skip(str(missing))


def defined(tree: ast.Module) -> Iterator[str]:
    """What a module binds itself, without its imports and without the names of type variables."""
    for each in tree.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield each.name
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id
        elif isinstance(each, ast.Assign) and not re.match("TypeVar|ParamSpec", text(each.value)):
            yield from (target.id for target in each.targets if isinstance(target, ast.Name))


def text(node: ast.AST) -> str:
    return ast.unparse(node)


def is_public(name: str) -> bool:
    return not name.startswith("_")


def undocumented_fields(kind: type) -> list[str]:
    """Those with neither a comment after ``#:``, beside or above, nor a string below."""
    lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    definition = ast.parse("\n".join(lines)).body[0]
    assert isinstance(definition, ast.ClassDef)
    return [
        field.target.id
        for field in definition.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and is_public(field.target.id)
        and "#:" not in lines[field.lineno - 1]
        and not lines[field.lineno - 2].lstrip().startswith("#:")
    ]


def test_the_reference_has_each_public_module_and_no_other() -> None:
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    table, _, _ = index.partition("## Versions")
    assert sorted(set(re.findall(r"`(anystreamer[.\w]*)`", table))) == PUBLIC


def test_the_reference_has_each_public_name_and_no_other() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    entries = [
        entry
        for page in pages
        for entry in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(entries) == len(set(entries))
    assert {*entries} - NAMELESS == {
        f"{module}.{name}" for module in PUBLIC for name in exported(module)
    }


def exported(name: str) -> list[str]:
    """A module's `__all__`, read from its source: for Ray's none but itself is needed."""
    for each in ast.parse(source_of(name).read_text(encoding="utf-8")).body:
        if isinstance(each, ast.Assign) and text(each.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(each.value)
            return names
    pytest.fail(f"{name} has no __all__")


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_all_that_a_module_has_of_its_own(name: str) -> None:
    names = exported(name)
    assert names == sorted(set(names)), "in alphabetical order, each once"
    source = ast.parse(source_of(name).read_text(encoding="utf-8"))
    assert {each for each in defined(source) if is_public(each)} <= {*names}


@pytest.mark.parametrize("name", ["anystreamer", "anystreamer.remote", "anystreamer.server"])
def test_a_package_shows_its_public_names_and_nothing_else(name: str) -> None:
    """These hold no code, so that completion offers what is public alone."""
    package = imported(name)
    modules = {*PUBLIC, *PROGRAMS}
    shown = {each for each in dir(package) if is_public(each) and f"{name}.{each}" not in modules}
    assert shown == set(package.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_documented(name: str) -> None:
    """So are the methods, properties and fields of public classes, those of private bases too."""
    module = imported(name)
    source = source_of(name).read_text(encoding="utf-8")
    assert module.__doc__
    missing = []
    for each in module.__all__:
        value = getattr(module, each)
        # What documents an alias of types is the string below it, which Python does not keep.
        if not value.__doc__ and not re.search(rf'^{each} = .*\n"""\w', source, re.MULTILINE):
            missing.append(each)
        for kind in inspect.getmro(value) if inspect.isclass(value) else ():
            if not kind.__module__.startswith("anystreamer"):
                continue
            missing += [f"{each}.{field}" for field in undocumented_fields(kind)]
            missing += [
                f"{each}.{member}"
                for member, object_ in vars(kind).items()
                if is_public(member)
                and (inspect.isroutine(object_) or isinstance(object_, property))
                and not inspect.getdoc(getattr(kind, member))
            ]
    assert not missing
