"""Addresses of MLflow stores: checked where they are read, and the same from every folder.

SQLAlchemy reads and writes those of databases, as it does for MLflow.
"""

from __future__ import annotations

import re
import sqlite3
import warnings
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from agrekd_ray.errors import nearest
from agrekd_ray.settings import absolute

if TYPE_CHECKING:  # a moment to import, and few jobs have an address
    from sqlalchemy.engine import URL

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""That this process opens itself."""
_SERVERS = ("http", "https", "databricks")
_EXAMPLE = "sqlite:////absolute/path/mlflow.db"


def store_address(text: str) -> str:
    """The address of a store as MLflow shall have it; that of a file is absolute.

    Args:
        text: as a person gives it.

    Raises:
        ValueError: MLflow can keep no runs there; says why, in one line.
    """
    text = text.strip()
    given = text if text == "databricks" else _scheme(text)
    scheme = given.partition("+")[0]
    if scheme in ("", "file"):
        raise ValueError(
            "no tracking URI: MLflow does not keep runs in plain folders any more; write "
            f"{_EXAMPLE}, or the address of a server (http://...){_hint(text)}"
        )
    if scheme in DATABASES:
        return _of_database(text)
    if scheme.lower() in ("http", "https"):
        _check_server(text)
        return text
    known = sorted({*DATABASES, *_SERVERS, *_plugins()})
    if scheme not in known:
        near = nearest(scheme.lower(), known)
        hint = f"; perhaps {near}{text[len(scheme) :]} is meant" if near else _hint(text)
        raise ValueError(
            f"no tracking URI: MLflow knows no {scheme!r}, only {', '.join(known)}{hint}"
        )
    return text


def sqlite_file(address: str) -> Path | None:
    """The file of a SQLite store; None for every other store.

    Args:
        address: that `store_address` gave.
    """
    return _file(_parsed(address)) if _scheme(address).startswith("sqlite") else None


def sqlite_address(path: Path) -> str:
    """The address of a SQLite store in a file, whatever signs its path has.

    Raises:
        ValueError: no address can have this path.
    """
    from sqlalchemy.engine import URL

    return _written(URL.create("sqlite"), path)


def is_database(address: str) -> bool:
    """Whether the store is a database that this process opens itself."""
    return _scheme(address).partition("+")[0] in DATABASES


def _scheme(text: str) -> str:
    """What stands before the first colon; nothing where that begins a path or a number."""
    found = re.match(r"([A-Za-z][\w+.-]*):", text)
    return found[1] if found else ""


def _hint(text: str) -> str:
    """For who leaves `http://` out."""
    return f"; perhaps http://{text} is meant" if re.match(r"[\w.-]+:\d+(/|$)", text) else ""


def _plugins() -> set[str]:
    return {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}


def _check_server(text: str) -> None:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 (raises where it is none)
    except ValueError as error:  # brackets, a port that is no number
        raise ValueError(f"no address of a server: {error}") from None
    if not parts.hostname or " " in parts.netloc:
        raise ValueError("no address of a server: write http://HOST:PORT")


def _parsed(text: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme = _scheme(text)
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # the latter of a port
        raise ValueError(
            f"no tracking URI: a database's is written {scheme}://USER@HOST:PORT/NAME, a file's "
            f"{_EXAMPLE} or sqlite:///PATH"
        ) from None


def _of_database(text: str) -> str:
    from sqlalchemy.exc import NoSuchModuleError

    url = _parsed(text)
    try:
        dialect = url.get_dialect()
    except NoSuchModuleError:
        raise ValueError(f"no tracking URI: SQLAlchemy knows no {url.drivername!r}") from None
    if dialect.is_async:
        raise ValueError(f"no tracking URI: MLflow does not work with {url.drivername!r}")
    if url.get_backend_name() != "sqlite":
        if "@" in (url.host or ""):
            raise ValueError("no tracking URI: in a password, @ is written %40")
        return text
    _check_sqlite(url)
    path = _file(url)
    if path.is_dir():
        raise ValueError(f"no tracking URI: {path} is a folder; name a file in it")
    return _written(url, path)


def _check_sqlite(url: URL) -> None:
    """What SQLAlchemy and SQLite say of it, and that it is a file."""
    from sqlalchemy.exc import ArgumentError, SAWarning

    if url.host or url.username:
        raise ValueError(
            "no tracking URI: after sqlite:// a file's path follows a third slash, "
            f"sqlite:///{url.host or url.username}"
        )
    name, query = url.database or "", url.query
    if name in ("", ":memory:", "file::memory:") or "memory" in query.get("mode", ""):
        raise ValueError(
            f"no tracking URI: one process alone sees a database in memory; name a file, {_EXAMPLE}"
        )
    in_uri = str(query.get("uri", "")).lower() in ("true", "1", "yes", "on", "y", "t")
    if name.startswith("file:") != in_uri:
        raise ValueError(
            "no tracking URI: SQLite's own is written sqlite:///file:PATH?uri=true, a path "
            "sqlite:///PATH"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SAWarning)
            _, options = url.get_dialect()().create_connect_args(url)
        with closing(sqlite3.connect(":memory:", **options)):
            pass
    except (ArgumentError, SAWarning, ValueError, TypeError, sqlite3.Error) as error:
        words = str(error).splitlines()[0].partition(". (")[0]
        raise ValueError(f"no tracking URI: {words}") from None


def _file(url: URL) -> Path:
    name = url.database or ""
    return absolute(Path(unquote(urlsplit(name).path) if name.startswith("file:") else name))


def _written(url: URL, path: Path) -> str:
    """The address with this file; MLflow, which also cuts it as text, makes no other folder."""
    if (url.database or "").startswith("file:"):
        return _rendered(url.set(drivername="sqlite+pysqlite", database=f"file:{quote(str(path))}"))
    query = _rendered(url.set(drivername="sqlite", database="")).partition("?")[2]
    plain = f"sqlite:///{path}" + (f"?{query}" if query else "")
    if url.drivername == "sqlite" and "%2F" not in query and _file(_parsed(plain)) == path:
        return plain
    address = _rendered(url.set(drivername="sqlite+pysqlite", database=str(path)))
    if _file(_parsed(address)) != path:  # SQLAlchemy before 2.1
        raise ValueError(f"no address can have the path {path}; rename its folder")
    return address


def _rendered(url: URL) -> str:
    return url.render_as_string(hide_password=False)
