"""The command line, as a process of its own and, for its messages, in this one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import anystreamer.demo
from anystreamer.cli.commands import app
from anystreamer.cli.connection_limits import OTHER_FILES, ConnectionLimits

from ..helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT
from ..helpers.warm_programs import Program, WarmProgram, start_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PROGRAM_TIMEOUT)]

both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])

COUNTING = "An increasing sequence: one,"
COUNTED = " two, three, four, five, six, seven, eight, nine, ten, eleven,"
FIGURES = r"length, 20 tokens, the first after \d+\.\d ms, then \d+ tokens/s\n"
INSTALL = "pip install 'anystreamer[demo]' (in a checkout: pip install '.[demo]')"

# What would decide about encodings in a test's place.
UNSET = {"PYTHONIOENCODING", "PYTHONUTF8"}
ENV = {name: value for name, value in os.environ.items() if name not in UNSET}


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        env=ENV | {"PYTHONUTF8": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(*command: str, **env: str) -> tuple[int, str, str]:
    """The exit code, and what went to standard output and standard error."""
    with start(*command, **env) as process:
        output, errors = process.communicate()
    return process.returncode, output, errors


def start_warm(*command: str, **env: str) -> Program:
    return start_program(*command, env=ENV | {"PYTHONUTF8": "1"} | env)


def run_warm(*command: str, **env: str) -> tuple[int | None, str, str]:
    """As `run`, without the seconds in which an interpreter imports torch."""
    with start_warm(*command, **env) as process:
        output, errors = process.communicate()
    return process.returncode, output, errors


def demo(*arguments: str, **env: str) -> tuple[int | None, str, str]:
    return run_warm("-m", "anystreamer", "demo", *arguments, **env)


def main_after(statement: str, *arguments: str) -> list[str]:
    """The command line for a process that runs *statement* before ``main()``."""
    code = f"import sys; {statement}; from anystreamer.cli import main; main()"
    return ["-c", code, *arguments]


def invoke(*arguments: str) -> tuple[int, str]:
    """The exit code, and what was said, without its frame."""
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


# -- the tour


@pytest.mark.torch
def test_tour() -> None:
    """Counting on both loops, then a cancelled generation with what became of the model."""
    code, output, errors = run("-m", "anystreamer", "demo")
    assert (code, errors) == (0, "")
    line = re.escape(COUNTING + COUNTED)
    expected = (
        rf"asyncio\n{line}\n{FIGURES}\n"
        rf"trio\n{line}\n{FIGURES}\n"
        rf"asyncio, cancelled by move_on_after\(0\.2\)\n{COUNTING}[a-z, -]*\n"
        r"cancelled, \d+ tokens?(, the first after \d+\.\d ms(, then \d+ tokens/s)?)?\n"
        r"cancelled -?\d+\.\d ms after the deadline: the model took (0 steps|1 step) more, "
        r"and its thread ended in \d+\.\d ms\n"
    )
    assert re.fullmatch(expected, output), output


@pytest.mark.torch
def test_tour_on_one_backend() -> None:
    code, output, errors = demo("--backend", "trio", "--max-new-tokens", "2")
    assert (code, errors) == (0, "")
    assert output.startswith(f"trio\n{COUNTING} two,\nlength, 2 tokens,")
    assert "trio, cancelled by" in output
    assert "asyncio" not in output


@pytest.mark.torch
def test_tour_without_trio() -> None:
    """What there is is shown; what is missing is named."""
    code, output, errors = run_warm(*main_after("sys.modules['trio'] = None", "demo"))
    assert (code, errors) == (0, "")
    assert f"\n\ntrio\nnot installed: {INSTALL}\n\nasyncio, cancelled" in output


# -- a prompt


@pytest.mark.torch
@both_backends
def test_prompt(backend: str) -> None:
    code, output, errors = demo(COUNTING, "--backend", backend)
    assert (code, errors) == (0, "")
    assert re.fullmatch(rf"{re.escape(COUNTING + COUNTED)}\n{FIGURES}", output), output


@pytest.mark.torch
def test_chinese() -> None:
    """Characters of several tokens come out whole."""
    code, output, errors = demo("An increasing sequence: 五、", "--max-new-tokens", "40")
    assert (code, errors) == (0, "")
    assert output.startswith("An increasing sequence: 五、六、七、八、九、十、")


@pytest.mark.torch
def test_text_is_shown_as_it_is() -> None:
    """Neither markup nor emoji codes, and no line is wrapped, however long."""
    prompt = "[bold]one[/], :smile: \t" + "one, " * 40
    code, output, errors = demo(prompt, "--max-new-tokens", "1", COLUMNS="40")
    assert (code, errors) == (0, "")
    assert output.startswith(prompt)


@pytest.mark.torch
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_narrow_encoding(encoding: str) -> None:
    """A terminal that lacks the characters gets replacements to the end, and is told why."""
    prompt = "An increasing sequence: 五、"
    code, output, errors = demo(prompt, "--max-new-tokens", "40", PYTHONIOENCODING=encoding)
    assert code == 0
    assert re.match(r"An increasing sequence: \?{10,}\nlength, 40 tokens,", output)
    assert errors == (
        f"Note: ? replaces characters that {encoding} cannot show. "
        "Use a UTF-8 locale, or set PYTHONIOENCODING=utf-8.\n"
    )


@pytest.mark.torch
def test_narrow_encoding_that_suffices() -> None:
    """Nothing is said where nothing is missing."""
    code, output, errors = demo(COUNTING, PYTHONIOENCODING="ascii")
    assert (code, errors) == (0, "")
    assert output.startswith(COUNTING + COUNTED)


# -- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", ""], "the prompt is empty: there is nothing to continue"),
        (["demo", "\udce4"], "the prompt is not valid text in this locale: use a UTF-8 locale"),
        (["demo", "--backend", "curio"], "Invalid value for '--backend': "),
        (["demo", "--max-new-tokens", "0"], "Invalid value for '--max-new-tokens': "),
        (["demo", "--max-new-tokens", "many"], "Invalid value for '--max-new-tokens': "),
        (["demo", "--no-such-option"], "No such option: --no-such-option"),
        (["demo", "one,", "two,"], "unexpected extra argument"),
        (["no-such-command"], "No such command 'no-such-command'"),
    ],
)
def test_usage_error(arguments: list[str], message: str) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert message in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "nan"], "Invalid value for '--timeout': "),
        (["--grace", "inf"], "Invalid value for '--grace': must be a finite number"),
        (["--drain", "nan"], "Invalid value for '--drain': "),
        (["--keep-alive", "inf"], "Invalid value for '--keep-alive': must be a finite number"),
        (["--send-timeout", "nan"], "Invalid value for '--send-timeout': "),
        (["--head-timeout", "nan"], "Invalid value for '--head-timeout': "),
        (["--uds", ""], "Invalid value for '--uds': is empty"),
        (["--ssl-certfile", ""], "Invalid value for '--ssl-certfile': is empty"),
        (["--ssl-certfile", "a", "--ssl-keyfile", ""], "'--ssl-keyfile': is empty"),
        (["--api-key", ""], "'ANYSTREAMER_API_KEY'): is empty"),
        (["--host", ""], "Invalid value for '--host': is empty"),
        (["--chat-template", ""], "Invalid value for '--chat-template': is empty"),
        (["--served-model-name", "a", "--served-model-name", ""], "name': is empty"),
        ([""], "is empty: leave it out, or check that the shell variable is set"),
        (["--allow-host", "a.org:8000"], "'a.org:8000' is not the name of a host"),
        (["--allow-origin", "https://a.org/"], "no browser sends 'https://a.org/'"),
        (["--allow-media-from", "https://a.org"], "'https://a.org' is not a host"),
        (["--log-level", "verbose"], "Invalid value for '--log-level': "),
        (["--request-log", "yaml"], "Invalid value for '--request-log': "),
        (["--port", "65536"], "Invalid value for '--port': "),
        (["--uds", "/a", "--port", "8000"], "'--port': has no effect with --uds: leave one"),
        (["--host", "127.0.0.1", "--uds", "/a"], "'--host': has no effect with --uds: leave one"),
        (["--batching", "none", "--max-running", "2"], "no effect with --batching none: leave one"),
    ],
)
def test_a_server_with_a_wrong_option_loads_no_model(options: list[str], message: str) -> None:
    code, output = invoke("serve", *options)
    assert code == 2
    assert message in output


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "left", "message"),
    [
        ("model.safetensors", 1000, "cannot be loaded: SafetensorError: "),
        ("tokenizer.json", 100, "has a file that is not valid JSON"),
        ("config.json", 1, "is not a valid JSON file"),
    ],
)
def test_a_model_that_was_not_downloaded_to_its_end(
    name: str, left: int, message: str, tmp_path: Path
) -> None:
    """One line names its folder, whichever library has found it."""
    folder = tmp_path / "model"
    shutil.copytree(Path(anystreamer.demo.__file__).parent / "model", folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:left])
    code, output, errors = run_warm("-m", "anystreamer", "serve", str(folder), "--port", "0")
    assert (code, output) == (1, "")
    *_, last = errors.splitlines()
    assert last.startswith("Error: ")
    assert str(folder) in last
    assert message in last
    assert "Traceback" not in errors


def test_an_empty_option_of_a_chat_is_refused_but_for_its_text() -> None:
    code, output = invoke("chat", "--base-url", "")
    assert code == 2
    assert "Invalid value for '--base-url': is empty" in output
    code, output = invoke("chat", "--system", "", "--api-key", "a")
    assert (code, "needs --base-url" in output) == (2, True)


@pytest.mark.parametrize(
    "option",
    [
        ["--device", "cpu"],
        ["--dtype", "float32"],
        ["--quantization", "8bit"],
        ["--chat-template", "a.jinja"],
        ["--trust-remote-code"],
    ],
    ids=lambda option: option[0],
)
def test_a_chat_with_a_server_refuses_options_of_a_model_here(option: list[str]) -> None:
    code, output = invoke("chat", "--base-url", "http://127.0.0.1:1", *option)
    assert code == 2
    assert f"'{option[0]}': has no effect with --base-url: leave one of them out" in output


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_more_connections_than_open_files_are_said_at_the_start() -> None:
    from resource import RLIMIT_NOFILE, getrlimit

    files, _ = getrlimit(RLIMIT_NOFILE)
    assert ConnectionLimits(max_connections=files - OTHER_FILES).too_few_files() is None
    too_many = str(files - OTHER_FILES + 1)
    code, _, errors = run(
        *("-m", "anystreamer", "serve", "--uds", "/no/such/folder"),
        *("--max-connections", too_many),
    )
    assert code == 1
    assert f"can have {files} open files (ulimit -n), and --max-connections {too_many}" in errors


@pytest.mark.torch
def test_prompt_too_long() -> None:
    code, output = invoke("demo", "one, " * 2000)
    assert code == 2
    assert re.search(
        r"the prompt has \d{4} tokens; the model takes \d{4}, new ones included", output
    )


@pytest.mark.torch
def test_more_new_tokens_than_fit() -> None:
    """The number that is named does fit."""
    code, output = invoke("demo", COUNTING, "--max-new-tokens", "100000")
    assert code == 2
    assert "--max-new-tokens 100000 is more than the " in output
    found = re.search(r"more than the (\d+) that fit: the model takes (\d+), .* has (\d+)", output)
    assert found is not None
    fit, room, tokens = map(int, found.groups())
    assert fit + tokens == room
    code, output = invoke("demo", COUNTING, "--max-new-tokens", str(fit + 1))
    assert code == 2


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("trio", "trio is not installed"),
        ("typer", "the command line needs typer and rich"),
        ("rich", "the command line needs typer and rich"),
        ("torch", "the demo needs transformers and torch"),
        ("transformers", "the demo needs transformers and torch"),
    ],
)
def test_missing_package(missing: str, message: str) -> None:
    """One line says what to install."""
    command = main_after(f"sys.modules[{missing!r}] = None", "demo", "one,", "--backend", "trio")
    code, output, errors = run(*command)
    assert (code, output) == (1, "")
    assert re.fullmatch(rf"Error: {message}.*: {re.escape(INSTALL)}\n", errors), errors


# -- leaving early

# Ctrl-C ends with os._exit(), which no thread can delay: it has to be asked whether one would.
TELL_WHO_IS_LEFT = """
import os, sys, traceback
from anystreamer.cli import main

