"""``anystreamer chat``: on a real terminal with the terminal's Ctrl-C, and with pipes. No torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich")
pytest.importorskip("typer")

from typer.testing import CliRunner

from anystreamer._errors import PromptTooLong
from anystreamer.cli.chat import _explained
from anystreamer.cli.chat_commands import Commands, Content, Conversation
from anystreamer.cli.chat_pictures import read_picture
from anystreamer.cli.chat_settings import changed
from anystreamer.cli.chat_views import PARSER, final_length
from anystreamer.cli.commands import app

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)

from ..helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT
from ..helpers.terminals import Terminal, terminal
from ..helpers.warm_programs import WarmProgram

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PROGRAM_TIMEOUT)]

both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])

# What would decide about encodings in a test's place.
UNSET = {"PYTHONIOENCODING", "PYTHONUTF8"}
ENV = {name: value for name, value in os.environ.items() if name not in UNSET}

MAIN = "from anystreamer.cli import main; main()"
READY = r"\n>$"
FIGURES = r", the first after \d+\.\d ms, then \d+ tokens/s"


def scripted(script: str, told: Path | None = None, **kwargs: Any) -> str:
    """A program: the command line with a scripted model, which tells at the end what it did."""
    return f"""
import json
from anystreamer import cli
from anystreamer.cli import common
from anystreamer.testing import ScriptedModel

model = ScriptedModel({script}, **{kwargs!r})
common.load_embedded = lambda: (model, model.tokenizer)
try:
    cli.main()
finally:
    prompts = [model.tokenizer.decode(each["input_ids"][0]) for each in model.calls]
    with open({str(told or os.devnull)!r}, "w") as file:
        json.dump([model.steps, model.is_generating, prompts], file)
