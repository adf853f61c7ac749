"""Addresses of Ray clusters as people write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DASHBOARD_PORT = 8265
HERE, FOUND = "local", "auto"
"""Ray's words for a cluster that is started here, and for one that is found on this machine."""
FORMS = "auto, host:port or [IPv6]:port"
_HOST = re.compile(r"\[[^\[\]]*\]|[^:/]*")
_PARTS = re.compile(r"(?P<host>\[[^\[\]]*\]|[^/\[\]]*?)(?::(?P<port>[^:/\[\]]*))?/?")


@dataclass(frozen=True)
class Place:
    """Where a cluster's control service listens.

    Attributes:
        host: a name or an IP address, without brackets.
        port: the port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> Place | str:
    """An address out of what a person wrote.

    Args:
        text: as it was written.

    Returns:
        The place; or `auto` or `local`.

    Raises:
        ValueError: it is none; the message says what is wrong with it, and what would be right.
    """
    text = " ".join(text.split())
    if text.lower() in (HERE, FOUND):
        return text.lower()
    scheme, is_url, rest = text.partition("://")
    if is_url:
        kind = {
            "http": "a dashboard's, for `ray job submit` and a browser",
            "https": "a dashboard's, for `ray job submit` and a browser",
            "ray": "Ray Client's, through which no run goes",
        }.get(scheme.lower(), f"not Ray's ({scheme}://)")
        host = _HOST.match(rest)[0] or "host"  # type: ignore[index]
        raise ValueError(
            f"this address is {kind}. A run joins its cluster from one of the cluster's machines: "
            f"{FOUND}, or {host}:6379 (`ray start --head` prints it)"
        )
    parts = _PARTS.fullmatch(text)
    if not text or parts is None:
        raise ValueError(f"no address of a Ray cluster; allowed: {FORMS}")
    host, port = parts["host"], parts["port"]
    if text.count(":") > 1 and not host.startswith("["):
        raise ValueError(f"an IPv6 address has brackets: [{host}]:{port or 6379}")
    host = _host(host)
    if port is None:
        raise ValueError(f"has no port; for instance {Place(host, 6379)}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port: a whole number from 1 to 65535")
    return Place(host, int(port))


def cluster_address(text: str) -> str | None:
    """As Ray knows it, whatever its blanks and letters; None for `local`.

    Raises:
        ValueError: see `read_address`.
    """
    found = read_address(text)
    return None if found == HERE else str(found)


def _host(text: str) -> str:
    """A host without brackets.

    Raises:
        ValueError: there can be none of that name.
    """
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise ValueError(f"{text} is no IPv6 address; allowed: {FORMS}") from None
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", text) is None:
        raise ValueError(f"{text!r} is no host; allowed: {FORMS}")
    return text