def tell(code, exit=os._exit):
    for frame in sys._current_frames().values():
        if any(each.name == "generate" for each in traceback.extract_stack(frame)):
            os.write(2, b"still in generate()")
    exit(code)

os._exit = tell
main()
"""


@pytest.mark.torch
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone")
@both_backends
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_mid_stream(backend: str, times: int) -> None:
    """130, silently, after the worker has left the model. A second one does not wait for it."""
    program = ["-c", TELL_WHO_IS_LEFT] if times == 1 else ["-m", "anystreamer"]
    command = ["demo", COUNTING, "--max-new-tokens", "2000", "--backend", backend]
    with start_warm(*program, *command) as process:
        output = read_until(process, "three,")
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PROGRAM_PATIENCE)
    assert (process.returncode, errors) == (130, "")
    assert output.startswith(COUNTING)
    assert "tokens/s" not in output + rest


@pytest.mark.torch
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone")
def test_ctrl_c_while_loading() -> None:
    """Nothing has been shown yet, and nothing is."""
    statement = "import threading, os, signal; from anystreamer import demo; demo.load_demo = "
    statement += "lambda: (os.kill(os.getpid(), signal.SIGINT), threading.Event().wait())"
    code, output, errors = run_warm(*main_after(statement, "demo", COUNTING))
    assert (code, output, errors) == (130, "", "")


@pytest.mark.torch
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
def test_broken_pipe() -> None:
    """As with ``| head -1``: quiet. It has much to write yet, so that it meets the closed pipe."""
    with start_warm("-m", "anystreamer", "demo", "--max-new-tokens", "2000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asyncio\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def read_until(process: Program, text: str) -> str:
    output = ""
    assert process.stdout is not None
    while text not in output:
        read = process.stdout.read(1)
        assert read, output
        output += read
    return output


# -- the rest


@pytest.mark.torch
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_terminal() -> None:
    """On a terminal the figures are dim, and the text is not."""
    import pty

    main_end, other_end = pty.openpty()
    command = ("-m", "anystreamer", "demo", COUNTING)
    env = ENV | {"PYTHONUTF8": "1", "TERM": "xterm-256color"}
    process: subprocess.Popen[bytes] | WarmProgram
    if sys.platform == "linux":
        process = WarmProgram(*command, env=env, terminal=other_end)
    else:
        process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=other_end, stderr=subprocess.DEVNULL
        )
    with process:
        os.close(other_end)
        output = b""
        try:
            while piece := os.read(main_end, 4096):
                output += piece
        except OSError:  # Linux's end of file
            pass
        os.close(main_end)
    shown = output.decode()
    assert shown.startswith(f"\x1b[2m{COUNTING}\x1b[0m two,")
    assert "\x1b[2mlength, 20 tokens" in shown
    assert re.sub(r"\x1b\[\d*m", "", shown).startswith(COUNTING + COUNTED)


def test_version() -> None:
    code, output = invoke("--version")
    assert code == 0
    assert re.fullmatch(r"anystreamer (\d+\.\d+\S*|\(not installed\))", output)


def test_help_loads_nothing_heavy() -> None:
    """It names the command, and is there at once."""
    code = """
import sys
from pathlib import Path
from anystreamer.cli import main
try:
    main()
finally:
    print(*sorted({"torch", "transformers", "trio"} & set(sys.modules)), file=sys.stderr)
"""
    exit_code, output, errors = run("-c", code, "--help")
    assert (exit_code, errors) == (0, "\n")
    assert "Stream text from the embedded model" in output


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("chat", ("By default the embedded model", "only what is new", "until you change them")),
        ("serve", ("By default the embedded model", "chat page", "By default 64")),
    ],
)
def test_the_help_of_a_command_says_what_it_does_by_default(
    command: str, defaults: tuple[str, ...]
) -> None:
    code, output = invoke(command, "--help")
    assert code == 0
    for each in defaults:
        assert each in output
    assert "<float" not in output  # a number of seconds is said to be one


def test_entry_point(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The console script shows the help where it is told nothing."""
    from anystreamer import cli

    monkeypatch.setattr(sys, "argv", ["anystreamer"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert "Usage: anystreamer" in capsys.readouterr().out
