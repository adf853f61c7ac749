"""Passwords in addresses: this process alone knows them, and nothing that is written has one."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

from agrekd_ray.addresses import is_database
from agrekd_ray.errors import TrackingError

MASK = "***"
VARIABLE = "MLFLOW_TRACKING_PASSWORD"
"""Where a password is looked for that is not in the address."""
_PLACES = (
    # of a server, and of a database, whose password may have slashes
    (re.compile(r"(\bhttps?://[^\s:/?#@]*):[^\s/?#]*@"), rf"\1:{MASK}@"),
    (re.compile(r"((?<!http)(?<!https)://[^\s:/?#@]*):(?:[^\s/?#]*@|[^\s@]*@)"), rf"\1:{MASK}@"),
    (
        re.compile(r"([?&;](?:password|passwd|pwd|sslpassword|token)=)[^&;#\s]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
)
_MASKED = re.compile(rf"[:=]{re.escape(MASK)}")
_KNOWN: dict[str, str] = {}


def without_password(text: str) -> str:
    """A text with the passwords of its addresses masked."""
    for pattern, masked in _PLACES:
        text = pattern.sub(masked, text)
    return text


def hidden(address: str) -> str:
    """The address with its password masked; as it was, `revealed` gives it back."""
    masked = without_password(_by_sqlalchemy(address))
    if masked != address:
        _KNOWN[masked] = address
    return masked


def _by_sqlalchemy(address: str) -> str:
    """A database's address without its password, which may have any sign."""
    if not is_database(address) or "@" not in address:
        return address
    from sqlalchemy.engine import make_url  # a moment to import

    try:
        url = make_url(address)
    except ValueError:  # it is none, and refused elsewhere
        return address
    return address if url.password is None else url.render_as_string()


def all_hidden(values: Any) -> Any:
    """Nested plain values, every text in them as `hidden` gives it."""
    if isinstance(values, str):
        return hidden(values)
    if isinstance(values, dict):
        return {key: all_hidden(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [all_hidden(value) for value in values]
    return values


def revealed(address: str) -> str:
    """The address with its password, for whoever connects.

    A process that has not seen the address takes the password from the environment.

    Raises:
        TrackingError: it is not there either.
    """
    if not _MASKED.search(address) or address in _KNOWN:
        return _KNOWN.get(address, address)
    password = os.environ.get(VARIABLE)
    if not password:
        raise TrackingError(
            f"The password of {address} is kept nowhere: set {VARIABLE} to it, then try again."
        )
    return address.replace(MASK, quote(password, safe=""))