"""


def leave(chat: Terminal) -> None:
    chat.until(READY)  # before, a terminal takes Ctrl-D for itself
    chat.type("\x04")
    assert chat.end() == 0


def interrupted(chat: Terminal) -> int:
    """Press Ctrl-C until it is gone, as a person would.

    Two that come at once are one signal, and readline sees one that comes right before it waits
    only with the next key.
    """
    while chat.process.poll() is None:
        chat.type("\x03")
        with suppress(subprocess.TimeoutExpired):
            chat.process.wait(0.5)
    return chat.end()


# -- on a terminal


@both_backends
def test_a_conversation(backend: str, tmp_path: Path) -> None:
    """Formatted answers, a memory, and a new beginning."""
    told = tmp_path / "told"
    script = "['# Title\\n\\nSome **bold** ', 'words.\\n', 'A second line.\\n\\n- one\\n', '- two']"
    arguments = ("chat", "--backend", backend, "--system", "Be nice.")
    with terminal(scripted(script, told), *arguments) as chat:
        keys = "Ctrl-C stops an answer, Ctrl-D exits, /help lists commands."
        chat.until(f"anystreamer-demo. {keys}")
        chat.until(READY)
        chat.type("first\n")
        shown = chat.until(rf"eos, 5 tokens{FIGURES}\n{READY}")
        assert "Some bold words.\nA second line.\n\n • one\n • two\neos" in shown
        assert b"\x1b[1mbold" in chat.output
        chat.type("\n")  # nothing is asked
        chat.type("second\n")
        chat.until("eos, 5 tokens", times=2)
        chat.type("/new\n")
        chat.type("third\n")
        chat.until("eos, 5 tokens", times=3)
        chat.until(READY)
        leave(chat)
    _, _, prompts = json.loads(told.read_text())
    answer = "# Title\n\nSome **bold** words.\nA second line.\n\n- one\n- two"
    system = "system: Be nice.\n"
    assert prompts == [
        f"{system}user: first\nassistant: ",
        f"{system}user: first\nassistant: {answer}\nuser: second\nassistant: ",
        f"{system}user: third\nassistant: ",
    ]


@both_backends
def test_ctrl_c_stops_the_answer_and_not_the_program(backend: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = scripted("[f'w{n} ' for n in range(20_000)]", told, delay=0.01)
    with terminal(code, "chat", "--backend", backend, "--max-new-tokens", "20000") as chat:
        chat.until(READY)
        for turn in (1, 2):
            chat.type("Talk\n")
            chat.until("w0 w1 w2 w3 ", times=turn)
            chat.type("\x03")
            chat.until(r"stopped, \d+ tokens?", times=turn)
            chat.until(READY)
        leave(chat)
        shown = chat.text
    assert shown.count("w0 ") == 2  # what was drawn first has been cleared away
    assert "^C" not in shown
    steps, is_generating, prompts = json.loads(told.read_text())
    tokens = [int(each) for each in re.findall(r"stopped, (\d+) tokens?", shown)]
    assert not is_generating
    assert sum(tokens) <= steps <= sum(tokens) + 2  # at most one more each
    said = "".join(f"w{n} " for n in range(tokens[0]))
    assert prompts[1] == f"user: Talk\nassistant: {said}\nuser: Talk\nassistant: "
    assert "Traceback" not in shown


@both_backends
def test_a_second_ctrl_c_does_not_wait(backend: str) -> None:
    """The model is in a long step. The cursor is there again."""
    with terminal(scripted("['a', 1000.0, 'b']"), "chat", "--backend", backend) as chat:
        chat.until(READY)
        chat.type("Talk\n")
        chat.until(r"\na")
        chat.type("\x03")
        chat.until(r"\n \^C")
        assert interrupted(chat) == 130
        assert not chat.screen.cursor.hidden
        assert chat.output.rindex(b"\x1b[?25h") > chat.output.rindex(b"\x1b[?25l")


@both_backends
def test_ctrl_c_during_the_prefill(backend: str, tmp_path: Path) -> None:
    """The step that is being computed is the last one; before it began, there is none."""
    told = tmp_path / "told"
    code = scripted("['a', 'b']", told, prefill=2.0)
    with terminal(code, "chat", "--backend", backend) as chat:
        chat.until(READY)
        chat.type("first\n")
        chat.until(r"\n\.\.\.")
        chat.type("\x03")
        shown = chat.until(rf"stopped, \d token.*\n{READY}")
        chat.type("second\n")
        chat.until("ab\neos, 3 tokens")
        leave(chat)
    kept = "" if "stopped, 0" in shown else "user: first\nassistant: a\n"
    assert json.loads(told.read_text())[2][-1] == f"{kept}user: second\nassistant: "


def test_ctrl_c_at_the_prompt_clears_the_line(tmp_path: Path) -> None:
    """Only two of them leave, and not if a line was begun between them."""
    told = tmp_path / "told"
    with terminal(scripted("['a']", told), "chat") as chat:
        for times, text in enumerate(("half a quest", "another"), start=1):
            chat.until(READY)
            chat.type(text)
            chat.until(f"> {text}$")
            chat.interrupt_prompt()
            chat.until("Ctrl-C again leaves.", times=times)
        chat.until(READY)
        chat.type("whole\n")
        chat.until("eos, 2 tokens")
        chat.until(READY)
        chat.interrupt_prompt()
        chat.until("Ctrl-C again leaves.", times=3)
        leave(chat)
    assert json.loads(told.read_text())[2] == ["user: whole\nassistant: "]


@both_backends
def test_commands(backend: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    with terminal(scripted("['a']", told), "chat", "--backend", backend, size=(100, 60)) as chat:
        chat.until(READY)

        def enter(line: str, answer: str) -> str:
            before = chat.text
            chat.type(f"{line}\n")
            shown = chat.until(rf"{re.escape(line)}\n{answer}[^>]*{READY}")
            assert shown.startswith(before[:-1])
            return shown

        shown = enter("/help", "/new ")
        for command in ("/new", "/retry", "/system", "/set", "/help", "/exit", "Ctrl-C"):
            assert re.search(rf"^{command}\b.*  \w+", shown, re.MULTILINE)
        enter("/nosuch thing", "Error: there is no command /nosuch: /help lists them")
        enter("/retry", "Error: there is no answer yet")
        enter("/set temperature hot", "Error: temperature must be a number from 0 to 2, got 'hot'")
        enter("/set warmth 1", "Error: there is no setting 'warmth': use temperature, ")
        enter("/new conversation", "Error: /new takes nothing after it")
        enter("/set top_p nan", "Error: top_p must be ")
        enter("/set seed 7", "Settings: seed 7.")
        enter("with a seed", "Error: this model takes no seed: /set seed removes it")
        enter("/set seed", "Settings: the defaults of the model.")
        enter("/system Be nice.", "The system prompt is set.")
        enter("/set temperature 0.5", "Settings: temperature 0.5.")
        enter("/set max_tokens 1", "Settings: temperature 0.5, max_tokens 1.")
        enter("first", "a\nlength, 1 token")
        enter("/set temperature", "Settings: max_tokens 1.")
        enter(" /second", "a\nlength, 1 token")
        enter("/retry", "a\nlength, 1 token")
        enter("/system", "There is no system prompt.")
        enter("/clear", "A new conversation.")
        enter("third", "a\nlength, 1 token")
        chat.type("/exit\n")
        assert chat.end() == 0
    system = "system: Be nice.\n"
    second = f"{system}user: first\nassistant: a\nuser: /second\nassistant: "
    assert json.loads(told.read_text())[2] == [
        f"{system}user: first\nassistant: ",
        second,
        second,
        "user: third\nassistant: ",
    ]


def test_an_answer_that_fails_does_not_take_the_place_of_the_last() -> None:
    """Nor do settings count that the model does not get."""
    conversation = Conversation(None)

    def ask(question: Content) -> None:
        assert conversation.messages_with(question) == [{"role": "user", "content": "q"}]

    conversation.add("q", "a")
    commands = Commands(conversation, ask, read_picture)
    commands.run("/retry")
    assert [each["content"] for each in conversation.turns] == ["q", "a"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", {"0": 0.0, "2": 2.0, "2.1": None, "-1": None, "nan": None}),
        ("top_p", {"1": 1.0, "0.1": 0.1, "0": None, "inf": None}),
        ("max_tokens", {"1": 1, "0": None, "1.5": None, "1e3": None}),
        ("seed", {"0": 0, str(2**53 - 1): 2**53 - 1, str(2**53): None, "-1": None, "0.5": None}),
    ],
)
def test_settings(name: str, values: dict[str, float | None]) -> None:
    for text, value in values.items():
        if value is None:
            with pytest.raises(ValueError, match=f"^{name} must be "):
                changed({}, name, text)
        else:
            assert changed({name: 9, "other": 1}, name, text) == {"other": 1, name: value}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (PromptTooLong(9, 8), "the conversation has 9 tokens, and the model takes 8, its answer"),
        (PromptTooLong(9, 8, is_lower_bound=True), "the conversation has at least 9 tokens, and "),
    ],
)
def test_a_conversation_that_is_too_long(error: Exception, shown: str) -> None:
    """What to do is said where there are commands."""
    for has_commands in (True, False):
        message = _explained(error, has_commands=has_commands)
        assert message.startswith(shown)
        assert message.endswith(": start a new one with /new") is has_commands
    assert _explained(KeyError(), has_commands=True) == "KeyError"


@pytest.mark.parametrize("code", ["context_length_exceeded", "invalid_value"])
def test_a_conversation_that_is_too_long_for_a_server(code: str) -> None:
    openai = pytest.importorskip("openai")
    httpx = pytest.importorskip("httpx")
    response = httpx.Response(400, request=httpx.Request("POST", "http://localhost"))
    error = openai.BadRequestError("no", response=response, body={"code": code})
    hint = ": start a new one with /new" if code == "context_length_exceeded" else ""
    assert _explained(error, has_commands=True) == f"no{hint}"


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    """As it leaves any program, with the terminal as it was."""
    import termios

    with terminal(scripted("['a']"), "chat") as chat:
        before = termios.tcgetattr(chat.master)
        chat.until(READY)
        chat.type("half a quest")
        chat.until("> half a quest$")
        assert interrupted(chat) == 130
        assert termios.tcgetattr(chat.master) == before
        assert "Traceback" not in chat.text


@pytest.mark.parametrize("size", [(80, 10), (40, 4)])
def test_a_long_answer_is_not_cut(size: tuple[int, int]) -> None:
    """Each line is there once, in order: those that scrolled away, and those of a high block."""
    text = "".join(f"paragraph-{n} is\n\n" for n in range(30))
    text += "```python\n" + "".join(f"code_{n} = {n}\n" for n in range(40)) + "```\n\n"
    text += "".join(f"- item-{n}\n" for n in range(30))
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    with terminal(scripted(repr(pieces), delay=0.001), "chat", size=size) as chat:
        chat.until(READY)
        chat.type("Talk\n")
        shown = chat.until(rf"eos, \d+ tokens[^>]*{READY}")
        leave(chat)
    found = re.findall(r"paragraph-\d+|code_\d+|item-\d+", shown)
    assert found == [
        *(f"paragraph-{n}" for n in range(30)),
        *(f"code_{n}" for n in range(40)),
        *(f"item-{n}" for n in range(30)),
    ]
    assert b"\x1b[2J" not in chat.output  # clearing all of it would flicker


def test_a_model_gives_the_terminal_no_orders() -> None:
    evil = "a\x1b]0;owned\x07b \x1b[2Jc \x9b31md e\x08\x08f\x7f\r\ng <b>h</b> [i](http://j)"
    with terminal(scripted(repr([*evil])), "chat") as chat:
        chat.until(READY)
        chat.type("Talk\n")
        shown = chat.until("eos, ")
        leave(chat)
    expected = "a␛]0;owned␇b ␛[2Jc �31md e␈␈f␡\ng <b>h</b> i (http://j)\n"
    assert expected in shown
    assert chat.screen.title == ""
    assert b"\x1b]" not in chat.output


def test_an_error_ends_the_answer_and_not_the_program() -> None:
    code = scripted("['so far', ValueError('no \\x1b[2J luck')]")
    with terminal(code, "chat") as chat:
        chat.until(READY)
        for turn in (1, 2):
            chat.type("Talk\n")
            chat.until("Error: no ␛\\[2J luck", times=turn)
            chat.until(READY)
        assert chat.text.count("so far") == 2
        leave(chat)


def test_a_terminal_that_cannot_move_its_cursor() -> None:
    with terminal(scripted("['**a** ', 'b']"), "chat", TERM="dumb") as chat:
        chat.until(READY)
        chat.type("Talk\n")
        chat.until(r"\*\*a\*\* b\neos, 3 tokens")
        leave(chat)
    assert b"\x1b[?25l" not in chat.output


# -- with a model elsewhere


@contextmanager
def server(code: str, *arguments: str) -> Iterator[str]:
    """Run a program's ``serve``, and end it in order. Yields its address."""
    pytest.importorskip("starlette")
    pytest.importorskip("openai")
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--grace", "1", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=ENV,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
            process.send_signal(signal.SIGINT)
            process.wait(PROGRAM_PATIENCE)
        finally:
            process.kill()


