"""The pictures of a job are drawn, whatever the number of methods, groups and teachers."""

import math
import threading
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from agrekd_ray.results import Epoch, Member, Metrics, Outcome
from agrekd_ray.tracking import plots

DISTILLED = ("random", "aver", "ae_kd", "ca_mkd", "govern", "agre_kd")


def metrics(worst: float) -> Metrics:
    return Metrics(0.2 + worst / 2, worst, 0.9, 0.4, 0.1, 0.1, {"a": 0.9, "b": worst}, {})


def ensemble(count: int) -> list[Member]:
    kinds = ["dfr" if n % 3 == 0 else "erm" for n in range(count)]
    return [Member(f"{kind}-{n}", kind, "f") for n, kind in enumerate(kinds)]


def student(
    method: str, seed: int, teachers: list[Member], groups: int = 2, epochs: int = 4
) -> Outcome:
    rng = np.random.default_rng([seed, len(method)])
    history = []
    for epoch in range(epochs):
        weights = {
            f"group {g}": dict(
                zip(
                    [t.name for t in teachers],
                    rng.dirichlet(np.ones(len(teachers))).tolist(),
                    strict=True,
                )
            )
            for g in range(groups)
        }
        history.append(Epoch(epoch, 3.0 / (epoch + 1), 0.1, 1.0, metrics(0.1 * epoch), weights))
    return Outcome(method, seed, "5", {"test": metrics(0.3 + 0.02 * seed)}, history)


def drawn(path: Path) -> np.ndarray:
    """The picture as shares of ink [height, width]; fails where it is blank."""
    picture = imread(path)
    ink = 1 - picture[..., :3].mean(axis=2)
    assert ink.shape[0] > 200
    assert ink.shape[1] > 400
    assert (ink > 0.05).mean() > 0.01
    return ink


def test_worst_group_by_method(tmp_path):
    teachers = ensemble(5)
    job = [student(m, s, teachers) for m in ("one_hot", *DISTILLED) for s in (0, 1, 2)]
    assert plots.worst_group_by_method(job, tmp_path / "new" / "wga.png")
    few = tmp_path / "few.png"
    assert plots.worst_group_by_method(job[:1], few)
    assert drawn(tmp_path / "new" / "wga.png").shape[0] > drawn(few).shape[0]


def test_training_curves(tmp_path):
    teachers = ensemble(5)
    job = [student(m, s, teachers) for m in DISTILLED for s in (0, 1)]
    diverged = replace(job[0].history[-1], loss=math.nan)
    job[0] = replace(job[0], history=[*job[0].history[:-1], diverged])
    assert plots.training_curves(job, tmp_path / "curves.png")
    drawn(tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("teachers", "groups", "epochs"), [(5, 2, 4), (20, 4, 3), (2, 1, 1), (3, 20, 2)]
)
def test_weights_by_group(tmp_path, teachers, groups, epochs):
    members = ensemble(teachers)
    job = [student(m, s, members, groups, epochs) for m in ("aver", "agre_kd") for s in (0, 1)]
    assert plots.weights_by_group(job, members, tmp_path / "weights.png")
    drawn(tmp_path / "weights.png")


def test_weights_of_teachers_that_no_member_names(tmp_path):
    job = [student("agre_kd", 0, ensemble(3))]
    assert plots.weights_by_group(job, [], tmp_path / "weights.png")
    drawn(tmp_path / "weights.png")


def test_colours_tell_families_apart_and_ours_stays_the_same():
    styles = plots._teacher_styles({m.name: m.kind for m in ensemble(8)})
    blue = {s["color"] for name, s in styles.items() if name.startswith("dfr")}
    orange = {s["color"] for name, s in styles.items() if name.startswith("erm")}
    assert not blue & orange
    assert len({(s["color"], s["linestyle"]) for s in styles.values()}) == 8
    alone, among = plots.method_styles(["agre_kd"]), plots.method_styles(["one_hot", *DISTILLED])
    assert alone["agre_kd"] == among["agre_kd"]
    assert plots.method_styles(["aver"])["aver"] == among["aver"]
    assert len({(s["color"], s["linestyle"]) for s in among.values()}) == 7


def test_influence_is_drawn_below_zero(tmp_path, monkeypatch):
    below = {"dfr-0": 1.25, "erm-1": -0.25}
    job = student("agre_kd", 0, [])
    epochs = [replace(e, influence=below, influence_by_group={"a": below}) for e in job.history]
    drawn_axes = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn_axes.extend(figure.axes))
    assert plots.influence_by_group([replace(job, history=epochs)], [], tmp_path / "i.png")
    assert len(drawn_axes) == 2
    assert all(axes.get_ylim()[0] < -0.25 for axes in drawn_axes)


def test_nothing_to_draw_leaves_no_file(tmp_path):
    vote = Outcome("teacher_vote", 0, "5", {"val": metrics(0.3)})
    assert not plots.worst_group_by_method([vote], tmp_path / "a.png")
    assert not plots.training_curves([vote], tmp_path / "b.png")
    assert not plots.weights_by_group([vote], ensemble(2), tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_drawing_works_in_another_thread_and_leaves_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    job = [student("agre_kd", 0, ensemble(3))]
    thread = threading.Thread(target=plots.training_curves, args=(job, tmp_path / "t.png"))
    thread.start()
    thread.join()
    drawn(tmp_path / "t.png")
    assert dict(matplotlib.rcParams) == before
