"""Addresses of Ray clusters as people write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

CLIENT, CLIENT_PORT, DASHBOARD_PORT = "ray", 10001, 8265
HERE, FOUND = "local", "auto"
"""Ray's words for a cluster that is started here, and for one that is found on this machine."""
FORMS = "auto, host:port, [IPv6]:port or ray://host:port"
_PARTS = re.compile(
    r"(?:(?P<scheme>[^:/\[\]]*)://)?(?P<host>\[[^\[\]]*\]|[^/\[\]]*?)(?::(?P<port>[^:/\[\]]*))?/?"
)


@dataclass(frozen=True)
class Place:
    """Where a cluster listens.

    Attributes:
        host: a name or an IP address, without brackets.
        port: the port.
        client: whether Ray Client listens there, and not the cluster's control service.
    """

    host: str
    port: int
    client: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{CLIENT}://" * self.client + f"{host}:{self.port}"


def read_address(text: str) -> Place | str:
    """An address out of what a person wrote.

    Args:
        text: as it was written.

    Returns:
        The place; or `auto` or `local`.

    Raises:
        ValueError: it is none; the message says what is wrong with it, and what would be right.
    """
    text = text.strip()
    if text.lower() in (HERE, FOUND):
        return text.lower()
    parts = _PARTS.fullmatch(text)
    if not text or parts is None:
        raise ValueError(f"no address of a Ray cluster; allowed: {FORMS}")
    scheme, host, port = (parts[name] for name in ("scheme", "host", "port"))
    if scheme is not None and scheme.lower() in ("http", "https"):
        raise ValueError(
            "the address of a dashboard, for `ray job submit` and a browser; a run joins the "
            f"cluster itself: {host or 'host'}:6379 (`ray start --head` prints its address), or "
            f"{FOUND} on one of its machines"
        )
    if scheme is not None and scheme.lower() != CLIENT:
        raise ValueError(f"{scheme}:// is no scheme of Ray's; allowed: {FORMS}")
    example = 6379 if scheme is None else CLIENT_PORT
    if scheme is None and (text.count(":") > 1 and not host.startswith("[")):
        raise ValueError(f"an IPv6 address has brackets: [{host}]:{port or example}")
    host = _host(host)
    prefix = "" if scheme is None else f"{CLIENT}://"
    shown = f"[{host}]" if ":" in host else host
    if port is None:
        raise ValueError(f"has no port; for instance {prefix}{shown}:{example}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port: a whole number from 1 to 65535")
    return Place(host, int(port), client=scheme is not None)


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
    if re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", text) is None:
        raise ValueError(f"{text!r} is no host; allowed: {FORMS}")
    return text


def cluster_address(text: str) -> str | None:
    """As Ray knows it, whatever its blanks and letters; None for `local`.

    Raises:
        ValueError: see `read_address`.
    """
    found = read_address(text)
    return None if found == HERE else str(found)