@both_backends
def test_a_conversation_with_a_server(backend: str, tmp_path: Path) -> None:
    """Ctrl-C stops the model there. The model and its limit are the server's, if none is named."""
    told = tmp_path / "told"
    code = scripted("[f'w{n} ' for n in range(20_000)]", told, delay=0.01)
    limit = ("--default-max-tokens", "20000")
    with server(code, *limit, "--api-key", "secret") as url:
        options = ("--base-url", url, "--backend", backend)
        with terminal(MAIN, "chat", *options, ANYSTREAMER_API_KEY="secret") as chat:
            assert "anystreamer-demo" in chat.until(READY)
            for turn in (1, 2):
                chat.type("Talk\n")
                chat.until("w0 w1 w2 w3 ", times=turn)
                chat.type("\x03")
                chat.until("stopped, the first after", times=turn)
                chat.until(READY)
            chat.type("/set seed 7\n")
            chat.until("Settings: seed 7.")
            chat.type("Talk\n")  # the server gets the seed; its model is none of torch
            chat.until("Error: .*seed is not supported by this model")
            leave(chat)
            shown = chat.text
    steps, is_generating, prompts = json.loads(told.read_text())
    assert not is_generating
    assert steps < 20_000
    assert prompts[0] == "user: Talk\nassistant: "
    assert prompts[1].startswith("user: Talk\nassistant: w0 w1 w2 w3 ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "backend",
    # Its programs differ in messages, which no loop makes.
    ["asyncio", pytest.param("trio", marks=pytest.mark.variant)],
)
def test_what_a_server_does_not_do(backend: str) -> None:
    with server(scripted("['a']"), "--api-key", "secret") as url:
        options = ("--base-url", url, "--backend", backend)
        code, output, errors = piped(MAIN, "one\n", *options)
        assert (code, output) == (1, "")
        assert errors.startswith(f"Error: {url}: ")
        assert "401" in errors
        key = {"ANYSTREAMER_API_KEY": "secret"}
        code, output, errors = piped(MAIN, "one\n", "another", *options, **key)
        assert (code, output) == (1, "\n")
        assert "another" in errors
        assert piped(MAIN, "one\n", *options, **key) == (0, "a\n", "")
    code, output, errors = piped(MAIN, "one\n", *options)
    assert code == 1
    assert errors.startswith(f"Error: {url}: ")


