"""Servers on a path and with TLS, on each of them and on each loop."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import httpx
import pytest

from anystreamer import open_engine
from anystreamer.cli.listening import Certificate, listening, listening_on_path, url_of
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.serving import SERVERS, data_of, limited_serving

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

PEM = str(Path(__file__).parents[1] / "helpers" / "localhost.pem")
BODY = {"prompt": "hi", "stream": True}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("key", [None, PEM])
async def test_it_serves_with_tls(server: str, key: str | None) -> None:
    model = ScriptedModel(["x" * 1000] * 200)
    async with open_engine(model, model.tokenizer) as engine:
        app, certificate = create_app(engine), Certificate(PEM, key)
        async with (
            limited_serving(app, server, certificate=certificate) as url,
            httpx.AsyncClient(base_url=url, verify=False, trust_env=False) as client,
        ):
            assert url.startswith("https://127.0.0.1:")
            for _ in range(2):
                *events, done = data_of((await client.post("/v1/completions", json=BODY)).text)
                assert done == "[DONE]"
                texts = [each["choices"][0]["text"] for each in events if each["choices"]]
                assert "".join(texts) == "x" * 200_000


@pytest.mark.parametrize("server", SERVERS)
async def test_it_serves_on_a_path(server: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    model = ScriptedModel(["one", " two"])
    with listening_on_path(path) as listener:
        async with open_engine(model, model.tokenizer) as engine:
            transport = httpx.AsyncHTTPTransport(uds=path)
            async with (
                limited_serving(create_app(engine), server, listener=listener) as url,
                httpx.AsyncClient(base_url="http://localhost", transport=transport) as client,
            ):
                assert url == f"unix:{path}"
                response = await client.post("/v1/completions", json={"prompt": "hi"})
                assert response.json()["choices"][0]["text"] == "one two"
    assert not os.path.exists(path)


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()  # as a process that is killed does
    with listening_on_path(path) as listener:
        assert url_of(listener) == f"unix:{path}"
        with (
            pytest.raises(OSError, match=rf"cannot listen on {path}: Address already in use"),
            listening_on_path(path),
        ):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    assert not os.path.exists(path)


def test_what_is_no_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(OSError, match="cannot listen on"), listening_on_path(str(path)):
        pass
    assert path.read_text() == "kept"
    with pytest.raises(OSError, match="nowhere"), listening_on_path(str(tmp_path / "nowhere/s")):
        pass


def test_a_path_that_another_process_has_taken_since_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listening_on_path(path):
        os.unlink(path)
        other = socket.socket(socket.AF_UNIX)
        other.bind(path)
    with other:
        assert os.path.exists(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_addresses(host: str) -> None:
    with listening(host, 0) as listener:
        shown = f"[{host}]" if ":" in host else host
        port = listener.getsockname()[1]
        assert url_of(listener, "https") == f"https://{shown}:{port}"
