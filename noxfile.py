"""The sessions of nox: `nox` alone runs everything that a change must pass."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.16"
# uv makes in a second or two what takes pip a minute or more, in each session.
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.error_on_external_run = True
nox.options.stop_on_first_error = False
nox.options.sessions = ["everything"]

# Two lanes, which take about the same time. While one waits or uses a single core, the other uses
# the rest.
LANES = (
    ("tests",),
    (
        *("lint", "types", "docs", "dist"),
        *("tests_ray", "tests_without_torch", "tests_of_the_oldest"),
    ),
)

# torch is installed only in the version that this file lists: the one that is tested.
CONSTRAINTS = ("-c", "constraints.txt")

# The oldest Python runs all tests. The others run the tests that need no torch, without torch.
PYTHON, *OTHER_PYTHONS = nox.project.python_versions(nox.project.load_toml())

# pyenv hides all of its Pythons but one, except those in this variable.
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
if shown := [
    found.name for python in (PYTHON, *OTHER_PYTHONS) for found in sorted(PYENV.glob(f"{python}.*"))
]:
    os.environ.setdefault("PYENV_VERSION", ":".join([*shown, "system"]))

# All extras except those that install torch.
EXTRAS = "trio,uvloop,structured,video,cli,server,remote"

CORES = min(os.cpu_count() or 1, 8)

# One worker more than there are cores, because tests often wait: for servers, deadlines and the end
# of loops. The tests of a file run in one worker, because they can share a server. Files with slow
# tests come first: see tests/conftest.py. If a worker dies, the run ends: with a new worker in its
# place, xdist can wait for ever.
SIDE_BY_SIDE = (
    *("-n", os.environ.get("ANYSTREAMER_WORKERS", str(CORES + 1))),
    *("--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart=0"),
)

# A limit of a day (seconds): nightly runs take hours, longer than other runs can.
NO_LIMIT = "--session-timeout=86400"

ENV = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Test the installed package, as a user has it, not the files of the checkout.
    "ANYSTREAMER_REQUIRE_INSTALLED": "1",
}

# uv does not compile what it installs: Python does at the first import, and must keep the result.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@functools.cache
def settings_of_pip() -> dict[str, str]:
    """Variables that tell uv where pip is configured to install from: uv does not read pip's."""
    list_them = (sys.executable, "-m", "pip", "config", "list")
    listed = subprocess.run(list_them, capture_output=True, text=True, check=False).stdout
    found = {}
    for name, separator in (("find-links", ","), ("index-url", " "), ("extra-index-url", " ")):
        places = " ".join(re.findall(rf"\.{name}='(.*)'$", listed, re.MULTILINE)).split()
        if places:
            found[f"UV_{name.upper().replace('-', '_')}"] = separator.join(dict.fromkeys(places))
    # As pip does: the newest version that fits, from any of these places.
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match", **found}
    # A user's own variables are not replaced. They are not copied either: nox sets UV_PYTHON.
    return {name: value for name, value in settings.items() if name not in os.environ}


def install(session: nox.Session, *arguments: str) -> None:
    """Install packages, with uv if there is one. `.` is built again each time."""
    if session.venv_backend == "uv":
        session.install("--reinstall-package=anystreamer", *arguments, env=settings_of_pip())
    else:
        session.install(*arguments)


def install_all(session: nox.Session) -> None:
    """Install everything that tests need, torch too."""
    install(
        session,
        *CONSTRAINTS,
        *("--group", "tests", "--group", "peers", f".[transformers,notebook,{EXTRAS}]"),
    )


# For pytest's `-m`: what runs by day and at night with the other Pythons and the oldest releases.
DAY = "not (nightly or variant or slow or uvloop or trio)"
NIGHT = "not nightly and (variant or slow or uvloop or trio)"
# What takes hours at night. Two sessions, so that each fits into a job of the workflow.
LONG = "nightly"
EXAMPLES = "hypothesis and not (nightly or variant)"
# The long tests of these files are a session of their own: `soak`.
SOAKED = ("tests/engine/test_soak.py", "tests/bridge/test_teardown.py")
# Other Pythons and releases can hardly differ in the examples that Hypothesis finds.
FEW_EXAMPLES = {"HYPOTHESIS_PROFILE": "quick"}


