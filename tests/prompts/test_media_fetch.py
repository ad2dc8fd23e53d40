"""Pictures from addresses: only of hosts that are allowed, within bounds, on every loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("PIL")
pytest.importorskip("httpcore")
pytest.importorskip("torch")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from anystreamer import UntrustedMessages, open_engine, stream_batch, stream_text
from anystreamer._prompts import media_fetch
from anystreamer._prompts.media_hosts import is_allowed, is_public, is_served_at

from ..helpers.scripted import PATIENCE, until
from ..helpers.serving import serving
from ..helpers.tiny_models import steps_of
from ..helpers.tiny_processors import kind_named, picture, png
from .test_media import asking, plain

pytestmark = pytest.mark.torch


class Pictures:
    """A server of pictures, and what it was asked for."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.is_open = False  # a connection that never ends

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    async def answer(self, request: Request) -> Response:
        self.asked.append(request.url.path)
        what = request.path_params["what"]
        if what == "redirect":
            return RedirectResponse(request.query_params["to"])
        if what == "around":
            return RedirectResponse("/around")
        if what == "endless":
            return StreamingResponse(self._endless(b"a" * 100_000))
        if what == "slow":
            return StreamingResponse(self._endless(b""))
        if what == "picture.png":
            return Response(png(picture(3)), media_type="image/png")
        return Response("nothing here", status_code=404)

    async def _endless(self, chunk: bytes) -> AsyncIterator[bytes]:
        self.is_open = True
        try:
            while chunk:
                yield chunk
                await checkpoint()  # a server that only sends would not see the other side close
            yield chunk
            await anyio.sleep_forever()
        finally:
            self.is_open = False


@asynccontextmanager
async def pictures() -> AsyncIterator[Pictures]:
    found = Pictures()
    app = Starlette(routes=[Route("/{what}", found.answer)])
    async with serving(app) as url:
        found.url = url
        yield found


def at(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


async def ids_of(chat: Any) -> list[int]:
    kind = kind_named("llava")
    async with stream_text(
        kind.model, kind.processor, chat, max_new_tokens=8, do_sample=False
    ) as stream:
        await stream.read()
    return list(stream.token_ids)


async def refused(chat: Any, match: str) -> None:
    with steps_of(kind_named("llava").model) as steps:
        with pytest.raises(ValueError, match=match):
            await ids_of(chat)
    assert steps.count == 0


async def test_a_picture_is_fetched_from_a_host_that_is_allowed() -> None:
    kind = kind_named("llava")
    expected = plain(kind, asking({"type": "image", "image": picture(3)}))
    async with pictures() as server:
        chat = UntrustedMessages(
            asking(at(f"{server.url}/picture.png")), allow_media_from=[server.host]
        )
        assert await ids_of(chat) == expected
        async with open_engine(kind.model, kind.processor) as engine:
            async with engine.stream_text(chat, max_new_tokens=8, do_sample=False) as stream:
                await stream.read()
        assert list(stream.token_ids) == expected
        async with stream_batch(
            kind.model, kind.processor, [chat, chat], max_new_tokens=8, do_sample=False
        ) as batch:
            await batch.read()
        assert batch.token_ids == [expected, expected]
        # Twice in one prompt or batch, it is fetched once.
        assert server.asked == ["/picture.png"] * 3


async def test_no_address_is_fetched_unless_its_host_is_named() -> None:
    async with pictures() as server:
        address = f"{server.url}/picture.png"
        port = urlsplit(server.url).port
        for part in (
            at(address),
            {"type": "image", "url": address},
            {"type": "image", "image": address},
        ):
            await refused(asking(part), "allow_media_from does not name it")
            await refused(UntrustedMessages(asking(part)), "allow_media_from does not name it")
            for hosts in (["example.org"], ["127.0.0.1"], [f"localhost:{port}"], ["*"]):
                chat = UntrustedMessages(asking(part), allow_media_from=hosts)
                await refused(chat, "allow_media_from does not name it")
        # Of several, none is fetched if one is not allowed.
        both = asking(at(address), at("http://example.org/"))
        chat = UntrustedMessages(both, allow_media_from=[server.host])
        await refused(chat, r"content\[1\]: files are not fetched from 'example.org'")
        assert server.asked == []


async def test_a_name_does_not_lead_to_a_private_address() -> None:
    async with pictures() as server:
        port = urlsplit(server.url).port
        name = f"localhost:{port}"
        chat = UntrustedMessages(
            asking(at(f"http://{name}/picture.png")), allow_media_from=[name, server.host]
        )
        await refused(chat, "address that is not public")
        assert server.asked == []


async def test_redirects_lead_to_hosts_that_are_allowed_only() -> None:
    async with pictures() as server:

        def to(address: str) -> UntrustedMessages:
            part = at(f"{server.url}/redirect?to={address}")
            return UntrustedMessages(asking(part), allow_media_from=[server.host])

        expected = plain(kind_named("llava"), asking({"type": "image", "image": picture(3)}))
        assert await ids_of(to("/picture.png")) == expected
        await refused(to("http://example.org/a.png"), "not fetched from 'example.org'")
        await refused(to("http://169.254.169.254/latest/"), "not fetched from '169.254.169.254'")
        await refused(to("file:///etc/passwd"), "is not an http.s. address")
        server.asked.clear()
        await refused(to("/around"), "answered 307")
        assert server.asked == ["/redirect"] + ["/around"] * media_fetch.MAX_REDIRECTS


async def test_what_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_fetch, "MAX_BYTES", 1_000_000)
    async with pictures() as server:

        def of(what: str) -> UntrustedMessages:
            return UntrustedMessages(
                asking(at(f"{server.url}/{what}")), allow_media_from=[server.host]
            )

        await refused(of("missing"), "answered 404")
        await refused(of("endless"), "the file is larger than")
        await until(lambda: not server.is_open)
        monkeypatch.setattr(media_fetch, "SECONDS", 0.5)
        await refused(of("slow"), "did not arrive within")
        await until(lambda: not server.is_open)
        gone = UntrustedMessages(
            asking(at("http://127.0.0.1:1/a.png")), allow_media_from=["127.0.0.1:1"]
        )
        monkeypatch.undo()
        await refused(gone, "cannot be reached")


