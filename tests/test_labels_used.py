"""Which labels a run used where, in a line."""

from __future__ import annotations

from typing import Any

import pytest

from agrekd_ray.report.labels import labels_used, of_points

_USED = {
    "nothing debiased": ({}, "classes for training; groups for evaluation"),
    "dfr": (
        {"ensemble": {"debiased": 2}},
        "classes for training; groups for debiasing (DFR), selection and evaluation",
    ),
    "dfr by batches": (
        {"ensemble": {"debiased": 2}, "teachers": {"dfr": {"batches": {}}}},
        "classes for training; groups for debiasing (DFR) and evaluation",
    ),
    "afr": (
        {"ensemble": {"debiased": {"afr": 2}}},
        "classes for training, debiasing (AFR) and selection; groups for evaluation",
    ),
    "both": (
        {"ensemble": {"debiased": {"afr": 1, "dfr": 1}}},
        "classes for training, debiasing (AFR) and selection; "
        "groups for debiasing (DFR), selection and evaluation",
    ),
    "guarded": (
        {"methods": ["aver", "agre_kd_guarded"], "ensemble": {"debiased": {"afr": 2}}},
        "classes for training, debiasing (AFR), weighing the teachers and selection; "
        "groups for evaluation",
    ),
    "students alone": (
        {"methods": ["one_hot"], "ensemble": {"debiased": 2}},
        "classes for training; groups for evaluation",
    ),
    "their own layers": (
        {"methods": ["one_hot_dfr"], "ensemble": {"debiased": {"afr": 2}}},
        "classes for training; groups for debiasing (DFR), selection and evaluation",
    ),
    "own teachers": (
        {"ensemble": {"size": 0}, "distillation": {"alpha": 1.0}},
        "groups for evaluation",
    ),
    "and labels beside them": (
        {"ensemble": {"size": 0}, "distillation": {"alpha": 0.5}},
        "classes for training; groups for evaluation",
    ),
}


@pytest.mark.parametrize("name", _USED)
def test_labels_used(name: str) -> None:
    settings, said = _USED[name]
    given = {"methods": ["aver", "agre_kd"], **settings}
    assert labels_used(given, groups_known=True) == f"labels used: {said}"


def test_labels_used_by_searches_and_without_groups() -> None:
    given: dict[str, Any] = {"methods": ["agre_kd"], "ensemble": {"debiased": {"self": 1}}}
    start, end = "labels used: classes for training, debiasing (SELF)", "groups for"
    by = {
        "worst_group": f"{start} and selection; {end} selection and evaluation",
        "worst_inferred": f"{start} and selection; {end} evaluation",
        "contradicted": f"{start} and selection; {end} evaluation",
    }
    for rule, said in by.items():
        assert labels_used(given, groups_known=True, rule=rule) == said
    plain = labels_used({"methods": ["aver"]}, groups_known=False, rule="contradicted")
    assert plain == "labels used: classes for training and evaluation"


def test_labels_used_at_the_points_of_a_study() -> None:
    settings = {"methods": ["aver"], "ensemble": {"size": 5}}
    names = {"data.aligned": "aligned", "ensemble.debiased": "debiased"}
    points = [
        {"data.aligned": aligned, "ensemble.debiased": debiased}
        for aligned in (0.9, 0.98)
        for debiased in ({"dfr": 2}, {"afr": 2})
    ]
    group = (
        "labels used: classes for training; groups for debiasing (DFR), selection and evaluation"
    )
    free = "labels used: classes for training, debiasing (AFR) and selection; groups for evaluation"
    found = of_points(settings, points, names, groups_known=True)
    assert found == [f"debiased=dfr=2: {group}", f"debiased=afr=2: {free}"]
    assert of_points(settings, points[:1], names, groups_known=True) == [group]
