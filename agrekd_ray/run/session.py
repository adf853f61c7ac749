"""The connection to a Ray cluster."""

from __future__ import annotations

import os
import signal
import threading

import ray

from agrekd_ray.errors import RunError


class RaySession:
    """A connection to a running cluster, or a cluster of this machine that ends with the driver.

    Args:
        address: of the cluster; None starts one here.
        cpus: logical CPUs that a cluster started here has at least.

    Raises:
        RunError: no cluster answers at the address.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        self._owner = not ray.is_initialized()
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
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
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
