"""The connection to a Ray cluster."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agrekd_ray.cluster.address import DASHBOARD_PORT, FOUND, HERE, Place, read_address
from agrekd_ray.cluster.reach import refusal
from agrekd_ray.errors import RunError
from agrekd_ray.plugins import runtime_env

SHORT = Path("/tmp")
"""Where Ray keeps its sockets if the temporary folder has too long a name for them."""
SLOW = "timed out during startup"
"""What Ray says where its own patience with a machine has ended."""
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of its path."""


class RaySession:
    """A connection to a running cluster, or a cluster of this machine that ends with the driver.

    Attributes:
        dashboard: its address, `host:port`; empty where there is none, or it is not known.

    Args:
        address: of the cluster; None starts one here.
        cpus: logical CPUs that a cluster started here has at least.
        say: shows a line that the user should read.
        plugins: modules that every process imports; see `plugins.load`.

    Raises:
        RunError: no cluster answers at the address, or none can be started here; or this process
            is connected to one already, whose processes do not know the plugins.
        KeyboardInterrupt: it was stopped meanwhile.
    """

    def __init__(
        self,
        address: str | None,
        cpus: int,
        say: Callable[[str], None],
        plugins: Sequence[str] = (),
    ) -> None:
        self._owner = not ray.is_initialized()
        environment = runtime_env(plugins)
        if environment and not self._owner:
            raise RunError(
                "plugins are imported by the processes of a session that the job begins, and this "
                "process is connected to Ray already: ray.shutdown() first"
            )
        self.dashboard = ""
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if self._owner and address is None:
                _start(cpus, say, environment)
            elif self._owner:
                self.dashboard = _join(str(address), environment)
        except SystemExit:  # by Ray's own handler of SIGTERM
            raise KeyboardInterrupt from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own skips our clean-up

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        if not self._owner:
            return
        # A handle of an actor that is collected in another thread meanwhile would end the process.
        collects = gc.isenabled()
        gc.disable()
        try:
            ray.shutdown()
        finally:
            if collects:
                gc.enable()


def here() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the node of this process, so that it is lost with no other one."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def preferred(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Places an actor on a node while that has room for it, and elsewhere when it has none."""
    return NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)


def _start(cpus: int, say: Callable[[str], None], environment: dict[str, Any] | None) -> None:
    """Start a cluster of this machine.

    Raises:
        RunError: it does not start.
    """
    folder = _folder_of_sockets(say)
    for tries_left in (1, 0):
        try:
            ray.init(
                address=HERE,
                num_cpus=max(os.cpu_count() or 1, cpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
                runtime_env=environment,
                _temp_dir=str(folder),
            )
        except Exception as error:  # Ray has no kind of its own for what hinders its start
            why = _in_one_line(error)
            if tries_left and SLOW in why:
                say("Ray was slow to start on this machine, and has been given up; once more.")
                continue
            raise RunError(
                f"Ray cannot start on this machine ({why}). Its files and sockets are in {folder}, "
                f"where {shutil.disk_usage(folder).free / 1e6:.0f} MB are free; another folder is "
                "taken with RAY_TMPDIR=/ANOTHER/FOLDER agrekd ..."
            ) from error
        return


def _folder_of_sockets(say: Callable[[str], None]) -> Path:
    """Where Ray keeps its files, a folder that it can make and whose sockets have names.

    Raises:
        RunError: there is none.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    given = Path(os.environ.get(name) or SHORT).absolute()
    folder = given / "ray"
    socket = folder / f"session_2026-01-01_00-00-00_000000_{os.getpid()}" / "sockets/plasma_store"
    if len(os.fsencode(socket)) > LONGEST_SOCKET:
        if name == "RAY_TMPDIR":
            raise RunError(
                f"{name} = {given}: a name too long for Ray, whose sockets below it may have "
                f"{LONGEST_SOCKET} bytes in all: {name}={SHORT}"
            )
        say(
            f"{name} = {given}: a name too long for Ray's sockets, so Ray keeps its files in "
            f"{SHORT / 'ray'}; RAY_TMPDIR names another folder."
        )
        name, given, folder = "RAY_TMPDIR", SHORT, SHORT / "ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{name} = {given}: Ray cannot keep its files there ({error.strerror}); "
            f"RAY_TMPDIR names another folder: RAY_TMPDIR={SHORT} agrekd ..."
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(
            f"{name} = {given}: Ray cannot write to {folder}; RAY_TMPDIR names another folder."
        )
    return folder


def _join(address: str, environment: dict[str, Any] | None) -> str:
    """Join a running cluster.

    Returns:
        The address of its dashboard, or an empty text.

    Raises:
        RunError: none answers at the address, or it does not let this process in.
    """
    key, text = "ray.address", " ".join(address.split())
    try:
        place = read_address(text)
        if place == FOUND and (named := os.environ.get("RAY_ADDRESS", "").split()):
            key, text = (
                "RAY_ADDRESS",
                " ".join(named),
            )  # as Ray has it, too
            place = read_address(text)
            if place == HERE:
                raise ValueError(f"is no cluster that ray.address = {FOUND} could join; unset it")
    except ValueError as error:
        raise RunError(f"{key} = {text}: {error}.") from None
    if isinstance(place, Place):
        why = refusal(place.host, place.port)
        advice = "`ray start --head` prints a cluster's address; a firewall may be between"
        if place.port == DASHBOARD_PORT:
            advice = f"{DASHBOARD_PORT} is as a rule the dashboard's port. {advice}"
    else:
        why = refusal("", 0)
        advice = "Start one with `ray start --head`, or leave ray.address out to start one here"
    if why:
        raise RunError(f"{key} = {text}: no Ray cluster answers there ({why}). {advice}.")
    try:
        joined = ray.init(
            address=str(place),
            log_to_driver=False,
            logging_level="WARNING",
            runtime_env=environment,
        )
    except Exception as error:
        raise RunError(
            f"{key} = {text}: the Ray cluster there cannot be joined ({_in_one_line(error)}). "
            f"A driver runs on one of the cluster's machines, with its versions of Python and Ray; "
            "`agrekd doctor` compares them."
        ) from error
    return joined.dashboard_url or ""


def _in_one_line(error: BaseException) -> str:
    """What an error says, in one line of a length that can be read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:397]}..."
