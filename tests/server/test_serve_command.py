"""``anystreamer serve`` as a process: it serves, refuses what is not safe, and ends in order."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import anystreamer.demo

from ..helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT
from ..helpers.serving import data_of
from ..helpers.warm_programs import Program, start_program

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(PROGRAM_TIMEOUT)]

TEXT = "/v1/completions"
PROMPT = "An increasing sequence: one,"


@contextlib.contextmanager
def program(
    *arguments: str, before: str = "", is_warm: bool = True, **env: str
) -> Iterator[Program]:
    code = f"{before}; from anystreamer.cli import main; main()"
    command = [*(("-c", code) if before else ("-m", "anystreamer")), "serve", *arguments]
    env = os.environ | {"ANYSTREAMER_API_KEY": ""} | env
    process: Program
    if is_warm:
        process = start_program(*command, env=env, joined=True)
    else:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
    try:
        with process:
            yield process
            process.kill()
    except BaseException:
        process.kill()
        raise


# What asyncio's loops do on Windows.
NO_HANDLERS = (
    "import asyncio; loops = asyncio.SelectorEventLoop, asyncio.AbstractEventLoop;"
    "loops[0].add_signal_handler = loops[1].add_signal_handler"
)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone")
@pytest.mark.parametrize(
    ("options", "more"),
    [
        ("", {"is_warm": False}),  # uvicorn on asyncio
        ("--server uvicorn", {"before": NO_HANDLERS}),
        ("--server hypercorn", {}),
        ("--backend trio", {}),  # hypercorn
    ],
    ids=["uvicorn", "uvicorn as on Windows", "hypercorn on asyncio", "hypercorn on trio"],
)
def test_it_serves_and_ends_what_is_open_when_it_is_interrupted(
    options: str, more: dict[str, Any]
) -> None:
    arguments = ("--port", "0", "--grace", "0.1", "--api-key", "key", *options.split())
    with program(*arguments, **more) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving anystreamer-demo on http://127.0.0.1:")
        with httpx.Client(
            base_url=line.split()[-1],
            headers={"authorization": "Bearer key"},
            trust_env=False,
            timeout=PROGRAM_PATIENCE,
        ) as client:
            assert client.get("/health").json() == {"status": "open"}
            assert client.get("/v1/models", headers={"authorization": ""}).status_code == 401
            body = {"prompt": "An increasing sequence: one,", "max_tokens": 4}
            (choice,) = client.post(TEXT, json=body).json()["choices"]
            assert choice["text"] == " two, three,"
            long = {**body, "n": 100, "max_tokens": 1500, "stream": True, "temperature": 0.0}
            text = ""
            with client.stream("POST", TEXT, json=long) as response:
                for part in response.iter_text():
                    if not text:
                        process.send_signal(signal.SIGINT)
                    text += part
        *_, error, done = data_of(text)
        assert error["error"]["code"] == "engine_unavailable"
        assert done == "[DONE]"
        assert process.wait(PROGRAM_PATIENCE) == 0
        assert process.stdout.read() == ""


def test_its_guards_and_limits_are_those_that_are_asked_for() -> None:
    arguments = (
        *("--port", "0", "--max-body-bytes", "300", "--default-max-tokens", "3"),
        *("--max-tokens-limit", "5", "--allow-origin", "https://chat.example"),
        *("--allow-host", "counter.example", "--timeout", "0", "--allow-special-tokens"),
    )
    body: dict[str, object] = {"prompt": "An increasing sequence: one,"}
    with program(*arguments, ANYSTREAMER_API_KEY="key") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        with httpx.Client(
            base_url=line.split()[-1], trust_env=False, timeout=PROGRAM_PATIENCE
        ) as client:

            def status(body: dict[str, object], **headers: str) -> int:
                headers = {"authorization": "Bearer key", **headers}
                return client.post(TEXT, json=body, headers=headers).status_code

            assert status(body, authorization="Bearer other") == 401
            assert status(body) == status(body, host="counter.example") == 200
            assert status(body, host="localhost:1") == status(body, host="[::1]") == 200
            assert status(body, host="attacker.example") == 400
            assert status({"prompt": "one " * 100}) == 413
            assert status({**body, "max_tokens": 6}) == 400
            client.headers["authorization"] = "Bearer key"
            response = client.post(TEXT, json=body, headers={"origin": "https://chat.example"})
            assert response.headers["access-control-allow-origin"] == "https://chat.example"
            assert response.json()["usage"]["completion_tokens"] == 3
            chat = {"messages": [{"role": "user", "content": "<|end|>"}]}
            response = client.post("/v1/chat/completions", json=chat)
            assert response.json()["usage"]["prompt_tokens"] == 4


OWN_CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM

pathlib.Path(__file__).with_name("ran").touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals, and no such sockets")
@pytest.mark.parametrize("options", ["", "--backend trio"])
def test_it_drains_before_it_refuses(options: str, tmp_path: Path) -> None:
    """Once told to end it says that it is not ready, and still serves; on a path as well."""
    path = str(tmp_path / "socket")
    arguments = ("--uds", path, "--drain", "600", "--keep-alive", "0", "--context-length", "64")
    with program(*arguments, *options.split()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Serving anystreamer-demo on unix:{path}\n"
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(
            base_url="http://localhost", transport=transport, timeout=PROGRAM_PATIENCE
        ) as client:
            assert client.get("/health").json() == {"status": "open"}
            process.send_signal(signal.SIGTERM)
            while (health := client.get("/health")).status_code == 200:
                pass
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            body = {"prompt": "An increasing sequence: one,", "max_tokens": 4}
            assert client.post(TEXT, json=body).json()["choices"][0]["text"] == " two, three,"
            too_long = client.post(TEXT, json=body | {"prompt": "Count" * 64})
            assert too_long.status_code == 400
            assert "64" in too_long.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PROGRAM_PATIENCE) == 130
        assert process.stdout.read() == ""
    assert not os.path.exists(path)


# A signal comes while the model is loaded.
TOLD_WHILE_LOADING = (
    "import os, signal, threading; from anystreamer import demo; demo.load_demo = lambda: "
    "(os.kill(os.getpid(), signal.{}), threading.Event().wait())"
)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals, and no such sockets")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", -15), ("SIGHUP", -1), ("SIGINT", 130)])
def test_a_signal_ends_it_while_it_loads(name: str, code: int, tmp_path: Path) -> None:
    """Without a word, and without a file. A supervisor sees which signal it was."""
    path = str(tmp_path / "socket")
    with program("--uds", path, before=TOLD_WHILE_LOADING.format(name)) as process:
        output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
        assert (process.returncode, output) == (code, "")
    assert not os.path.exists(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals, and no such sockets")
def test_the_first_process_of_a_container_ends_while_it_loads(tmp_path: Path) -> None:
    """The kernel keeps from it signals that it does not handle, and those that it sends itself."""
    apart = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody make a container")
    code = "\n".join(
        [
            "import threading, time",
            "from anystreamer import demo",
            "demo.load_demo = lambda: (print('loading', flush=True), threading.Event().wait())",
            "from anystreamer.cli import main; main()",
        ]
    )
    command = [*apart, "--kill-child", sys.executable, "-c", code]
    with subprocess.Popen(
        [*command, "serve", "--uds", str(tmp_path / "socket")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children.split()[0]), signal.SIGTERM)
            assert process.wait(PROGRAM_PATIENCE) == 143
        finally:
            process.kill()
    assert not (tmp_path / "socket").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="its process is found in /proc")
@pytest.mark.parametrize("options", ["", pytest.param("--backend trio", marks=pytest.mark.variant)])
def test_it_serves_without_streams_a_home_or_a_reader(options: str, tmp_path: Path) -> None:
    """As from a script that closes them. Its terminal's end ends it in order."""
    path = str(tmp_path / "socket")
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    # A pipe whose reader has gone, and no standard input and no standard error.
    shell = f'{{ exec "$0" -m anystreamer serve --uds "$1" {options} <&- 2>&-; }} | true'
    shell = f"set -o pipefail; {shell}"
    with subprocess.Popen(
        ["bash", "-c", shell, sys.executable, path], env=env, cwd="/", text=True
    ) as process:
        try:
            _wait_until_it_listens(path, process)
            transport = httpx.HTTPTransport(uds=path)
            with httpx.Client(
                base_url="http://localhost", transport=transport, timeout=PROGRAM_PATIENCE
            ) as client:
                assert client.get("/health").json() == {"status": "open"}
                body = {"prompt": PROMPT, "max_tokens": 4}
                assert client.post(TEXT, json=body).json()["choices"][0]["text"] == " two, three,"
            (served,) = _listening_on(path)
            os.kill(served, signal.SIGHUP)
            assert process.wait(PROGRAM_PATIENCE) == 0
        finally:
            for left in _listening_on(path):
                os.kill(left, signal.SIGKILL)
            process.kill()
    assert not os.path.exists(path)