@pytest.mark.parametrize("way", ["alone", "engine"])
async def test_a_cancel_ends_the_fetch(way: str) -> None:
    kind = kind_named("llava")
    async with pictures() as server:
        chat = UntrustedMessages(asking(at(f"{server.url}/slow")), allow_media_from=[server.host])
        with steps_of(kind.model) as steps, anyio.fail_after(PATIENCE):
            async with open_engine(kind.model, kind.processor) as engine:
                opener = (
                    stream_text(kind.model, kind.processor, chat, max_new_tokens=2)
                    if way == "alone"
                    else engine.stream_text(chat, max_new_tokens=2)
                )
                async with anyio.create_task_group() as tasks:

                    async def stream() -> None:
                        async with opener:
                            pytest.fail("it was never fetched")

                    tasks.start_soon(stream)
                    await until(lambda: server.is_open)
                    tasks.cancel_scope.cancel()
                await until(lambda: not server.is_open)
        assert steps.count == 0


async def test_the_loop_goes_on_while_a_picture_is_decoded() -> None:
    """Held while it decodes, a thread can still tell the loop so."""
    from PIL import ImageOps

    entered, leave = anyio.Event(), threading.Event()
    token = anyio.lowlevel.current_token()
    upright = ImageOps.exif_transpose

    def held(image: Any) -> Any:
        anyio.from_thread.run_sync(entered.set, token=token)
        assert leave.wait(PATIENCE)
        return upright(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageOps, "exif_transpose", held)
        chat = asking({"type": "image", "image": png(picture())})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ids_of, chat)
            with anyio.fail_after(PATIENCE):
                await entered.wait()  # which the loop was told meanwhile
            leave.set()


# -- names and addresses


@pytest.mark.parametrize(
    ("address", "hosts", "is_fine"),
    [
        ("https://example.org/a", ["example.org"], True),
        ("http://example.org/a", ["EXAMPLE.org".lower()], True),
        ("https://EXAMPLE.org:443/a", ["example.org"], True),
        ("https://example.org:444/a", ["example.org"], False),
        ("https://example.org:444/a", ["example.org:444"], True),
        ("https://example.org/a", ["*"], True),
        ("https://example.org:444/a", ["*"], False),
        ("https://a.example.org/a", ["example.org"], False),
        ("https://example.org.evil.net/a", ["example.org"], False),
        ("https://example.org@evil.net/a", ["example.org"], False),
        ("https://evil.net/?example.org", ["example.org"], False),
        ("https://evil.net#@example.org/", ["example.org"], False),
        ("https://evil.net\\@example.org/", ["evil.net"], False),
        ("http://[::1]:80/a", ["[::1]"], True),
    ],
)
def test_hosts(address: str, hosts: list[str], is_fine: bool) -> None:
    assert is_allowed(urlsplit(address), hosts) is is_fine


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_private_addresses(ip: str) -> None:
    assert not is_public(ip)
    assert not is_served_at(urlsplit("https://example.org/"), ip, ["example.org", "*", ip])
    assert not is_served_at(
        urlsplit(f"https://[{ip}]/" if ":" in ip else f"https://{ip}/"), ip, ["*"]
    )


def test_public_addresses() -> None:
    for ip in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"):
        assert is_public(ip)


@pytest.mark.parametrize(
    "hosts", ["example.org", [1], None, ["https://example.org"], ["a/b"], [""]]
)
def test_lists_that_are_not_of_hosts(hosts: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        UntrustedMessages([], allow_media_from=hosts)
