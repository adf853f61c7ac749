"""Reaching an MLflow store: checked early, its complaints one message with advice."""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from agrekd_ray.addresses import is_database, sqlite_address, sqlite_file, store_address
from agrekd_ray.errors import TrackingError
from agrekd_ray.files import locked
from agrekd_ray.passwords import revealed, without_password
from agrekd_ray.tracking.mlflow_values import shortened

# Creating a database announces itself, and alembic tells each of its sixty migrations.
for _chatty in ("mlflow.store.db.utils", "alembic"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)

# Two short attempts instead of eight long ones, which take four minutes: patience is `Outbox`'s.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
# What MLflow calls a server that is not there, a gateway's complaints, and a locked database.
_TEMPORARY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}


def checked_address(uri: str) -> str:
    """The address as `store_address` gives it.

    Raises:
        TrackingError: MLflow can keep no runs there.
    """
    try:
        return store_address(uri)
    except ValueError as error:
        raise TrackingError(without_password(f"{uri!r} is {error}.")) from None


def open_existing(uri: str) -> MlflowClient:
    """A client for reading a store that is there already; nothing is created.

    Args:
        uri: any MLflow tracking URI.

    Raises:
        TrackingError: there is no such store, or it cannot be reached.
    """
    with explained(uri, "open the store", Exception):
        if (path := sqlite_file(uri)) is not None and not path.is_file():
            raise TrackingError(
                f"There are no runs: {path} does not exist. Give the folder of the runs, where "
                "mlflow.db is, or the tracking URI that they were recorded under."
            )
        client = MlflowClient(tracking_uri=revealed(uri))
        client.search_experiments(max_results=1)
    return client


@contextmanager
def explained(uri: str, doing: str, *also: type[Exception]) -> Iterator[None]:
    """Turns what MLflow raises within the block into one message with advice.

    Args:
        uri: of the store.
        doing: what the block does, after "Cannot".
        also: exceptions to explain beside MLflow's and the system's.

    Raises:
        TrackingError: in their place; one that is raised within the block stays as it is.
    """
    try:
        with unless_set(_IMPATIENT):
            yield
    except TrackingError:
        raise
    except (MlflowException, OSError, *also) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise TrackingError(
            without_password(
                f"Cannot {doing} in MLflow at {uri}: {shortened(words, 400)}\n{_advice(uri, error)}"
            ),
            temporary=isinstance(error, OSError)
            or getattr(error, "error_code", None) in _TEMPORARY,
        ) from error


def _advice(uri: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return "Install the driver that this kind of database needs, or give another URI."
    if not is_database(uri):
        return (
            f"Check that the server answers (curl {uri.rstrip('/')}/health) and that "
            "MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and _PASSWORD are set where "
            "it asks for them; without a tracking URI, runs go to a file beside the results."
        )
    return (
        "Check that the place exists, has room and may be written, and that no other "
        "program holds the database; or give another tracking URI."
    )


def check_store(uri: str) -> None:
    """What MLflow would find out late, or after minutes of retries."""
    if (path := sqlite_file(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_there(path):
            _create(path)
        connection = sqlite3.connect(path)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("PRAGMA schema_version")
            connection.rollback()
        finally:
            connection.close()


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _create(path: Path) -> None:
    """A new database, whole or not at all.

    MLflow makes it in sixty steps, and one that was killed between two of them opens never again.
    """
    mark = path.with_name(f".{path.name}.lock")
    with mark.open("w", encoding="utf-8") as lock:
        alone = locked(lock)
        if _is_there(path):  # another process was faster
            return
        for left in path.parent.glob(f".{path.name}.draft-*") if alone else ():
            left.unlink()
        draft = path.with_name(f".{path.name}.draft-{uuid.uuid4().hex[:8]}")
        MlflowClient(tracking_uri=sqlite_address(draft)).search_experiments(max_results=1)
        if alone:
            os.replace(draft, path)
        else:
            with suppress(FileExistsError):  # the first database stays
                os.link(draft, path)
            draft.unlink()
        mark.unlink(missing_ok=True)  # whoever waits for it finds the database


@contextmanager
def unless_set(wanted: Mapping[str, str]) -> Iterator[None]:
    """Settings of MLflow that hold within the block, where the user has not set them otherwise."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