@pytest.mark.parametrize("name", [(), ("name",)], ids=["no name", "a name"])
def test_an_address_without_its_scheme(name: tuple[str, ...]) -> None:
    """With a name, the first that needs the address is the engine."""
    pytest.importorskip("openai")
    result = CliRunner().invoke(app, ["chat", *name, "--base-url", "localhost"], input="one\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit)  # and no other, which would be a traceback
    assert result.stderr.startswith("Error: ")
    assert "http://" in result.stderr


@pytest.mark.parametrize("is_path", [False, True])
def test_the_start_of_a_server_names_what_it_has(is_path: bool, tmp_path: Path) -> None:
    """On a terminal: the page, the API, and how to stop. A browser opens no path of a socket."""
    pytest.importorskip("starlette")
    where = ("--uds", str(tmp_path / "socket")) if is_path else ("--port", "0")
    has_weights = "model.dtype, model.parameters = 'none', tuple\ntry:"
    code = scripted("['a']").replace("try:", has_weights)
    with terminal(code, "serve", *where, size=(300, 24)) as server:
        shown = server.until("Ctrl-C stops.")
        found = re.search(r"Serving anystreamer-demo on (\S+)\nModel: .*none\.", shown)
        assert found
        page = "" if is_path else f"Chat page: {found[1]}/. "
        assert f" {page}API: {found[1]}/v1. Ctrl-C stops." in shown
        assert ("Chat page" in shown) != is_path
        server.type("\x03")
        server.end()


# -- with pipes


def piped(code: str, questions: str, *arguments: str, **env: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, "chat", *arguments],
        input=questions,
        capture_output=True,
        encoding="utf-8",
        env=ENV | {"PYTHONUTF8": "1"} | env,
        timeout=PROGRAM_PATIENCE,
    )
    return done.returncode, done.stdout, done.stderr


