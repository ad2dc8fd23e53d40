"""Where a server listens: an address or a path of a socket, with or without TLS."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["BACKLOG", "Certificate", "host_in_url", "listening", "listening_on_path", "url_of"]

# How many connections can wait until a busy loop accepts them. The client of one more tries again
# a second later.
BACKLOG = 2048


@dataclass(frozen=True)
class Certificate:
    """What TLS needs: files in PEM format."""

    certificate: str  # the chain
    key: str | None  # None if it is in the same file

    def check(self) -> None:
        """Read them, before a model is loaded for nothing.

        Raises:
            OSError: with the name of the file, if one cannot be read or used.
        """
        for path in filter(None, (self.certificate, self.key)):
            with open(path, "rb"):  # its error has the name of the file, unlike an error of `ssl`
                pass
        files = f"{self.certificate}{f' and {self.key}' if self.key else ''}"
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
        except ssl.SSLError as exc:
            raise OSError(
                f"{files}: not a certificate and its key in PEM format ({exc.reason or exc})"
            ) from exc
        except ValueError as exc:
            raise OSError(f"{files}: {exc}") from exc


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase: write it without one, as openssl pkey does")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises OSError if it cannot."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as exc:  # UnicodeError: a name that no host can have
        raise OSError(f"cannot listen on {host_in_url(host)}:{port}: {_reason(exc)}") from exc
    # With its protocol, which `create_server` leaves out. asyncio sets TCP_NODELAY only for sockets
    # with a protocol. Without TCP_NODELAY, a response waits up to 40 ms for the client's kernel.
    return socket.socket(family, listener.type, socket.IPPROTO_TCP, fileno=listener.detach())


@contextmanager
def listening_on_path(path: str) -> Iterator[socket.socket]:
    """A socket that listens on a path, which is removed at the end.

    Raises:
        OSError: it cannot listen there, for example because another process does.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError("what is there is not a socket")
            if not _is_served(path):
                os.unlink(path)  # left by a process that was killed
        listener.bind(path)
        listener.listen(BACKLOG)
        made = os.stat(path)
    except OSError as exc:
        listener.close()
        raise OSError(f"cannot listen on {path}: {_reason(exc)}") from exc
    try:
        with listener:
            yield listener
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), made):
                os.unlink(path)


def _reason(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, UnicodeError):
        return "it is not the name of a host"
    if isinstance(exc, socket.gaierror) or not exc.errno:  # a gaierror has numbers of its own
        return exc.strerror or str(exc)
    return os.strerror(exc.errno)  # without the address that `create_server` adds


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL of a listening socket; if it has a path, the form of curl and nginx: ``unix:...``."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://{host_in_url(host)}:{port}"


def host_in_url(host: str) -> str:
    """A host as URLs and the header ``Host`` have it: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host else host
