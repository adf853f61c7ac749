"""The connection to a Ray cluster."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import threading

import ray

from agrekd_ray.errors import RunError

ANSWER_SECONDS = 10.0


class RaySession:
    """A connection to a running cluster, or a cluster of this machine that ends with the driver.

    Attributes:
        node_id: Ray's id of the driver's node.
        dashboard: its address, `host:port`; empty where there is none, or it is not known.

    Args:
        address: of the cluster; None starts one here.
        cpus: logical CPUs that a cluster started here has at least.

    Raises:
        RunError: no cluster answers at the address.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        self._owner = not ray.is_initialized()
        if self._owner and address is not None:
            _check_answers(address)
        self.dashboard = ""
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if self._owner and address is None:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, cpus),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="WARNING",
                )
            elif self._owner:
                joined = ray.init(address=address, log_to_driver=False, logging_level="WARNING")
                self.dashboard = joined.address_info.get("webui_url") or ""
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(
                f"ray.address = {address}: no Ray cluster answers there "
                f"({str(error).strip().splitlines()[0]}). Start one with `ray start --head`, or "
                "leave the address out to start one here."
            ) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, which skips our clean-up
        self.node_id: str = ray.get_runtime_context().get_node_id()

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        if self._owner:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse a `host:port` where nobody listens, which Ray would go on trying for many minutes.

    Raises:
        RunError: nobody does.
    """
    given = re.fullmatch(r"([^:/]+):(\d+)", address)
    if given is None:  # auto, ray://...
        return
    hosts = [given[1]]
    if given[1] == "localhost" or _is_loopback(given[1]):
        hosts.append(ray.util.get_node_ip_address())  # which Ray itself takes in its place
    reasons = []
    for host in hosts:
        try:
            socket.create_connection((host, int(given[2])), ANSWER_SECONDS).close()
            return
        except (OSError, OverflowError) as error:
            reasons.append(f"{host}: {error}")
    raise RunError(
        f"ray.address = {address}: no Ray cluster answers there ({'; '.join(reasons)}). Look for "
        "its address in what `ray start --head` printed, and whether a firewall is between."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
