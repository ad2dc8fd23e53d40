"""The one entry point: `nox` alone runs all that a change has to pass."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.error_on_external_run = True
nox.options.stop_on_first_error = False
nox.options.sessions = [
    "lint",
    "types",
    "docs",
    "dist",
    "tests_without_torch",
    "tests",
    "tests_ray",
    "tests_of_the_oldest",
]

# torch is only ever installed with these: unpinned, it takes gigabytes.
CONSTRAINTS = ("-c", "constraints.txt")

# The oldest has everything installed; the others show that the rest needs no torch.
PYTHON, *OTHER_PYTHONS = nox.project.python_versions(nox.project.load_toml())

# pyenv hides the Pythons it has, all but one, until it is told to show them.
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
if shown := [
    found.name for python in (PYTHON, *OTHER_PYTHONS) for found in sorted(PYENV.glob(f"{python}.*"))
]:
    os.environ.setdefault("PYENV_VERSION", ":".join([*shown, "system"]))

# All but what brings torch along.
EXTRAS = "trio,uvloop,cli,server,remote"

# Tests mostly wait, for servers, deadlines and loops that end: three of them fill two cores. A file
# stays together, for it may share a server. A worker that dies ends the run: with
# a replacement, xdist can wait for ever.
SIDE_BY_SIDE = ("-n", "3", "--dist", "loadfile", "--max-worker-restart=0")

# In seconds. Nightly runs take hours, longer than the limit for a whole run.
NO_LIMIT = "--session-timeout=86400"

ENV = {
    # 200 examples each instead of 100; see tests/conftest.py.
    "HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", "ci"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # What is tested is what a user installs, not the files of the checkout.
    "ANYSTREAMER_REQUIRE_INSTALLED": "1",
}


def install_all(session: nox.Session) -> None:
    """What every test needs, torch among it."""
    session.install(
        *CONSTRAINTS, "--group", "tests", "--group", "peers", f".[transformers,{EXTRAS}]"
    )


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Style, formatting and the direction of imports."""
    session.install(*CONSTRAINTS, "--group", "lint", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("zizmor", "--offline", "--strict-collection", "--quiet", ".github")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """The package is typed strictly, and all of its public names completely."""
    session.install(
        *CONSTRAINTS,
        *("--group", "typing", "--group", "tests", "nox"),
        f".[transformers,{EXTRAS}]",
    )
    session.run("mypy")
    # mypy has read it among the other tests.
    session.run("pyright", "tests/project/type_tests.py")
    session.run("pyright", "--verifytypes", "anystreamer", "--ignoreexternal")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation site, into site/. A broken link or a warning fails it."""
    session.install(*CONSTRAINTS, "--group", "docs")
    # mkdocs-material would speak of its successor at each build.
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(python=PYTHON)
def dist(session: nox.Session) -> None:
    """The sdist and the wheel built from it, into dist/; and the wheel where nothing else is."""
    folder = Path("dist").resolve()
    temporary = Path(session.create_tmp()).resolve()
    clean = temporary / "clean"
    for left in (folder, clean):
        shutil.rmtree(left, ignore_errors=True)
    session.install(*CONSTRAINTS, "--group", "dist")
    session.run("python", "-m", "build", "--no-isolation", f"--outdir={folder}")
    session.run("twine", "check", "--strict", *map(str, folder.iterdir()))
    session.run("python", "tests/project/built.py", str(folder))

    session.run("python", "-m", "venv", str(clean))
    programs = clean / ("Scripts" if os.name == "nt" else "bin")
    python, constraints = str(programs / "python"), Path("constraints.txt").resolve()
    install = (python, "-m", "pip", "install", "-q", "-c", str(constraints))
    (wheel,) = folder.glob("*.whl")
    # Isolated: neither a PYTHONPATH nor the folder of the program has a say in what is imported.
    check = (python, "-W", "error", "-I", str(Path("tests/project/installed.py").resolve()))
    with session.chdir(temporary):
        session.run(*install, str(wheel), external=True)
        session.run(*check, "asyncio", external=True)
        session.run(*install, f"{wheel}[trio,cli]", external=True)
        session.run(*check, "asyncio", "trio", external=True)
        session.run(str(programs / "anystreamer"), "--help", external=True, silent=True)


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """Every test, against the built package."""
    install_all(session)
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=ENV)


@nox.session(python=PYTHON)
def tests_of_the_oldest(session: nox.Session) -> None:
    """What depends on anyio and transformers, with the oldest of them that are supported."""
    install_all(session)
    session.install("anyio==4.11.0", "trio==0.31.0", "transformers==5.0.0", "tokenizers==0.22.2")
    names = ("bridge", "generation", "engine/test_engine.py")
    # Of these folders what takes long, and depends on Python and the loop instead.
    others = ("bridge/test_interrupts.py", "bridge/test_teardown.py")
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        *(f"--ignore=tests/{name}" for name in others),
        *(f"tests/{name}" for name in names),
        env=ENV,
    )


@nox.session(python=PYTHON)
def tests_of_the_newest(session: nox.Session) -> None:
    """Every test, with the newest of everything but torch: what a user gets who installs today."""
    (torch,) = (
        line
        for line in Path("constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    session.install(torch, "--group", "tests", "--group", "peers", f".[transformers,{EXTRAS}]")
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=ENV)


@nox.session(python=OTHER_PYTHONS)
def tests_without_torch(session: nox.Session) -> None:
    """The tests that need no model, where torch is not installed."""
    session.install(*CONSTRAINTS, "--group", "tests", f".[{EXTRAS}]")
    # A browser does not see which Python it is.
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        "--ignore=tests/server/test_chat_page_in_chromium.py",
        *session.posargs,
        env=ENV,
    )


@nox.session(python=PYTHON)
def tests_ray(session: nox.Session) -> None:
    """The server under Ray Serve, on a cluster of two nodes on this machine."""
    session.install(*CONSTRAINTS, "--group", "tests", f".[transformers,{EXTRAS},ray]")
    # Of the others what is said of Ray Serve too.
    names = ("engine/test_contract", "engine/test_contract_model", "project/test_public_surface")
    files = (*(f"tests/{name}.py" for name in names), "tests/test_ray.py")
    session.run("pytest", *(session.posargs or (*files, "-k", "ray")), env=ENV)


@nox.session(python=PYTHON)
def nightly(session: nox.Session) -> None:
    """What takes too long for every change: many more Hypothesis examples, long soaks."""
    install_all(session)
    session.run(
        "pytest",
        "-m",
        "nightly or hypothesis",
        "--timeout=3600",
        NO_LIMIT,
        *session.posargs,
        env=ENV | {"HYPOTHESIS_PROFILE": "nightly"},
    )


@nox.session(python=PYTHON)
def soak(session: nox.Session) -> None:
    """10,000 streams with faults on each loop, and 2,000 loops killed under flat-out workers."""
    install_all(session)
    session.run(
        "pytest",
        "-m",
        "nightly",
        "-rP",  # the figures
        NO_LIMIT,
        *(session.posargs or ("tests/engine/test_soak.py", "tests/bridge/test_teardown.py")),
        env=ENV,
    )


@nox.session(python=PYTHON)
def screenshots(session: nox.Session) -> None:
    """Make the pictures in docs/images again, with the Chromium of this machine."""
    session.install(*CONSTRAINTS, "--group", "docs", ".[transformers,server]")
    session.run("python", "docs/screenshots.py", *session.posargs, env=ENV)


@nox.session(python=PYTHON)
def benchmarks(session: nox.Session) -> None:
    """Measure what the pages claim, beside peers: `-- --quick`, `-- --check`, `-- edge`."""
    session.install(*CONSTRAINTS, "--group", "benchmarks", f".[transformers,{EXTRAS},ray]")
    session.run("python", "-m", "benchmarks", *session.posargs, env=ENV)