@both_backends
def test_lines_from_a_pipe(backend: str, tmp_path: Path) -> None:
    """A question a line, and plain text: no figures, no formatting."""
    told = tmp_path / "told"
    code = scripted("['**五** ', '\\x1b[31mb\\n', 'c']", told)
    assert piped(code, "one\n\n  two", "--backend", backend) == (0, "**五** ␛[31mb\nc\n" * 2, "")
    assert json.loads(told.read_text())[2][1].startswith("user: one\nassistant: **五** ")


def test_an_error_with_a_pipe() -> None:
    code, output, errors = piped(scripted("['a', ValueError('no luck')]"), "one\ntwo\n")
    assert (code, output, errors) == (1, "a\n", "Error: no luck\n")


def test_a_narrow_encoding() -> None:
    code, output, errors = piped(scripted("['五']"), "one\n", PYTHONIOENCODING="ascii")
    assert (code, output) == (0, "?\n")
    assert errors.startswith("Note: ? replaces characters that ascii cannot show.")


def test_bytes_that_are_no_text() -> None:
    """They are no reason to fail."""
    done = subprocess.run(
        [sys.executable, "-c", scripted("['a']"), "chat"],
        input=b"\xff\xfe\n",
        capture_output=True,
        env=ENV | {"PYTHONUTF8": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\n", b"")


@both_backends
def test_ctrl_c_with_a_pipe(backend: str) -> None:
    """It stops the model, and leaves."""
    code = scripted("['w '] * 20_000", delay=0.01)
    with subprocess.Popen(
        [sys.executable, "-c", code, "chat", "--backend", backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        process.stdout.read(2)
        process.send_signal(signal.SIGINT)
        assert process.wait(PROGRAM_PATIENCE) == 130
        assert process.stderr.read() == b""


# -- real models


def piped_warm(code: str, questions: str, *arguments: str, **env: str) -> tuple[int, str, str]:
    """As `piped`, without the seconds in which an interpreter imports torch."""
    if sys.platform != "linux":  # only there torch can be forked
        return piped(code, questions, *arguments, **env)
    env = ENV | {"PYTHONUTF8": "1"} | env
    with WarmProgram("-c", code, "chat", *arguments, env=env, given=questions) as program:
        output, errors = program.communicate(PROGRAM_PATIENCE)
        return program.wait(), output, errors


@pytest.mark.torch
def test_the_model_that_comes_along() -> None:
    with terminal(MAIN, "chat", "--max-new-tokens", "5") as chat:
        chat.until(READY)
        chat.type("Count from seven to twelve.\n")
        chat.until(rf"seven, eight, nine\nlength, 5 tokens{FIGURES}\n{READY}")
        chat.type("Count " * 2100 + "\n")
        chat.until("Error: the conversation has .* tokens, and the model takes 2048, its answer")
        leave(chat)


@pytest.mark.torch
def test_a_model_in_a_folder(pytestconfig: pytest.Config) -> None:
    folder = pytestconfig.rootpath / "src/anystreamer/demo/model"
    code, output, _ = piped_warm(
        "import sys; sys.argv.append(sys.argv.pop(2))\n" + MAIN,
        "Count from one to three.\nCount from five to six.\n",
        str(folder),
        "--backend=trio",
    )
    assert (code, output) == (0, "one, two, three.\nfive, six.\n")


@pytest.mark.torch
@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_a_model_brings_along(trusted: bool, tmp_path: Path) -> None:
    """It is not run, and nobody is asked, unless it was said."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}})
    )
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise OSError('enough')\n")
    arguments = [str(tmp_path), *(["--trust-remote-code"] if trusted else [])]
    # transformers reads the variable for it when it is imported.
    cache = "from transformers import dynamic_module_utils as used\n"
    cache += f"used.HF_MODULES_CACHE = {str(tmp_path / 'cache')!r}\n"
    code, output, errors = piped_warm(cache + MAIN, "Hi\n", *arguments)
    assert (code, output) == (1, "")
    assert "Error: " in errors
    assert "Traceback" not in errors
    assert ran.exists() == trusted


# -- what has been printed stays right


def tokens_of(text: str) -> list[tuple[object, ...]]:
    return [
        (
            token.type,
            token.content,
            token.level,
            [(c.type, c.content) for c in token.children or ()],
        )
        for token in PARSER.parse(text)
    ]


PIECES = (
    """word |\n|\n\n|- |1. |2|# |> |```\n|~~~py\n|    |\t|**|---\n|===\n|* * *\n|<div>|`|  \n|五"""
)
TABLE = ["| a | b |\n", "|---|---|\n"]
MARKDOWN = st.lists(st.sampled_from([*PIECES.split("|"), *TABLE]), max_size=20).map("".join)


@given(MARKDOWN)
def test_what_hasfinal_length_does_not_change(text: str) -> None:
    """Blocks that were parsed alone, as soon as they seemed whole, are those of the whole text."""
    found, rest = [], ""
    for character in text:
        rest += character
        end = final_length(rest)
        found += tokens_of(rest[:end])
        rest = rest[end:]
    assert found + tokens_of(rest) == tokens_of(text)
