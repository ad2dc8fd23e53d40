"""Servers on a path and with TLS, on each of them and on each loop."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from anystreamer import open_engine
from anystreamer.cli.listening import Certificate, listening, listening_on_path, url_of
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PATIENCE
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
            httpx.AsyncClient(
                base_url=url, verify=False, trust_env=False, timeout=PATIENCE
            ) as client,
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
                httpx.AsyncClient(
                    base_url="http://localhost", transport=transport, timeout=PATIENCE
                ) as client,
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
    for taken in (path, tmp_path):
        with pytest.raises(OSError, match=f"cannot listen on {taken}: what is there is not a sock"):
            with listening_on_path(str(taken)):
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


# -- what cannot work


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".org"])
def test_a_name_that_is_not_this_machine_s_is_named(host: str) -> None:
    with pytest.raises(OSError, match=rf"^cannot listen on {host}:80: \w+"):
        listening(host, 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_that_is_taken_is_named(host: str) -> None:
    with listening(host, 0) as taken:
        address = re.escape(url_of(taken).removeprefix("http://"))
        with pytest.raises(OSError, match=rf"^cannot listen on {address}: Address already in use$"):
            listening(host, taken.getsockname()[1])


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / ("s" * 200))
    with pytest.raises(OSError, match=f"cannot listen on {path}: .* too long"):
        with listening_on_path(path):
            pass


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files of certificates: whole, and with each fault."""
    text = Path(PEM).read_text()
    blocks = re.findall(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----\n", text, re.DOTALL)
    (key,) = [each for each in blocks if "PRIVATE KEY" in each]
    (certificate,) = [each for each in blocks if "CERTIFICATE" in each]
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "certificate.pem").write_text(certificate)
    (tmp_path / "text.pem").write_text("text")
    (tmp_path / "folder.pem").mkdir()
    openssl = ("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    subprocess.run([*openssl, "-out", str(tmp_path / "other.pem")], check=True)
    encrypted = ("-aes256", "-pass", "pass:secret", "-out", str(tmp_path / "encrypted.pem"))
    subprocess.run([*openssl, *encrypted], check=True)
    return {each.stem: str(each) for each in tmp_path.iterdir()} | {"nowhere": "nowhere.pem"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")
@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("nowhere", None, "No such file or directory: '{certificate}'"),
        ("certificate", "nowhere", "No such file or directory: '{key}'"),
        ("folder", None, "Is a directory: '{certificate}'"),
        ("text", None, "{certificate}: not a certificate and its key in PEM format"),
        ("certificate", None, "{certificate}: not a certificate and its key in PEM format"),
        ("certificate", "text", "{certificate} and {key}: not a certificate and its key"),
        ("certificate", "other", "{certificate} and {key}: not a certificate and its key"),
        ("certificate", "encrypted", "{certificate} and {key}: the key has a passphrase"),
    ],
)
def test_files_of_a_certificate_that_cannot_be_used_are_named(
    certificate: str, key: str | None, reason: str, files: dict[str, str]
) -> None:
    wrong = Certificate(files[certificate], key and files[key])
    expected = reason.format(certificate=wrong.certificate, key=wrong.key)
    with pytest.raises(OSError, match=re.escape(expected)):
        wrong.check()
    Certificate(files["certificate"], files["key"]).check()
    Certificate(PEM, None).check()