# The tests that can differ on a Python between the oldest and the newest: of threads, tasks and
# exceptions, and of what an interpreter loads. Other tests that pass on both also pass on it.
DEPENDS_ON_PYTHON = ("bridge", "streams", "sync", "testing", "workers", "project/test_package.py")
# The newest Python that is found here.
NEWEST = next((each for each in reversed(OTHER_PYTHONS) if shutil.which(f"python{each}")), None)


def run_without_torch(session: nox.Session, *options: str, **env: str) -> None:
    """Run the tests that need no model, without torch."""
    install(session, *CONSTRAINTS, "--group", "tests", f".[{EXTRAS}]")
    # The chat page in a browser does not depend on Python.
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        "--ignore-glob=*/tests/server/test_*_in_chromium.py",
        *options,
        *session.posargs,
        env=ENV | env,
    )


def run_with_the_oldest(session: nox.Session, *options: str, **env: str) -> None:
    """Run the tests that depend on these packages, with their oldest supported versions."""
    install_all(session)
    oldest = ("anyio==4.11.0", "trio==0.31.0", "transformers==5.0.0", "tokenizers==0.22.2")
    install(session, *oldest, "openai==2.0.0")  # which uses another HTTP library
    folders = ("bridge", "drop_in", "generation", "prompts")
    names = (*folders, "engine/test_engine.py", "remote/test_shapes.py")
    # Slow tests in these folders that depend on Python and the event loop instead.
    others = ("bridge/test_interrupts.py", "bridge/test_teardown.py")
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        *(f"--ignore=tests/{name}" for name in others),
        *options,
        *(f"tests/{name}" for name in names),
        *session.posargs,
        env=ENV | env,
    )


# The files with tests of Ray Serve: its own, and promises that it must keep, too.
WITH_RAY = (
    "tests/engine/test_contract.py",
    "tests/engine/test_contract_model.py",
    "tests/project/test_public_surface.py",
    "tests/test_ray.py",
)


# Tests that need applications and libraries that are too large for the other sessions.
WITH_FRAMEWORKS = (
    "tests/generation/test_llama_cpp.py",
    "tests/project/test_docs.py",
    "tests/server/test_other_frameworks.py",
    "tests/test_gradio.py",
    "tests/test_notebook.py",
    "tests/test_streamlit.py",
)

# All tests of a cluster are slow, so these also run the slow ones.
RAY_BY_DAY = "not (nightly or variant or uvloop or trio)"
RAY_AT_NIGHT = "not nightly and (variant or uvloop or trio)"


def run_with_ray(session: nox.Session, *arguments: str) -> None:
    install(session, *CONSTRAINTS, "--group", "tests", f".[transformers,{EXTRAS},ray]")
    session.run("pytest", *arguments, env=ENV)


