"""Where a run stands, as its folder says."""

from __future__ import annotations

from dataclasses import dataclass

STATE = "state.json"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        status: `running`, `finished`, `failed` or `interrupted`.
        tracking_run: id of its MLflow run; None before there is one.
        reason: why it failed.
        before: name of the run that `latest` led to when this one was begun, empty for none; None
            where that is not known, as of a point of a study.
    """

    status: str = "running"
    tracking_run: str | None = None
    reason: str | None = None
    before: str | None = None
