"""The pictures of a job's diagnostics, whatever the number of methods, groups and teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from agrekd_ray.results import (
    Agreement,
    Bin,
    Diagnostics,
    Epoch,
    Member,
    Metrics,
    Outcome,
    SplitAgreement,
)
from agrekd_ray.tracking import diagnostic_plots, plots

METRICS = Metrics(0.5, 0.3, 0.5, 0.4, 0.1, 0.12, {"a": 0.9}, {})


def student(method: str, seed: int, teachers: int, groups: int, met: float = 0.2) -> Outcome:
    rng = np.random.default_rng([seed, len(method)])
    names = [f"class {g // 2}, background {g}" for g in range(groups)]

    def shares() -> dict[str, float]:
        drawn = rng.dirichlet(np.ones(teachers)) * 1.5 - 0.5 / teachers
        return {f"erm-{t}": float(share) for t, share in enumerate(drawn)}

    history = [
        Epoch(
            epoch,
            1.0,
            0.1,
            1.0,
            METRICS,
            fallback_by_group={name: met * rng.random() for name in names},
            influence=shares(),
            influence_by_group={name: shares() for name in names},
        )
        for epoch in range(3)
    ]
    bins = [Bin(k / 15, (k + 1) / 15, 1 + 7 * k, (k + 0.5) / 15, k / 20) for k in (0, 3, 9, 14)]
    return Outcome(method, seed, "5", {"test": METRICS}, history, calibration=bins)


def ink(path: Path) -> np.ndarray:
    """The picture as shares of ink [height, width]; fails where it is blank."""
    picture = 1 - imread(path)[..., :3].mean(axis=2)
    assert (picture > 0.05).mean() > 0.01
    return picture


@pytest.mark.parametrize(("teachers", "groups"), [(3, 2), (50, 16), (1, 1)])
def test_influence_and_the_0_0_case(tmp_path: Path, teachers: int, groups: int) -> None:
    job = [student(m, s, teachers, groups) for m in ("aver", "agre_kd") for s in (0, 1)]
    members = [Member(f"erm-{t}", "erm", "f") for t in range(teachers)]
    assert plots.influence_by_group(job, members, tmp_path / "influence.png")
    assert diagnostic_plots.fallback_by_group(job, tmp_path / "fallback.png")
    one = [outcome for outcome in job if outcome.method == "aver"]
    assert plots.influence_by_group(one, members, tmp_path / "one.png")
    assert ink(tmp_path / "influence.png").shape[0] > ink(tmp_path / "one.png").shape[0]
    ink(tmp_path / "fallback.png")


def test_a_method_that_never_met_the_0_0_case_is_left_out(tmp_path: Path) -> None:
    met, never = student("agre_kd", 0, 3, 2), student("aver", 0, 3, 2, met=0.0)
    assert not diagnostic_plots.fallback_by_group([never], tmp_path / "never.png")
    assert diagnostic_plots.fallback_by_group([met], tmp_path / "met.png")
    assert diagnostic_plots.fallback_by_group([met, never], tmp_path / "both.png")
    np.testing.assert_array_equal(ink(tmp_path / "met.png"), ink(tmp_path / "both.png"))


def test_the_groups_that_met_it_most_are_shown() -> None:
    means = {"agre_kd": {f"g{n}": {0: n / 100} for n in range(20)} | {plots.ALL: {0: 0.0}}}
    every = list(means["agre_kd"])
    assert diagnostic_plots._most_met(every, means) == [
        plots.ALL,
        *(f"g{n}" for n in range(12, 20)),
    ]


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_agreement(tmp_path: Path, groups: int) -> None:
    shares = Agreement(1234, 0.5, 0.2, 0.25, 0.05)
    found = SplitAgreement(shares, {f"group {g}": shares for g in range(groups)})
    less = replace(found, groups={}, overlapping={"identity": shares})
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert diagnostic_plots.agreement_by_group(Diagnostics({"test": found}), one)
    assert diagnostic_plots.agreement_by_group(Diagnostics({"val": less, "test": found}), two)
    assert ink(one).shape[1] < ink(two).shape[1]


@pytest.mark.parametrize("methods", [1, 5, 12])
def test_calibration(tmp_path: Path, methods: int) -> None:
    job = [student(f"rule_{m}", s, 3, 2) for m in range(methods) for s in (0, 1)]
    assert diagnostic_plots.calibration(job, tmp_path / "calibration.png")
    ink(tmp_path / "calibration.png")


def test_seeds_are_pooled_by_their_samples() -> None:
    first = student("aver", 0, 3, 2)
    some = replace(first, calibration=[Bin(0.6, 2 / 3, 30, 0.62, 0.5), Bin(0.0, 1 / 15, 1, 0, 1)])
    more = replace(first, calibration=[Bin(0.6, 2 / 3, 10, 0.66, 0.9)])
    low, high = diagnostic_plots.pooled([some, more])
    assert low == Bin(0.0, 1 / 15, 1, 0, 1)
    assert (high.count, high.accuracy) == (40, pytest.approx(0.6))
    assert high.confidence == pytest.approx(0.63)


def test_runs_of_an_earlier_version_have_nothing_to_draw(tmp_path: Path) -> None:
    old = Outcome("agre_kd", 0, "5", {"test": METRICS}, [Epoch(0, 1.0, 0.1, 1.0, METRICS)])
    assert not plots.influence_by_group([old], [], tmp_path / "a.png")
    assert not diagnostic_plots.fallback_by_group([old], tmp_path / "b.png")
    assert not diagnostic_plots.calibration([old], tmp_path / "c.png")
    assert not diagnostic_plots.agreement_by_group(Diagnostics(), tmp_path / "d.png")
    assert not list(tmp_path.iterdir())
