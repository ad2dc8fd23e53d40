"""The files of the deployment page are valid, their numbers fit, and streams pass the proxies."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import create_task_group, to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from anystreamer import Engine, open_engine
from anystreamer.cli.connection_limits import ConnectionLimits
from anystreamer.cli.run_server import SHUTDOWN_SEND_TIMEOUT
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, until
from ..helpers.serving import LEFT_GENERATORS, serving

ROOT = Path(__file__).parents[2]
CERTIFICATE = ROOT / "tests" / "helpers" / "localhost.pem"
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
HOST = "llm.example.org"
SERVER = "127.0.0.1:8000"  # as the page has it
PROXIES = ["nginx", "caddy"]
ENDLESS = ["word "] * 100_000


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def number(pattern: str, text: str = PAGE) -> int:
    """The one number that the page gives there, wherever it does."""
    [found] = set(re.findall(pattern, text))
    return int(found)


def command_of(language: str) -> list[str]:
    if language == "ini":
        [line] = re.findall(r"^ExecStart=(.*)$", block("ini"), re.MULTILINE)
        return shlex.split(line)
    [line] = re.findall(r"^CMD \[(.*)\]$", block("dockerfile"), re.MULTILINE)
    return re.findall('"(.*?)"', line)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["ini", "dockerfile"])
def test_the_command_has_options_that_there_are(language: str) -> None:
    pytest.importorskip("typer")
    program, *arguments = command_of(language)
    assert Path(program).name == "anystreamer"
    # Options are parsed before --help is seen to.
    run = [sys.executable, "-m", "anystreamer", *arguments]
    assert subprocess.run([*run, "--help"], capture_output=True, check=False).returncode == 0
    wrong = subprocess.run([*run, "--wrong", "--help"], capture_output=True, check=False)
    assert wrong.returncode == 2


def test_the_unit_is_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    unit = tmp_path / "anystreamer.service"
    unit.write_text(block("ini").replace(command_of("ini")[0], sys.executable), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    # It speaks of the machine's other units as well, and fails for what it does not know of ours.
    assert unit.name not in done.stderr
    assert done.returncode == 0, done.stderr


def test_times_fit_together() -> None:
    grace, timeout = number(r'--grace"?,? "?(\d+)'), number(r'--timeout"?,? "?(\d+)')
    killed = number(r"(?:TimeoutStopSec=|--stop-timeout |terminationGracePeriodSeconds: )(\d+)")
    assert killed > grace + SHUTDOWN_SEND_TIMEOUT
    patience = number(r"(?:proxy_read_timeout|response_header_timeout) (\d+)s")
    assert patience > timeout
    for each in (grace, killed, timeout, patience):
        assert f"| {each} s |" in PAGE


def test_limits_of_connections_are_those_that_there_are() -> None:
    limits = ConnectionLimits()
    parameters = inspect.signature(create_app).parameters
    for value, option in (
        (f"{limits.max_connections}", "--max-connections"),
        (f"{limits.max_head_bytes:,}", "--max-head-bytes"),
        (f"{limits.head_timeout:.0f} s", "--head-timeout"),
        (f"{limits.send_timeout:.0f} s", "--send-timeout"),
        (f"{parameters['max_unsent_tokens'].default:,}", "--max-unsent-tokens"),
        (f"{parameters['max_unsent_bytes'].default:,}", "--max-unsent-bytes"),
    ):
        assert f"| {value} | `{option}` |" in PAGE
        assert f"| `{option}` |" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


async def test_metrics_to_watch_are_there() -> None:
    named = set(re.findall(r"`(anystreamer_\w+)`", PAGE))
    assert len(named) > 5
    async with passed(ScriptedModel(["word"]), None) as (client, _):
        await client.post("/v1/completions", json={"prompt": "x"})
        metrics = (await client.get("/metrics")).text
    # Only an engine with a cache of its own has it, and only `anystreamer serve` the connections.
    missing = {each for each in named if each not in metrics}
    assert missing == {"anystreamer_cache_used_ratio", "anystreamer_open_connections"}


# -- streams through a proxy


@pytest.fixture
def folder() -> Iterator[Path]:
    # The path of a socket may be 107 bytes long, which pytest's own folders may exceed.
    with tempfile.TemporaryDirectory(prefix="proxy") as path:
        yield Path(path)


# What the page does not recommend, and does no harm: nginx and Caddy that compress responses.
COMPRESSING = {
    "nginx": ("gzip off;", "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;"),
    "caddy": ("\treverse_proxy", "\tencode gzip\n\treverse_proxy"),
}


def nginx(folder: Path, address: Path, server: str) -> list[str]:
    config = block("nginx").replace("listen 443 ssl", f"listen unix:{address} ssl")
    config = config.replace(f"/etc/ssl/{HOST}.pem", str(CERTIFICATE))
    temporary = "".join(
        f"{each}_temp_path {folder / each};"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = config.replace(SERVER, server)
    file = folder / "nginx.conf"
    file.write_text(
        f"pid {folder}/pid; error_log stderr error; daemon off; master_process off;"
        f"events {{}} http {{ access_log off; {temporary} {config} }}",
        encoding="utf-8",
    )
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(file)]


def caddy(folder: Path, address: Path, server: str) -> list[str]:
    config = block("caddyfile").replace(
        f"{HOST} {{", f"https://{HOST} {{\n\tbind unix/{address}", 1
    )
    config = config.replace(
        "\treverse_proxy", f"\ttls {CERTIFICATE} {CERTIFICATE}\n\treverse_proxy", 1
    )
    file = folder / "Caddyfile"
    file.write_text(
        "{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + config.replace(SERVER, server),
        encoding="utf-8",
    )
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]


def accepts(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(address)) == 0


@asynccontextmanager
async def behind(
    proxy: str, folder: Path, url: str, compresses: bool
) -> AsyncIterator[httpx.AsyncHTTPTransport]:
    """Run *proxy*, as the page configures it, before the server at *url*."""
    address = folder / "socket"
    command = {"nginx": nginx, "caddy": caddy}[proxy](folder, address, url.removeprefix("http://"))
    if compresses:
        config, (before, after) = Path(command[-1]), COMPRESSING[proxy]
        assert before in config.read_text(encoding="utf-8")
        config.write_text(config.read_text(encoding="utf-8").replace(before, after, 1), "utf-8")
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        )
    try:
        await until(lambda: accepts(address) or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        # The certificate is for another name.
        async with httpx.AsyncHTTPTransport(uds=str(address), verify=False) as transport:
            yield transport
    finally:
        process.kill()
        await to_thread.run_sync(process.wait)


@asynccontextmanager
async def passed(
    model: ScriptedModel, proxy: str | None, folder: Path = Path(), compresses: bool = False
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """A client of a proxy of a server of an engine of *model*."""
    if proxy is not None and shutil.which(proxy) is None:
        pytest.skip(f"there is no {proxy} here")
    async with open_engine(model, model.tokenizer) as engine:

        async def text(request: Request) -> Response:
            return TextStreamResponse(engine.stream_text("x", max_new_tokens=10))

        whole = create_app(engine, context_length=200_000, allowed_hosts=[HOST, "127.0.0.1"])
        app = Starlette(routes=[Route("/text", text, methods=["POST"]), Mount("/", whole)])
        async with serving(app) as url:
            options: dict[str, Any] = {"timeout": PATIENCE, "trust_env": False}
            if proxy is None:
                async with httpx.AsyncClient(base_url=url, **options) as client:
                    yield client, engine
            else:
                async with (
                    behind(proxy, folder, url, compresses) as transport,
                    httpx.AsyncClient(
                        base_url=f"https://{HOST}", transport=transport, **options
                    ) as client,
                ):
                    yield client, engine


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/completions", "/text"])
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("compresses", [False, True], ids=["as on the page", "compressing"])
async def test_a_stream_passes_piece_by_piece(
    compresses: bool, proxy: str, path: str, folder: Path
) -> None:
    gate = Gate()
    # Caddy compresses what is longer than 512 bytes.
    model = ScriptedModel(["one" * 1000, gate, " two"])
    async with passed(model, proxy, folder, compresses) as (client, _):
        body = {"prompt": "x", "stream": True}
        try:
            async with client.stream("POST", path, json=body) as response:
                assert response.status_code == 200
                pieces, text = response.aiter_text(), ""
                while "one" not in text:
                    text += await anext(pieces)
                assert "two" not in text
                gate.open()  # it waited here, with the first piece at the client
                text += "".join([piece async for piece in pieces])
        finally:
            gate.open()
    assert " two" in text
    assert path == "/text" or text.endswith("data: [DONE]\n\n")


@pytest.mark.slow
@LEFT_GENERATORS
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("proxy", PROXIES)
async def test_who_leaves_the_proxy_stops_the_model(proxy: str, stream: bool, folder: Path) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with passed(model, proxy, folder) as (client, engine):
        body = {"prompt": "x", "stream": stream, "max_tokens": len(ENDLESS)}
        if stream:
            async with client.stream("POST", "/v1/completions", json=body) as response:
                await anext(response.aiter_text())
                assert model.is_generating
        else:
            async with create_task_group() as tasks:
                tasks.start_soon(partial(client.post, "/v1/completions", json=body))
                await until(lambda: model.steps > 3)
                tasks.cancel_scope.cancel()
        await until(lambda: not (model.is_generating or engine.statistics().running))
        metrics = (await client.get("/metrics")).text
    assert model.steps < len(ENDLESS)
    assert 'outcome="disconnected"} 1.0' in metrics