def _wait_until_it_listens(path: str, process: subprocess.Popen[str]) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(path) == 0:
                return
        assert process.poll() is None
        time.sleep(0.05)


def _listening_on(path: str) -> list[int]:
    """The processes whose command names that path, without their shell."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = each.read_bytes().split(b"\0")
            if b"serve" in command and path.encode() in command:
                found.append(int(each.parent.name))
    return found


@pytest.mark.parametrize("is_trusted", [False, True])
def test_it_runs_no_code_of_a_model_s_own_unless_it_may(tmp_path: Path, is_trusted: bool) -> None:
    folder, cache = tmp_path / "own", tmp_path / "cache"
    shutil.copytree(Path(anystreamer.demo.__file__).parent / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE)
    arguments = (str(folder), "--port", "0", *["--trust-remote-code"] * is_trusted)
    # transformers reads the variable for it when it is imported.
    own_cache = (
        f"import transformers.dynamic_module_utils as u; u.HF_MODULES_CACHE = {str(cache)!r}"
    )
    with program(*arguments, before=own_cache) as process:
        assert process.stdout is not None
        if is_trusted:
            assert any(line.startswith("Serving own on ") for line in process.stdout)
        else:
            output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
            assert process.returncode == 1
            assert "--trust-remote-code" in output
            assert "Traceback" not in output
    assert bool(list(cache.rglob("ran"))) == is_trusted


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-body-bytes", "0"),
        ("--default-max-tokens", "0"),
        ("--max-tokens-limit", "-1"),
        ("--timeout", "-1"),
        ("--max-waiting", "-1"),
        ("--max-connections", "0"),
        ("--max-head-bytes", "0"),
        ("--head-timeout", "0"),
        ("--send-timeout", "-1"),
        ("--max-unsent-tokens", "0"),
        ("--max-unsent-bytes", "0"),
    ],
)
def test_limits_that_are_none(arguments: tuple[str, str]) -> None:
    with program(*arguments) as process:
        output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
        assert process.returncode == 2
        assert arguments[0] in output


def test_it_does_not_serve_everybody_without_a_key() -> None:
    with program("--host", "0.0.0.0") as process:
        output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
        assert process.returncode == 2
        assert "0.0.0.0 is a public address" in output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--ssl-keyfile nowhere", 2, "needs --ssl-certfile"),
        ("--ssl-certfile nowhere", 1, "nowhere"),
        ("--host nowhere.invalid --insecure", 1, "cannot listen on nowhere.invalid:0: "),
    ],
)
def test_options_that_do_not_go_together(options: str, code: int, message: str) -> None:
    with program("--port", "0", *options.split()) as process:
        output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
        assert process.returncode == code
        assert message in output
        assert "Traceback" not in output


def test_uvicorn_does_not_run_on_trio() -> None:
    with program("--server", "uvicorn", "--backend", "trio") as process:
        output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
        assert process.returncode == 2
        assert "uvicorn runs on asyncio only" in output


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with program("--port", str(taken.getsockname()[1])) as process:
            output, _ = process.communicate(timeout=PROGRAM_PATIENCE)
            assert process.returncode == 1
            assert output.startswith("Error: ")
            assert "Traceback" not in output


def test_by_default_all_that_openai_s_api_has_is_served_beside_others_who_stream() -> None:
    """Seeds and the likeliest tokens run alone, `n` and log-probabilities go into the batch."""
    pytest.importorskip("openai")
    is_done = threading.Event()
    with (
        program("--port", "0") as process,
        _client_of(process) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        alone = _answers(client)
        assert alone["seed"] == alone["seed again"] != alone["another seed"]
        assert len(set(alone["n"])) == 1  # greedily
        assert alone["likeliest"] == [alone["chosen"][0], 3]
        streaming = [threads.submit(_stream_on, client, is_done) for _ in range(3)]
        try:
            busy: list[str] = []
            address = str(client.base_url.join("/metrics"))
            while "anystreamer_requests_running 3.0" not in busy:
                got = httpx.get(address, trust_env=False, timeout=PROGRAM_PATIENCE)
                busy = got.text.splitlines()
            assert _answers(client) == alone
        finally:
            is_done.set()
        texts = [text for each in streaming for text in each.result(PROGRAM_PATIENCE)]
        assert len(texts) >= 3
        assert len({text[:100] for text in texts}) == 1


def _client_of(process: Any) -> Any:
    import openai

    url = process.stdout.readline().split()[-1]
    http_client = openai.DefaultHttpxClient(trust_env=False, timeout=PROGRAM_PATIENCE)
    return openai.OpenAI(
        base_url=f"{url}/v1", api_key="key", max_retries=0, http_client=http_client
    )


def _stream_on(client: Any, is_done: threading.Event) -> list[str]:
    """Ask for streams until it is done. Returns their texts."""
    texts = []
    while not is_done.is_set():
        chunks = client.completions.create(
            model="anystreamer-demo", prompt=PROMPT, max_tokens=400, temperature=0, stream=True
        )
        texts.append("".join(chunk.choices[0].text for chunk in chunks))
    return texts


def _answers(client: Any) -> dict[str, Any]:
    """What a client asks for that one by one or in a batch, and not both, can serve."""
    ask = partial(client.completions.create, model="anystreamer-demo", max_tokens=20)
    sampled = partial(ask, prompt="Count", temperature=2)
    chat = client.chat.completions.create(
        model="anystreamer-demo",
        messages=[{"role": "user", "content": "Count from two to four."}],
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    tokens = chat.choices[0].logprobs.content
    several = ask(prompt=PROMPT, temperature=0, n=3, logprobs=0).choices
    return {
        "seed": sampled(seed=7).choices[0].text,
        "seed again": sampled(seed=7).choices[0].text,
        "another seed": sampled(seed=8).choices[0].text,
        "n": [each.text for each in several],
        "chosen": [tokens[0].token, chat.choices[0].message.content],
        "likeliest": [tokens[0].top_logprobs[0].token, len(tokens[0].top_logprobs)],
        "probable": [each > -1 for each in several[0].logprobs.token_logprobs],
    }


def test_a_model_is_served_by_several_names() -> None:
    names = ("--served-model-name", "big", "--served-model-name", "small")
    with program("--port", "0", *names) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving big on http://127.0.0.1:")
        with httpx.Client(
            base_url=line.split()[-1], trust_env=False, timeout=PROGRAM_PATIENCE
        ) as client:
            models = client.get("/v1/models/").json()["data"]
            assert [each["id"] for each in models] == ["big", "small"]
            for name, status in (("big", 200), ("small", 200), ("dummy", 404)):
                body = {"prompt": "One, two,", "max_tokens": 1, "model": name}
                assert client.post(TEXT, json=body).status_code == status
            foreign = client.get("/v1/models", headers={"host": "chat.example"})
            assert "--allow-host chat.example" in foreign.json()["error"]["message"]