@nox.session(python=False)
def everything(session: nox.Session) -> None:
    """What a change has to pass, in two lanes: the output of the second comes at the end."""
    run = (sys.executable, "-m", "nox", "--sessions")
    env = os.environ | {"ANYSTREAMER_WORKERS": str(CORES)}
    log = Path(session.create_tmp()) / "second_lane.log"
    printed: list[str] = []
    with (
        log.open("w") as output,
        subprocess.Popen((*run, *LANES[1]), env=env, stdout=output, stderr=output) as second,
    ):
        try:
            with subprocess.Popen(
                (*run, *LANES[0]),
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as first:
                for line in first.stdout or ():
                    print(line, end="", flush=True)
                    printed.append(line)
            second.wait()
        finally:
            second.terminate()
            print(log.read_text(encoding="utf-8", errors="replace"), flush=True)
    if first.returncode:
        # Some services keep only the end of an output, and the other lane's is long.
        print("The end of the first lane, again:\n", *printed[-200:], sep="", flush=True)
    if first.returncode or second.returncode:
        session.error("a session has failed: see above")


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Style, formatting and the direction of imports."""
    install(session, *CONSTRAINTS, "--group", "lint", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("zizmor", "--offline", "--strict-collection", "--quiet", ".github")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """The package is typed strictly, its public names completely, and the pages' programs pass."""
    install(
        session,
        *CONSTRAINTS,
        *("--group", "typing", "--group", "tests", "--group", "peers", "nox"),
        f".[transformers,notebook,{EXTRAS}]",
    )
    examples = str(Path(session.create_tmp()).resolve() / "examples")
    shutil.rmtree(examples, ignore_errors=True)
    session.run("python", "-m", "tests.project.write_examples", examples)
    # In one run, since most of its time goes to the files of torch and transformers.
    session.run("mypy", "src", "tests", "benchmarks", "noxfile.py", examples)
    # mypy has read the first among the other tests.
    session.run("pyright", "tests/project/type_tests.py", examples)
    session.run("pyright", "--verifytypes", "anystreamer", "--ignoreexternal")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation site, into site/. A broken link or a warning fails it."""
    install(session, *CONSTRAINTS, "--group", "docs")
    # mkdocs-material would print a note about its successor at each build.
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    if shutil.which("chromium") or shutil.which("google-chrome"):
        session.run("python", "docs/search.py", "site")
    else:
        session.warn("there is no Chromium: the site's search is not tried")


def try_package(session: nox.Session, package: Path, python: str, empty: Path) -> None:
    """Install a wheel or an sdist where nothing else is, and use it, first without its extras."""
    session.run(python, "-m", "venv", str(empty), external=True)
    programs = empty / ("Scripts" if os.name == "nt" else "bin")
    inside, constraints = str(programs / "python"), Path("constraints.txt").resolve()
    pip_install = (inside, "-m", "pip", "install", "-q", "-c", str(constraints))
    # Isolated (-I): nothing is imported from PYTHONPATH or from the folder of the program.
    check = (inside, "-W", "error", "-I", str(Path("tests/project/installed.py").resolve()))
    with session.chdir(empty):
        session.run(*pip_install, str(package), external=True)
        session.run(*check, "asyncio", external=True)
        session.run(*pip_install, f"{package}[trio,cli]", external=True)
        session.run(*check, "asyncio", "trio", external=True)
        session.run(str(programs / "anystreamer"), "--help", external=True, silent=True)


@nox.session(python=PYTHON)
def dist(session: nox.Session) -> None:
    """The sdist and the wheel built from it, into dist/; and the wheel where nothing else is."""
    folder = Path("dist").resolve()
    clean = Path(session.create_tmp()).resolve() / "clean"
    for left in (folder, clean):
        shutil.rmtree(left, ignore_errors=True)
    install(session, *CONSTRAINTS, "--group", "dist")
    session.run("python", "-m", "build", "--no-isolation", f"--outdir={folder}")
    session.run("twine", "check", "--strict", *map(str, folder.iterdir()))
    session.run("python", "tests/project/built.py", str(folder))
    (wheel,) = folder.glob("*.whl")
    try_package(session, wheel, "python", clean)


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """Every test, against the built package."""
    install_all(session)
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=ENV)


@nox.session(python=PYTHON, reuse_venv=True)
def quick(session: nox.Session) -> None:
    """The tests that are not slow, on one loop. The environment is kept for the next time."""
    install_all(session)
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        *("-m", DAY),
        *session.posargs,
        env=ENV | FEW_EXAMPLES,
    )


@nox.session(python=PYTHON)
def tests_of_the_oldest(session: nox.Session) -> None:
    """What depends on anyio, transformers and openai, with the oldest that are supported."""
    run_with_the_oldest(session, "-m", DAY, **FEW_EXAMPLES)


@nox.session(python=OTHER_PYTHONS)
def tests_without_torch(session: nox.Session) -> None:
    """The tests that need no model, where torch is not installed; between two Pythons, fewer."""
    names = () if session.python == NEWEST else DEPENDS_ON_PYTHON
    run_without_torch(session, "-m", DAY, *(f"tests/{name}" for name in names), **FEW_EXAMPLES)


@nox.session(python=PYTHON)
def tests_ray(session: nox.Session) -> None:
    """The server under Ray Serve, on a cluster of two nodes on this machine."""
    # The loop is the client's. Each engine's client is tested on all three elsewhere.
    run_with_ray(session, *(session.posargs or (*WITH_RAY, "-k", "ray", "-m", RAY_BY_DAY)))


@nox.session(python=PYTHON, tags=["night"])
def night_with_ray(session: nox.Session) -> None:
    """The other loops, and many more requests than in `tests_ray`."""
    run_with_ray(session, *WITH_RAY, "-k", "ray", "-m", RAY_AT_NIGHT, NO_LIMIT)
    run_with_ray(session, "tests/test_ray.py", "-m", "nightly", NO_LIMIT)


@nox.session(python=PYTHON, tags=["night"])
def tests_clients(session: nox.Session) -> None:
    """Real clients, each in an environment of its own, with `anystreamer serve`: `-- "AI SDK"`."""
    install(session, *CONSTRAINTS, "uv", f".[transformers,{EXTRAS}]")
    environments = str(Path(session.create_tmp()).resolve() / "clients")
    run = ("python", "-m", "tests.clients", "--environments", environments)
    session.run(*run, *session.posargs, env=settings_of_pip() | ENV)


@nox.session(python=PYTHON, tags=["night"])
def night_with_frameworks(session: nox.Session) -> None:
    """The pages about LangChain, Streamlit and others, and notebooks, with each of them."""
    install_all(session)
    # Without the constraints: some of them need an openai of before version 3.
    install(session, "--group", "frameworks", "--group", "typing")
    examples = str(Path(session.create_tmp()).resolve() / "examples")
    shutil.rmtree(examples, ignore_errors=True)
    session.run("python", "-m", "tests.project.write_examples", examples)
    session.run("mypy", examples)
    session.run("pyright", examples)
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        *("-m", "not nightly"),
        *(session.posargs or WITH_FRAMEWORKS),
        env=ENV | {"ANYSTREAMER_REQUIRE_FRAMEWORKS": "1"},
    )


@nox.session(python=PYTHON, tags=["night"])
def nightly(session: nox.Session) -> None:
    """The long tests, one at a time: some measure memory. `soak` runs those of two files."""
    install_all(session)
    session.run(
        "pytest",
        *("-m", LONG),
        "--timeout=3600",
        NO_LIMIT,
        *(session.posargs or (f"--ignore={name}" for name in SOAKED)),
        env=ENV | {"HYPOTHESIS_PROFILE": "nightly"},
    )


@nox.session(python=PYTHON, tags=["night"])
def night_of_examples(session: nox.Session) -> None:
    """Many more examples for each test of Hypothesis."""
    install_all(session)
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        *("-m", EXAMPLES),
        "--timeout=3600",
        NO_LIMIT,
        *session.posargs,
        env=ENV | {"HYPOTHESIS_PROFILE": "nightly"},
    )


@nox.session(python=PYTHON, tags=["night"])
def night_of_variants(session: nox.Session) -> None:
    """What `tests` leaves out: the variants that can hardly differ."""
    install_all(session)
    session.run("pytest", *SIDE_BY_SIDE, "-m", "variant and not nightly", *session.posargs, env=ENV)


@nox.session(python=PYTHON, tags=["night"])
def tests_of_the_newest(session: nox.Session) -> None:
    """Every test, with the newest of everything but torch: what a user gets who installs today."""
    (torch,) = (
        line
        for line in Path("constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    every_extra = f".[transformers,notebook,{EXTRAS}]"
    install(session, torch, "--group", "tests", "--group", "peers", every_extra)
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=ENV)


# A torchvision that was built for another torch fails when it is imported.
TRY_TORCHVISION = """
import torch
try:
    import torchvision
except Exception as exc:
    print(f"torch {torch.__version__}:", str(exc).splitlines()[0])
"""


@nox.session(python=PYTHON, tags=["night"])
def night_with_videos(session: nox.Session) -> None:
    """Videos in chats, and models whose processors need torchvision."""
    install_all(session)
    install(session, *CONSTRAINTS, "--group", "videos")
    problem = str(session.run("python", "-c", TRY_TORCHVISION, silent=True) or "").strip()
    if problem:
        session.error(
            f"torchvision does not work with this torch ({problem}). Both have to come from the "
            "same place. A torch with +cpu in its version is from PyTorch's own index: add it, by "
            "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, or take both from PyPI"
        )
    names = ("prompts", "server/test_media.py", "loading/test_model_class.py")
    session.run(
        "pytest",
        *SIDE_BY_SIDE,
        *("-m", "not nightly"),
        *(session.posargs or [f"tests/{name}" for name in names]),
        env=ENV,
    )


@nox.session(python=PYTHON, tags=["night"])
def night_with_the_oldest(session: nox.Session) -> None:
    """What `tests_of_the_oldest` leaves out."""
    run_with_the_oldest(session, "-m", NIGHT)


@nox.session(python=OTHER_PYTHONS, tags=["night"])
def night_without_torch(session: nox.Session) -> None:
    """What `tests_without_torch` leaves out."""
    run_without_torch(session, "-m", NIGHT if session.python == NEWEST else "not nightly")


@nox.session(python=PYTHON, tags=["night"])
def soak(session: nox.Session) -> None:
    """10,000 streams with faults on each loop, and 2,000 loops killed under flat-out workers."""
    install_all(session)
    session.run(
        "pytest",
        "-m",
        "nightly",
        "-rP",  # the figures
        NO_LIMIT,
        *(session.posargs or SOAKED),
        env=ENV,
    )


# A version that no commit will ever have.
REHEARSED = "999.0.0"


@nox.session(python=PYTHON, tags=["night"])
def rehearse_release(session: nox.Session) -> None:
    """Every step of a release except the upload: the version, its tag, the packages, each Python.

    In the unpacked sdist it runs the README's commands, and so all tests.
    """
    place = Path(session.create_tmp()).resolve() / "release"
    shutil.rmtree(place, ignore_errors=True)
    install(session, *CONSTRAINTS, "--group", "dist")
    session.run("git", "clone", "-q", "--no-tags", ".", str(place / "clone"), external=True)
    with session.chdir(place / "clone"):
        session.run("python", "tests/project/release.py", "prepare", REHEARSED)
        me = ("-c", "user.name=release", "-c", "user.email=release@localhost")
        session.run("git", *me, "commit", "-qam", f"Version {REHEARSED}", external=True)
        session.run("git", "tag", f"v{REHEARSED}", external=True)
        tag = session.run("git", "describe", "--exact-match", "--tags", external=True, silent=True)
        session.run("python", "tests/project/release.py", "check", str(tag).strip(), silent=True)
        session.run("python", "-m", "build", "--no-isolation", f"--outdir={place / 'dist'}")
        session.run("twine", "check", "--strict", *map(str, (place / "dist").iterdir()))
        session.run("python", "tests/project/built.py", str(place / "dist"))
        for python in (f"python{each}" for each in (PYTHON, *OTHER_PYTHONS)):
            if shutil.which(python) is None:
                session.warn(f"{python} was not found: the packages are not tried on it")
                continue
            for package in sorted((place / "dist").iterdir()):
                try_package(session, package, python, place / f"{python}{package.suffix}")
    (sdist,) = (place / "dist").glob("*.tar.gz")
    shutil.unpack_archive(sdist, place, filter="data")
    with session.chdir(place / f"anystreamer-{REHEARSED}"):
        readme = Path("README.md").read_text(encoding="utf-8")
        demo, nox_itself = re.findall(r"^```console\n(.+)\n```", readme, re.MULTILINE)
        # As in a terminal: without the variables of this session.
        outside = dict.fromkeys(("VIRTUAL_ENV", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT"))
        path = f"export PATH={shlex.quote(os.environ['PATH'])}\n"
        for command in (demo, " ".join((nox_itself, *session.posargs))):
            session.run("bash", "-ec", path + command, env=outside, external=True)


@nox.session(python=PYTHON)
def screenshots(session: nox.Session) -> None:
    """Make the pictures in docs/images again, with the Chromium of this machine."""
    install(session, *CONSTRAINTS, "--group", "docs", ".[transformers,server]")
    session.run("python", "docs/screenshots.py", *session.posargs, env=ENV)


@nox.session(python=PYTHON)
def benchmarks(session: nox.Session) -> None:
    """Measure what the pages claim, beside peers: `-- --quick`, `-- --check`, `-- edge`."""
    install(session, *CONSTRAINTS, "--group", "benchmarks", f".[transformers,{EXTRAS},ray]")
    session.run("python", "-m", "benchmarks", *session.posargs, env=ENV)
