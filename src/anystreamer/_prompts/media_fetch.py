"""Fetches pictures and recordings from the hosts that are allowed. Needs httpcore."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from anyio import fail_after, getaddrinfo

from .._installing import NotInstalled
from .media import media_parts
from .media_files import MAX_BYTES, MAX_ITEMS
from .untrusted import UntrustedMessages

__all__ = ["fetch_media"]

SECONDS = 10.0  # for one file, redirects included
MAX_REDIRECTS = 3
HEADER_BYTES = 64 * 1024  # besides the file

_REDIRECTS = (301, 302, 303, 307, 308)


async def fetch_media(prompts: Sequence[Any]) -> dict[str, bytes]:
    """The files of all pictures and recordings in *prompts* that have addresses, by address.

    Cancelling it closes the connection. No address is fetched if one of them is not allowed.

    Raises:
        ValueError: a host is not allowed, or does not send the file.
        ImportError: httpcore is not installed.
    """
    wanted: dict[str, tuple[str, tuple[str, ...]]] = {}
    for prompt in prompts:
        if isinstance(prompt, str | Mapping):
            continue
        hosts = prompt.allow_media_from if isinstance(prompt, UntrustedMessages) else ()
        for part in media_parts(prompt):
            if part.address is None:
                continue
            _check(part.place, _split(part.place, part.address), hosts)
            wanted[part.address] = part.place, hosts
    if len(wanted) > MAX_ITEMS:
        raise ValueError(f"a prompt can have at most {MAX_ITEMS} pictures, recordings and videos")
    return {address: await _fetch(address, *each) for address, each in wanted.items()}


def _split(place: str, address: str) -> SplitResult:
    try:
        split = urlsplit(address.strip())
        _ = split.port  # raises where it is not a number
    except ValueError as exc:
        raise ValueError(f"{place}: {address[:200]!r} is not an address") from exc
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(f"{place}: {address[:200]!r} is not an http(s) address")
    return split


def _check(place: str, address: SplitResult, hosts: Iterable[str]) -> None:
    from .media_hosts import is_allowed

    if not is_allowed(address, hosts):
        raise ValueError(
            f"{place}: files are not fetched from {address.netloc[:200]!r} (allow_media_from does "
            "not name it): send the file itself, as data:...;base64,..."
        )


async def _fetch(address: str, place: str, hosts: tuple[str, ...]) -> bytes:
    try:
        import httpcore
    except ImportError as exc:
        raise NotInstalled("fetching pictures and recordings needs httpcore", "media") from exc
    try:
        with fail_after(SECONDS):
            for _ in range(1 + MAX_REDIRECTS):
                split = _split(place, address)
                _check(place, split, hosts)
                ip = await _ip_of(place, split, hosts)
                status, headers, body = await _get(httpcore, split, ip, place)
                if status not in _REDIRECTS:
                    break
                address = urljoin(address, headers.get(b"location", b"").decode("latin-1"))
    except TimeoutError:
        raise ValueError(f"{place}: the file did not arrive within {SECONDS:.0f} seconds") from None
    except (OSError, UnicodeError, httpcore.NetworkError, httpcore.ProtocolError) as exc:
        raise ValueError(f"{place}: {split.netloc!r} cannot be reached") from exc
    if status != 200:
        raise ValueError(f"{place}: {split.netloc!r} answered {status}")
    return body


async def _ip_of(place: str, address: SplitResult, hosts: Iterable[str]) -> str:
    """An address to connect to. It is looked up once, so that it cannot change after the check."""
    from .media_hosts import is_served_at

    port = address.port or (443 if address.scheme == "https" else 80)
    found = await getaddrinfo(str(address.hostname), port, type=socket.SOCK_STREAM)
    for *_, sockaddr in found:
        ip = str(sockaddr[0])
        if not is_served_at(address, ip, hosts):
            raise ValueError(
                f"{place}: {address.hostname!r} has an address that is not public: name the "
                "address itself in allow_media_from, with its port"
            )
    return str(found[0][-1][0])


async def _get(
    httpcore: Any, address: SplitResult, ip: str, place: str
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request, over a connection of its own."""

    class ToOneAddress(httpcore.AsyncNetworkBackend):  # type: ignore[misc]
        """Connects to the address that was checked, whatever the name stands for by now."""

        async def connect_tcp(self, host: str, port: int, **kwargs: Any) -> Any:
            stream = await httpcore.AnyIOBackend().connect_tcp(ip, port, **kwargs)
            return _BoundedStream(stream, place)

    url = address._replace(fragment="").geturl()
    accept = {"Accept": "*/*"}
    async with (
        httpcore.AsyncConnectionPool(network_backend=ToOneAddress()) as pool,
        pool.stream("GET", url, headers=accept) as response,
    ):
        headers = {name.lower(): value for name, value in response.headers}
        body = await response.aread() if response.status == 200 else b""
        return response.status, headers, body


class _BoundedStream:
    """A connection that ends with an error when too much has come.

    Raised here, the error ends the generators within httpcore, which does not close them itself.
    """

    def __init__(self, stream: Any, place: str) -> None:
        self._stream = stream
        self._place = place
        self._left = MAX_BYTES + HEADER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = await self._stream.read(max_bytes, timeout)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._place}: the file is larger than {MAX_BYTES // 1024**2} MiB")
        return data

    async def start_tls(self, *args: Any, **kwargs: Any) -> _BoundedStream:
        return _BoundedStream(await self._stream.start_tls(*args, **kwargs), self._place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
