"""The room of a worker group on the cluster, and how it is given back whatever has died.

A placement group belongs to Train's controller, and ends with it only when the driver ends too.
"""

from __future__ import annotations

from typing import Any

from ray._raylet import PlacementGroupID
from ray.train.torch import TorchTrainer
from ray.util import get_current_placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

UNWANTED = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""Two actors that Ray Train starts beside its controller.

The first outlives driver and controller, to give the room back when the controller has died (see
`give_back`). It learns so from Ray's State API, and where there is none (no dashboard) it stays for
ever. The other hands out parts of Ray data sets, of which there are none here, and takes seconds to
start.
"""


class GroupTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer without actors that are of no use here, and without its Ctrl-C."""

    def _create_default_callbacks(self) -> list[Any]:
        kept = super()._create_default_callbacks()
        return [callback for callback in kept if type(callback).__name__ not in UNWANTED]

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
