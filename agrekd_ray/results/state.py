"""Where a run stands, as its folder says."""

from __future__ import annotations

from dataclasses import dataclass, field

from agrekd_ray.results.metrics import short_paths

STATE = "state.json"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        status: `running`, `finished`, `failed` or `interrupted`.
        tracking_run: id of its MLflow run; None before there is one.
        reason: why it failed.
        overrides: changes to the file with which it was begun, `key=value`.
        tags: the user's own, by name.
        note: the user's own.
        before: name of the run that `latest` led to when this one was begun, empty for none; None
            where that is not known, as of a point of a study.
    """

    status: str = "running"
    tracking_run: str | None = None
    reason: str | None = None
    before: str | None = None
    overrides: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def changes(self) -> str:
        """The changes in words, by the last parts of their keys."""
        values = {key: value for key, _, value in (pair.partition("=") for pair in self.overrides)}
        names = short_paths(values)
        return " ".join(f"{names[key]}={value}" for key, value in values.items())
