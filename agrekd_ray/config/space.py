"""A search space: domains by dotted path, some of them only under a condition. No Ray here.

A setting is one point of the space: values by path. Whatever a searcher proposes goes through the
same functions: conditions decide which paths a setting has, `applied` puts it into a job.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from agrekd_ray.config.sweep import changed
from agrekd_ray.results.search import STRATEGY
from agrekd_ray.settings import Settings

Number = int | float
Bounds = Annotated[tuple[Number, ...], Field(min_length=2, max_length=2)]
Values = Annotated[tuple[Any, ...], Field(min_length=1)]
Setting = dict[str, Any]

_ABSENT = object()
MOST_LISTED, LARGEST = 100_000, 1e15
KINDS = ("uniform", "loguniform", "integer", "choice", "grid")


class Domain(Settings):
    """The values of one path; exactly one kind is given.

    Attributes:
        uniform: [low, high], real numbers, evenly.
        loguniform: [low, high], real numbers above 0, evenly in their logarithm.
        integer: [low, high], whole numbers, both ends included.
        choice: one of a list.
        grid: each of a list: every other value of a setting is tried with all of them.
        when: values that other paths must have, one or a list of them, by path; the path is left
            out of a setting where they have others.
    """

    uniform: Bounds | None = None
    loguniform: Bounds | None = None
    integer: Bounds | None = None
    choice: Values | None = None
    grid: Values | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"not {' and '.join(given)}" if given else "none is given"
            raise ValueError(f"exactly one of {', '.join(KINDS)}; {found}")
        if given[0] in ("choice", "grid"):
            texts = [json.dumps(value, sort_keys=True) for value in self.listed or ()]
            if len(set(texts)) < len(texts):
                raise ValueError(f"{given[0]} names the same value twice")
            return self
        low, high = self.bounds
        if max(abs(low), abs(high)) > LARGEST:
            raise ValueError(f"numbers of at most {LARGEST:g} in size")
        if not low < high:
            raise ValueError(f"an empty range: {low} is not below {high}")
        if given[0] == "loguniform" and low <= 0:
            raise ValueError(f"a logarithmic range must be above 0, not from {low}")
        if given[0] == "integer" and not (float(low).is_integer() and float(high).is_integer()):
            raise ValueError("integer takes two whole numbers")
        if given[0] == "integer" and high - low >= MOST_LISTED:
            raise ValueError(f"integer takes a range of at most {MOST_LISTED:,} numbers")
        return self

    @property
    def kind(self) -> str:
        """Of `KINDS`."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def bounds(self) -> tuple[Number, Number]:
        """Ends of a range."""
        low, high = getattr(self, self.kind)
        return low, high

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All values, where there are only so many; None for real ranges."""
        if self.kind == "integer":
            return tuple(range(int(self.bounds[0]), int(self.bounds[1]) + 1))
        return getattr(self, self.kind) if self.kind in ("choice", "grid") else None

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that show whether a job takes the domain: all that are listed, or of a range."""
        if self.kind in ("choice", "grid"):
            return self.listed or ()
        low, high = self.bounds
        return (low, high) if self.kind == "integer" else (low, high, low + 0.382 * (high - low))

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the domain's."""
        if self.listed is not None:
            return value in self.listed
        low, high = self.bounds
        return isinstance(value, int | float) and low <= value <= high

    def drawn(self, rng: np.random.Generator) -> Any:
        """A random value."""
        if self.listed is not None:
            return self.listed[int(rng.integers(len(self.listed)))]
        low, high = self.bounds
        if self.kind == "loguniform":
            return float(math.exp(rng.uniform(math.log(low), math.log(high))))
        return float(rng.uniform(low, high))


Space = Mapping[str, Domain]
"""Domains by path; a condition names paths that stand before it."""


def conditions(path: str, domain: Domain, strategies: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Allowed values by the paths that a path depends on.

    The options of a strategy depend on it without being told to.

    Args:
        path: whose.
        domain: of the path.
        strategies: all strategies, by name.
    """
    found = {
        other: list(values) if isinstance(values, list | tuple) else [values]
        for other, values in domain.when.items()
    }
    parts = path.split(".")
    if parts[0] == "distillation" and len(parts) > 2 and parts[1] in strategies:
        found.setdefault(STRATEGY, [parts[1]])
    return found


class Sampler:
    """Settings of a space.

    Args:
        space: the domains.
        fixed: values of paths that a condition may name without the space having them.
        strategies: all strategies, by name.
    """

    def __init__(
        self, space: Space, fixed: Mapping[str, Any], strategies: Mapping[str, Any]
    ) -> None:
        self._space, self._fixed = space, fixed
        self._conditions = {
            path: conditions(path, domain, strategies) for path, domain in space.items()
        }

    def setting(self, value: Callable[[str, Domain], Any]) -> Setting:
        """A setting whose values come from a function; it is asked only for paths that apply."""
        setting: Setting = {}
        for path, domain in self._space.items():
            if self._applies(path, setting):
                setting[path] = value(path, domain)
        return setting

    def pick(self, values: Mapping[str, Any]) -> Setting:
        """The setting that has those of some values whose paths apply."""
        return self.setting(lambda path, _: values[path])

    def grid(self) -> Iterator[Setting]:
        """Every setting of a space whose domains are all listed."""
        yield from self._crossed(list(self._space), {})

    def random(self, seed: int) -> Iterator[Setting]:
        """Settings without end: random ones, each with every combination of the `grid` domains."""
        rng = np.random.default_rng(seed)
        crossed = {path: d.grid for path, d in self._space.items() if d.grid is not None}
        while True:
            drawn = {path: domain.drawn(rng) for path, domain in self._space.items()}
            met: list[str] = []
            for values in itertools.product(*crossed.values()):
                setting = self.pick(drawn | dict(zip(crossed, values, strict=True)))
                if (text := json.dumps(setting, sort_keys=True)) not in met:
                    met.append(text)  # where a condition leaves the crossed path out
                    yield setting

    def _applies(self, path: str, setting: Setting) -> bool:
        values = {**self._fixed, **dict.fromkeys(self._space, _ABSENT), **setting}
        return all(
            values.get(other, _ABSENT) in allowed
            for other, allowed in self._conditions[path].items()
        )

    def _crossed(self, paths: list[str], setting: Setting) -> Iterator[Setting]:
        if not paths:
            yield setting
            return
        path, *rest = paths
        if not self._applies(path, setting):
            yield from self._crossed(rest, setting)
            return
        for value in self._space[path].listed or ():
            yield from self._crossed(rest, {**setting, path: value})


def applied(raw: Mapping[str, Any], setting: Mapping[str, Any]) -> dict[str, Any]:
    """A job's raw values with those of a setting put in; see `config.sweep.changed`."""
    inside = {
        ("methods" if path == STRATEGY else path): ([value] if path == STRATEGY else value)
        for path, value in setting.items()
    }
    return changed(raw, inside)
