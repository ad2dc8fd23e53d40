"""Which hosts pictures and recordings can be fetched from."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from urllib.parse import SplitResult

__all__ = ["ANY_HOST", "is_allowed", "is_public", "is_served_at", "validate_hosts"]

ANY_HOST = "*"
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"(\*|[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")


def validate_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """Check a list of hosts, each with or without a port.

    Raises:
        TypeError, ValueError: what is wrong with it.
    """
    if isinstance(hosts, str) or not all(isinstance(each, str) for each in hosts):
        raise TypeError(f"allow_media_from must be a list of hosts, got {hosts!r}")
    lowered = tuple(each.lower() for each in hosts)
    for each in lowered:
        if not _HOST.fullmatch(each):
            raise ValueError(
                f"allow_media_from: {each!r} is not a host, such as 'example.org' or "
                "'127.0.0.1:8000'"
            )
    return lowered


def is_allowed(address: SplitResult, hosts: Iterable[str]) -> bool:
    """Whether a file can be fetched from an address: its host and its port are named.

    Without a port, the ports of http and https are meant.
    """
    names = _names(address)
    if (address.port or _PORTS[address.scheme]) == _PORTS[address.scheme]:
        names.add(ANY_HOST)
    return not names.isdisjoint(hosts)


def is_served_at(address: SplitResult, ip: str, hosts: Iterable[str]) -> bool:
    """Whether the host can have this IP address: a public one, or one that is named itself."""
    return is_public(ip) or (address.hostname == ip and not _names(address).isdisjoint(hosts))


def is_public(ip: str) -> bool:
    """Whether an IP address is one that anybody can reach."""
    parsed = ipaddress.ip_address(ip.partition("%")[0])
    # An address of IPv4 can be written as one of IPv6, in more than one way.
    inner = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    if parsed in _NAT64:
        inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    found = inner or parsed
    return found.is_global and not found.is_multicast


def _names(address: SplitResult) -> set[str]:
    """How a list of hosts can name the host of an address."""
    host = address.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = address.port or _PORTS[address.scheme]
    return {f"{host}:{port}"} | ({host} if port == _PORTS[address.scheme] else set())
