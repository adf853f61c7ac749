"""The pictures of students are drawn, whatever the number of methods, groups and teachers."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from agrekd_ray.report import plots, style
from agrekd_ray.results import (
    Agreement,
    Bin,
    Diagnostics,
    Epoch,
    Metrics,
    SplitAgreement,
    StudentResult,
    TeacherResult,
)
from agrekd_ray.results.frame import INFLUENCE, WEIGHT
from agrekd_ray.results.metrics import ALL

DISTILLED = ("random", "aver", "ae_kd", "ca_mkd", "govern", "agre_kd")


def metrics(worst: float) -> Metrics:
    return Metrics(0.2 + worst / 2, worst, 0.9, 0.4, 0.1, 0.1, {"a": 0.9, "b": worst}, {})


def ensemble(count: int) -> list[TeacherResult]:
    kinds = ["dfr" if n % 3 == 0 else "erm" for n in range(count)]
    return [TeacherResult(f"{kind}-{n}", kind, "f") for n, kind in enumerate(kinds)]


def student(
    method: str, seed: int, teachers: int, groups: int = 2, epochs: int = 3, met: float = 0.2
) -> StudentResult:
    rng = np.random.default_rng([seed, len(method)])
    names = [f"class {g // 2}, background {g}" for g in range(groups)]

    def shares(below: float) -> dict[str, float]:
        drawn = rng.dirichlet(np.ones(teachers)) * (1 + below) - below / teachers
        return {t.name: float(s) for t, s in zip(ensemble(teachers), drawn, strict=True)}

    history = [
        Epoch(
            epoch,
            3.0 / (epoch + 1),
            0.1,
            1.0,
            metrics(0.1 * epoch),
            {name: shares(0) for name in names},
            fallback_by_group={name: met * rng.random() for name in names},
            influence=shares(0.5),
            influence_by_group={name: shares(0.5) for name in names},
        )
        for epoch in range(epochs)
    ]
    bins = [Bin(k / 15, (k + 1) / 15, 1 + 7 * k, (k + 0.5) / 15, k / 20) for k in (0, 3, 9, 14)]
    tests = {"test": metrics(0.3 + 0.02 * seed)}
    return StudentResult(method, seed, "5", tests, history, calibration=bins)


def ink(figure: Figure | None) -> np.ndarray:
    """The plot as shares of ink [height, width]; fails where it is blank."""
    assert figure is not None
    figure.draw_without_rendering()
    figure.canvas.draw()
    picture = 1 - np.asarray(figure.canvas.buffer_rgba())[..., :3].mean(axis=2) / 255
    assert min(picture.shape) > 200
    assert (picture > 0.05).mean() > 0.01
    return picture


def test_methods_have_a_bar_each() -> None:
    job = [student(m, s, 5) for m in ("one_hot", *DISTILLED) for s in (0, 1, 2)]
    every, few = (plots.worst_group_by_method(some) for some in (job, job[:1]))
    assert len(ink(every)) > len(ink(few))


def test_training_curves_of_students_of_whom_one_diverged() -> None:
    job = [student(m, s, 5) for m in DISTILLED for s in (0, 1)]
    diverged = replace(job[0].history[-1], loss=math.nan)
    job[0] = replace(job[0], history=[*job[0].history[:-1], diverged])
    ink(plots.training_curves(job))


@pytest.mark.parametrize(
    ("teachers", "groups", "epochs"), [(5, 2, 4), (50, 16, 3), (1, 1, 1), (3, 20, 2)]
)
def test_what_is_shown_by_group(teachers: int, groups: int, epochs: int) -> None:
    job = [student(m, s, teachers, groups, epochs) for m in ("aver", "agre_kd") for s in (0, 1)]
    for draw in plots.of_training(job, ensemble(teachers)).values():
        ink(draw())
    # One that no member names is an own checkpoint.
    assert plots.shares_by_group(job[:1], [], WEIGHT)


def test_a_method_that_never_met_the_0_0_case_is_left_out() -> None:
    met, never = student("agre_kd", 0, 3), student("aver", 0, 3, met=0.0)
    assert plots.fallback_by_group([never]) is None
    alone, both = plots.fallback_by_group([met]), plots.fallback_by_group([met, never])
    np.testing.assert_array_equal(ink(alone), ink(both))


def test_the_most_telling_groups_are_shown() -> None:
    shares = pd.Series({f"g{n}": n / 100 for n in range(20)})
    shown = plots.most_important([*shares.index, ALL], shares)
    assert shown == [*(f"g{n}" for n in range(13, 20)), ALL]
    assert plots.most_important(list(shares.index)[:8], shares) == list(shares.index)[:8]


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_agreement(groups: int) -> None:
    shares = Agreement(1234, 0.5, 0.2, 0.25, 0.05)
    found = SplitAgreement(shares, {f"group {g}": shares for g in range(groups)})
    less = replace(found, groups={}, overlapping={"identity": shares})
    one = plots.agreement_by_group(Diagnostics({"test": found}))
    two = plots.agreement_by_group(Diagnostics({"val": less, "test": found}))
    assert ink(one).shape[1] < ink(two).shape[1]


@pytest.mark.parametrize("methods", [1, 5, 12])
def test_calibration(methods: int) -> None:
    job = [student(f"rule_{m}", s, 3) for m in range(methods) for s in (0, 1)]
    ink(plots.calibration(job))


def test_seeds_are_pooled_by_their_samples() -> None:
    first = student("aver", 0, 3)
    some = replace(first, calibration=[Bin(0.6, 2 / 3, 30, 0.62, 0.5), Bin(0.0, 1 / 15, 1, 0, 1)])
    more = replace(first, calibration=[Bin(0.6, 2 / 3, 10, 0.66, 0.9)])
    pool = plots.pooled([some, more]).loc["aver"]
    assert list(pool.index) == [0, 9]
    assert pool["count"].tolist() == [1, 40]
    assert pool["accuracy"].tolist() == pytest.approx([100, 60])
    assert pool["share"].tolist() == pytest.approx([100 / 41, 4000 / 41])


def test_colours_tell_families_apart_and_ours_stays_the_same() -> None:
    styles = plots.teacher_styles({m.name: m.kind for m in ensemble(8)})
    assert len({s["label"] for s in styles.values()}) == 8
    blue = {s["color"] for name, s in styles.items() if name.startswith("dfr")}
    orange = {s["color"] for name, s in styles.items() if name.startswith("erm")}
    assert not blue & orange
    assert len({(s["color"], s["linestyle"]) for s in styles.values()}) == 8
    alone, among = style.method_styles(["agre_kd"]), style.method_styles(["one_hot", *DISTILLED])
    assert alone["agre_kd"] == among["agre_kd"]
    assert style.method_styles(["aver"])["aver"] == among["aver"]
    assert len({(s["color"], s["linestyle"]) for s in among.values()}) == 7


def test_influence_is_drawn_below_zero() -> None:
    below = {"dfr-0": 1.25, "erm-1": -0.25}
    job = student("agre_kd", 0, 1)
    epochs = [replace(e, influence=below, influence_by_group={"a": below}) for e in job.history]
    figure = plots.shares_by_group([replace(job, history=epochs)], [], INFLUENCE)
    assert figure is not None
    assert len(figure.axes) == 2
    assert all(axes.get_ylim()[0] < -0.25 for axes in figure.axes)


def test_nothing_to_draw_leaves_no_file(tmp_path: Path) -> None:
    old = StudentResult(
        "agre_kd", 0, "5", {"val": metrics(0.3)}, [Epoch(0, 1.0, 0.1, 1.0, metrics(0.3))]
    )
    drawings = {
        "a": lambda: plots.worst_group_by_method([old]),
        "b": lambda: plots.training_curves([replace(old, history=[])]),
        "c": lambda: plots.agreement_by_group(Diagnostics()),
        # An earlier version knew of no influence, cases and calibration.
        **plots.of_training([old], ensemble(2)),
    }
    assert style.draw_plots(tmp_path, drawings) == []
    assert not list(tmp_path.iterdir())


def test_a_plot_that_is_there_is_drawn_anew_or_left(tmp_path: Path) -> None:
    drawings = {"methods": lambda: plots.worst_group_by_method([student("aver", 0, 3)])}
    path = tmp_path / "plots" / "methods.png"
    assert style.draw_plots(tmp_path / "plots", drawings) == [path]
    assert imread(path).size
    assert style.draw_plots(tmp_path / "plots", drawings, anew=False) == []


def test_drawing_works_in_another_thread_and_leaves_no_global_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    job = [student("agre_kd", 0, 3)]
    drawings = {"curves": lambda: plots.training_curves(job)}
    thread = threading.Thread(target=style.draw_plots, args=(tmp_path, drawings))
    thread.start()
    thread.join()
    assert imread(tmp_path / "curves.png").size
    assert dict(matplotlib.rcParams) == before


def test_no_two_methods_share_a_colour_and_ours_keep_theirs() -> None:
    known = ["agre_kd", *style._PLACES]
    several = [*known, *(f"plugin_{n}" for n in range(60))]
    colours = {name: look["color"] for name, look in style.method_styles(several).items()}
    assert len(set(colours.values())) == len(several)
    few = style.method_styles([*known, "plugin_0"])
    assert {name: look["color"] for name, look in few.items()} == {n: colours[n] for n in few}


def test_pictures_say_data_samples_seeds_and_bands() -> None:
    counted = replace(metrics(0.3), counts={"a": 1200, "b": 30})
    job = [
        replace(o, splits={"test": counted}, history=[replace(e, val=counted) for e in o.history])
        for o in (student("aver", seed, 9) for seed in range(2))
    ]
    drawn = {
        "bars": plots.worst_group_by_method(job, "digits"),
        "curves": plots.training_curves(job, "digits"),
        "weights": plots.shares_by_group(job, ensemble(9), WEIGHT, "digits"),
        "calibration": plots.calibration(job, "digits"),
    }
    said = {
        name: " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())
        for name, figure in drawn.items()
        if figure is not None
    }
    over = "2 seeds, one draw of data and teachers"
    assert f"digits, test split: n = 1,230 (a 1,200, b 30); {over}" in said["bars"]
    assert "± sd over seeds" in said["bars"]
    assert f"digits, validation split: n = 1,230 (a 1,200, b 30); {over}" in said["curves"]
    assert "bands: lowest to highest seed" in said["curves"]
    assert f"digits, training split; means over {over}" in said["weights"]
    assert "bands: lowest to highest teacher" in said["weights"]
    assert f"samples pooled over {over}" in said["calibration"]
    many = style.about("", "test", {str(n): n for n in range(1, 21)})
    assert many == "test split: n = 210 (20 groups of 1 to 20)"


def test_plots_are_written_in_every_format_that_is_asked_for(tmp_path: Path) -> None:
    drawings = {"methods": lambda: plots.worst_group_by_method([student("aver", 0, 3)])}
    style.draw_plots(tmp_path, drawings)
    written = style.draw_plots(tmp_path, drawings, anew=False, formats=["png", "pdf", "svg"])
    assert [path.suffix for path in written] == [".pdf", ".svg"]
    assert (tmp_path / "methods.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "methods.svg").read_text()
