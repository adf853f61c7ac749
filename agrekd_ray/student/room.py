"""The room of a worker group on the cluster, and how it is given back whatever has died.

A placement group belongs to Train's controller, and ends with it only when the driver ends too. An
autoscaler sees what such a group waits for.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import ray.train.torch
from ray._raylet import PlacementGroupID
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util import get_current_placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from agrekd_ray import collectives
from agrekd_ray.cluster.nodes import device_here, this_node
from agrekd_ray.errors import AgrekdError, RunError

UNWANTED = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""Two of the actors that Ray Train starts beside its controller; for a third see `_FixedSize`.

The first outlives driver and controller, to give the room back when the controller has died (see
`give_back`). It learns so from Ray's State API, and where there is none (no dashboard) it stays for
ever. The other hands out parts of Ray data sets, of which there are none here, and takes seconds to
start.
"""


def device_of_worker() -> str:
    """The device of this worker of a group.

    Raises:
        RunError: PyTorch cannot use the GPU that Ray gave it.
    """
    return device_here(ray.train.torch.get_device)


def _usable() -> bool:
    try:
        device_of_worker()
    except RunError:
        return False
    return True


def _begin() -> None:
    collectives.begin(f"process {os.getpid()} on {this_node()}")


class _Backend(_TorchBackend):  # type: ignore[misc]
    """Ray Train's, but workers whose GPU is of no use begin all the same, to say so themselves."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if all(worker_group.execute(_usable)):
            super().on_start(worker_group, backend_config)
            worker_group.execute(_begin)


@dataclass
class _Config(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


class _FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """Ray Train's, without the actor that asks an autoscaler for what the placement group asks for.

    Each group would wait a second until it is there.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Asks for nothing."""

    def _maybe_send_resource_request(self) -> None:
        pass


class _Restarts(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's, but no restart where a worker has said what is wrong: it would be said again."""

    def make_decision(self, training_failed_error: Any) -> Any:
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(failure, AgrekdError) for failure in failures.values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class GroupTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer without actors that are of no use here, and without its Ctrl-C.

    Args:
        timeout_minutes: that workers wait for one that does not come.
        given: see Ray Train.
        more: see Ray Train.
    """

    def __init__(self, *given: Any, timeout_minutes: float, **more: Any) -> None:
        # Whole seconds, as Train's own settings say.
        config = _Config(timeout_s=math.ceil(60 * timeout_minutes))
        super().__init__(*given, torch_config=config, **more)

    def _create_default_callbacks(self) -> list[Any]:
        kept = super()._create_default_callbacks()
        return [callback for callback in kept if type(callback).__name__ not in UNWANTED]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["scaling_policy"] = _FixedSize(self.scaling_config)
        given["failure_policy"] = _Restarts(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**given)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C stays a `KeyboardInterrupt`.

        Ray's handler would ask the controller to abort, also long after it has ended.
        """


def held() -> str | None:
    """The placement group that this process is in, in hexadecimal."""
    group = get_current_placement_group()
    return None if group is None else str(group.id.hex())


def give_back(group: str) -> None:
    """End a placement group, named as by `held`, and whoever is in it; it may have ended."""
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
