"""`agrekd doctor`: joins the cluster, asks every node, and says what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from rich.console import Console

from agrekd_ray.addresses import sqlite_file
from agrekd_ray.cluster_address import cluster_address
from agrekd_ray.config import Job, load_job
from agrekd_ray.config.points import points_of
from agrekd_ray.data import open_dataset
from agrekd_ray.doctor.findings import ERROR, Finding, diagnose
from agrekd_ray.doctor.needs import Needs, needs_of
from agrekd_ray.doctor.report import show
from agrekd_ray.errors import RunError, TrackingError
from agrekd_ray.run.environment import prepare
from agrekd_ray.run.settled import settled

TRACKING_SECONDS = 30.0


def doctor(
    path: Path | None, overrides: Sequence[str], address: str | None, console: Console
) -> bool:
    """Look whether a job will run on a cluster, and say what is in its way.

    Args:
        path: of the job; None looks at the cluster alone.
        overrides: `key.path=value` changes to it.
        address: of the cluster; None takes the job's, and without one this machine alone.
        console: to print on.

    Returns:
        Whether no error was found.

    Raises:
        JobError: the job itself is faulty.
        RunError: no cluster answers at the address.
    """
    job = load_job(path, overrides) if path is not None else None
    points = [point for _, point in points_of(settled(job))] if job is not None else []
    needs = needs_of(points) if points else Needs()
    findings = examine(job, points, needs, address, console)
    return not any(finding.level == ERROR for finding in findings)


def examine(
    job: Job | None, points: Sequence[Job], needs: Needs, address: str | None, console: Console
) -> list[Finding]:
    """Ask every node and show what is found.

    Args:
        job: the job; None for the cluster alone.
        points: of the job, where it is a study; else the job.
        needs: of the job.
        address: of the cluster; None takes the job's.
        console: to print on.

    Raises:
        RunError: no cluster answers at the address.
    """
    where = job.ray.address if job is not None else None
    if address is not None:
        try:
            where = cluster_address(address)
        except ValueError as error:
            raise RunError(f"--address = {address}: {error}.") from None
    prepare(starts_cluster=where is None)
    from agrekd_ray.doctor.ask import ask_all  # imports Ray, which reads the environment
    from agrekd_ray.run.session import RaySession

    data = {point.data.model_dump_json(): open_dataset(point.data).fingerprint for point in points}
    session = RaySession(where, 1, lambda text: console.print(text, style="yellow", soft_wrap=True))
    try:
        cluster = ask_all(session, _folders(job), list(data), list(data.values()))
    finally:
        session.close()
    cluster = replace(cluster, tracking=_tracking(job))
    findings = diagnose(cluster, needs, requirements())
    show(cluster, needs, findings, console)
    return findings


def requirements() -> list[str]:
    """Of this package, Python among them; none where it runs without being installed."""
    try:
        python = metadata("agrekd_ray")["Requires-Python"]
        return [f"python{python}", *(requires("agrekd_ray") or ())]
    except PackageNotFoundError:
        return []


def _folders(job: Job | None) -> dict[str, Path]:
    if job is None:
        return {}
    return {
        "runs": job.runs,
        "teachers.store": job.teachers.store,
        "outputs.store": job.outputs.store,
    }


def _tracking(job: Job | None) -> str:
    """What is wrong with the job's MLflow store; a file that is made by the first run is fine."""
    if job is None or job.tracking.uri is None:
        return ""
    from agrekd_ray.passwords import without_password
    from agrekd_ray.tracking.mlflow_store import open_existing, unless_set

    uri, told = job.tracking.uri, []
    if (path := sqlite_file(uri)) is not None and not path.exists():
        return ""

    def look() -> None:
        try:
            with unless_set({"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}):
                open_existing(uri)
            told.append("")
        except TrackingError as error:
            told.append(str(error))

    asking = threading.Thread(target=look, daemon=True)  # a database's driver may wait for ever
    asking.start()
    asking.join(TRACKING_SECONDS)
    if not told:
        return f"{without_password(uri)} does not answer within {TRACKING_SECONDS:.0f} s"
    return told[0]
