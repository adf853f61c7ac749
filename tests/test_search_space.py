"""Search spaces: what they propose, what they put into a job, and what is refused at once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agrekd_ray.config import JobError
from agrekd_ray.config.search import Planned, load_search
from agrekd_ray.config.space import Domain, Sampler, applied
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.search.folder import _resolved
from agrekd_ray.search.trainable import param_space

from .conftest import TINY, merged

SPACE: dict[str, Any] = {
    "strategy": {"choice": ["agre_kd", "ae_kd"]},
    "distillation.temperature": {"loguniform": [1, 16]},
    "distillation.agre_kd.fallback": {"choice": ["uniform", "skip"]},
    "distillation.ae_kd.box": {"uniform": [0.3, 1]},
    "distillation.sample_weighting": {"choice": [None, {}]},
    "distillation.sample_weighting.exponent": {
        "uniform": [0.25, 1],
        "when": {"distillation.sample_weighting": {}},
    },
    "student.training.epochs": {"integer": [2, 4]},
}


def sampler(space: dict[str, Any], **fixed: Any) -> Sampler:
    domains = {path: Domain.model_validate(domain) for path, domain in space.items()}
    return Sampler(domains, {"strategy": "agre_kd", **fixed}, STRATEGIES)


def write_search(folder: Path, **changes: Any) -> Path:
    """A search and its base job; changes by dotted key, with / for the dots inside a path."""
    job = merged(
        TINY,
        {
            "runs": str(folder / "runs"),
            "teachers.store": str(folder / "pool"),
            "outputs.store": str(folder / "outputs"),
            "methods": ["aver", "agre_kd"],
        },
    )
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    search: dict[str, Any] = {
        "name": "tiny_search",
        "job": "job.yaml",
        "space": SPACE,
        "trials": 4,
        "final": {"seeds": [7]},
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(merged(search, changes), sort_keys=False))
    return path


def planned(folder: Path, **changes: Any) -> Planned:
    return load_search(write_search(folder, **changes))


def faults(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(JobError) as caught:
        planned(folder, **changes)
    return [str(fault) for fault in caught.value.faults]


# --- what is proposed


def test_a_setting_has_the_paths_whose_conditions_hold() -> None:
    for setting in itertools.islice(sampler(SPACE).random(0), 200):
        with_option = {
            "agre_kd": "distillation.agre_kd.fallback",
            "ae_kd": "distillation.ae_kd.box",
        }
        for strategy, path in with_option.items():
            assert (path in setting) == (setting["strategy"] == strategy)
        weighted = setting["distillation.sample_weighting"] == {}
        assert ("distillation.sample_weighting.exponent" in setting) == weighted
        assert 1 <= setting["distillation.temperature"] <= 16
        assert setting["student.training.epochs"] in (2, 3, 4)


def test_a_search_begins_with_the_base_jobs_own_setting_its_defaults_too(tmp_path: Path) -> None:
    space = {**SPACE, "student.training.epochs": {"integer": [1, 9]}}
    found = planned(tmp_path, space=space, searcher={"name": "random"})
    own = {
        "strategy": "agre_kd",
        "distillation.temperature": 4,
        "distillation.agre_kd.fallback": "uniform",
        "distillation.sample_weighting": None,
        "student.training.epochs": found.base.student.training.epochs,
    }
    assert found.first == own
    drawn = param_space(found)["setting"]["grid_search"]
    assert drawn[0] == own
    assert own not in drawn[1:]
    assert len(drawn) == 4
    narrow = {**space, "distillation.temperature": {"uniform": [1, 2]}}
    assert planned(tmp_path, space=narrow).first is None


def test_a_condition_may_name_what_the_job_leaves_to_its_default(tmp_path: Path) -> None:
    space = {
        "distillation.temperature": {
            "choice": [2, 4],
            "when": {"student.training.optimizer": "sgd"},
        }
    }
    found = planned(tmp_path, space=space)
    assert "distillation.temperature" in next(found.sampler.random(0))


def test_random_settings_follow_from_the_seed_and_spread() -> None:
    first, again, other = (
        list(itertools.islice(sampler(SPACE).random(seed), 100)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    temperatures = np.log([setting["distillation.temperature"] for setting in first])
    assert abs(np.mean(temperatures) - np.log(4)) < 0.3  # evenly in the logarithm
    assert {setting["strategy"] for setting in first} == {"agre_kd", "ae_kd"}


def test_a_grid_has_every_combination_once() -> None:
    space = {
        "strategy": {"choice": ["agre_kd", "ae_kd", "aver"]},
        "distillation.alpha": {"grid": [0.5, 1.0]},
        "distillation.agre_kd.fallback": {"choice": ["uniform", "skip"]},
        "student.training.epochs": {"integer": [2, 3]},
    }
    found = list(sampler(space).grid())
    assert len(found) == 2 * 2 * (2 + 1 + 1)
    assert len({str(setting) for setting in found}) == len(found)


def test_a_grid_domain_crosses_random_settings() -> None:
    space = {
        "strategy": {"grid": ["agre_kd", "aver"]},
        "distillation.temperature": {"uniform": [1, 8]},
        "distillation.agre_kd.fallback": {"grid": ["uniform", "skip"]},
    }
    found = list(itertools.islice(sampler(space).random(0), 6))
    for three in (found[:3], found[3:]):
        assert len({setting["distillation.temperature"] for setting in three}) == 1
        assert [setting["strategy"] for setting in three] == ["agre_kd", "agre_kd", "aver"]


def test_a_condition_may_name_what_the_job_says() -> None:
    space = {"distillation.ae_kd.box": {"uniform": [0.3, 1]}}
    assert list(next(sampler(space).random(0))) == []
    assert list(next(sampler(space, strategy="ae_kd").random(0))) == ["distillation.ae_kd.box"]


def test_a_setting_is_put_into_a_job_and_leaves_it_alone() -> None:
    raw = {"methods": ["aver"], "distillation": {"sample_weighting": None, "alpha": 1.0}}
    setting = {
        "strategy": "ae_kd",
        "distillation.sample_weighting": {},
        "distillation.sample_weighting.exponent": 0.5,
        "student.training.learning_rate": 0.1,
    }
    assert applied(raw, setting) == {
        "methods": ["ae_kd"],
        "distillation": {"sample_weighting": {"exponent": 0.5}, "alpha": 1.0},
        "student": {"training": {"learning_rate": 0.1}},
    }
    assert raw == {"methods": ["aver"], "distillation": {"sample_weighting": None, "alpha": 1.0}}


# --- a search as a whole


def test_a_trial_is_a_job_with_one_strategy(tmp_path: Path) -> None:
    found = planned(tmp_path, seeds=[3, 4])
    for setting in itertools.islice(found.sampler.random(0), 20):
        job = found.trial(setting)
        assert job.methods == (setting["strategy"],)
        assert job.seeds == (3, 4)
        assert job.distillation.temperature == setting["distillation.temperature"]
    assert found.default.methods == ("agre_kd",)
    assert found.default.seeds == (7,)
    assert found.epochs == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": {"distillation.temprature": {"choice": [1]}}}, "distillation.temperature"),
        ({"space": {"nonsense": {"choice": [1]}}}, "no key of a job"),
        ({"space": {"strategy": {"choice": ["agre_kd", "aver_kd"]}}}, "must be one of"),
        ({"space": {"distillation.alpha": {"uniform": [0.5, 0.5]}}}, "empty range"),
        ({"space": {"distillation.temperature": {"loguniform": [0, 4]}}}, "above 0"),
        ({"space": {"distillation.temperature": {"loguniform": [-1, 4]}}}, "above 0"),
        ({"space": {"distillation.alpha": {"uniform": [0.5, 1.5]}}}, "1.5"),
        ({"space": {"distillation.alpha": {"uniform": [0, 1], "choice": [1]}}}, "exactly one"),
        ({"space": {"distillation.alpha": {}}}, "exactly one"),
        ({"space": {"distillation.alpha": {"choice": []}}}, "at least 1"),
        ({"space": {"distillation.alpha": {"choice": [1, 1]}}}, "same value twice"),
        ({"space": {"distillation.alpha": {"unifrom": [0, 1]}}}, "uniform"),
        ({"space": {"student.training.epochs": {"integer": [1.5, 3]}}}, "whole numbers"),
        ({"space": {"student.training.epochs": {"uniform": [1, 3]}}}, "epochs"),
        ({"space": {"data.aligned": {"choice": [0.9, 0.98]}}}, "changes what trials share"),
        ({"space": {"distillation.ae_kd.box": {"uniform": [0.3, 1]}}}, "an option of ae_kd"),
        (
            {"space": {"distillation.alpha": {"choice": [1], "when": {"distillation.tau": 1}}}},
            "neither in the space",
        ),
        ({"space": {}}, "at least 1"),
        ({"trials": None}, "never ends"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"searcher": {"name": "grid"}}, "cannot list a real range"),
        ({"searcher": {"name": "optunna"}}, "optuna"),
        ({"scheduler": {"name": "pbt"}}, "cannot change in mid-training"),
        ({"select": "worst_groups"}, "worst_group"),
        ({"final": {"seeds": [0]}}, "fresh"),
        ({"seeds": [1, 1]}, "same seed twice"),
        ({"job": "jobb.yaml"}, "job.yaml"),
        ({"changes": {"guidance": "local"}}, "under Ray"),
        ({"changes": {"distillation.temperature": -1}}, "changes: distillation.temperature"),
    ],
)
def test_a_bad_search_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    found = faults(tmp_path, **changes)
    assert says in "\n".join(found)
    assert not (tmp_path / "runs").exists()


def test_all_faults_of_a_space_come_at_once(tmp_path: Path) -> None:
    space = {
        "strategy": {"choice": ["agre_kd"]},
        "distillation.temprature": {"uniform": [1, 2]},
        "distillation.ae_kd.box": {"uniform": [0.3, 1]},
        "teachers.count": {"integer": [2, 3]},
    }
    found = faults(tmp_path, space=space, trials=None)
    assert len(found) == 4
    space = {
        "distillation.temperature": {"loguniform": [0, 4]},
        "distillation.alpha": {"uniform": [1, 0]},
    }
    assert len(faults(tmp_path, space=space, select="wga")) == 3


def test_conditions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    weighting = {"uniform": [0.25, 1], "when": {"distillation.sample_weighting": {}}}
    late = {
        "distillation.sample_weighting.exponent": weighting,
        "distillation.sample_weighting": {"choice": [None, {}]},
    }
    assert "must stand before" in faults(tmp_path, space=late)[0]
    never = {
        "strategy": {"choice": ["agre_kd"]},
        "distillation.alpha": {"choice": [0.5, 1], "when": {"strategy": "aver"}},
    }
    assert "never holds" in faults(tmp_path, space=never)[0]
    real = {
        "distillation.temperature": {"uniform": [1, 4]},
        "distillation.alpha": {"choice": [1], "when": {"distillation.temperature": 2}},
    }
    assert "real range" in faults(tmp_path, space=real)[0]


def test_overrides_change_a_search(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    found = load_search(path, ["trials=9", "searcher.name=optuna", "select=worst_class"])
    assert found.search.trials == 9
    assert found.search.searcher.name == "optuna"
    assert found.search.select == "worst_class"


def test_every_search_that_comes_with_the_package_is_valid() -> None:
    folder = Path(__file__).parents[1] / "tune_configs"
    paths = sorted(folder.glob("*.yaml"))
    assert paths
    for path in paths:
        found = load_search(path)
        assert next(iter(found.sampler.random(0)))
        assert path.read_text().startswith(f"# agrekd tune tune_configs/{path.name}")


def test_keys_of_the_base_job_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    found = load_search(path, ["student.training.epochs=7", "runs=here", "trials=3"])
    assert found.base.student.training.epochs == 7
    assert found.base.runs.name == "here"
    assert found.search.trials == 3
    with pytest.raises(JobError, match="epocs"):
        load_search(path, ["student.training.epocs=7"])
    with pytest.raises(JobError, match="no valid YAML"):
        load_search(path, ["student.training.epochs=[7"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(_resolved(found)))
    again = load_search(resolved, ["student.training.epochs=9"])
    assert again.base.student.training.epochs == 9
    assert again.base.runs.name == "here"


def test_faults_of_every_kind_come_at_once(tmp_path: Path) -> None:
    space = {
        "distillation.temprature": {"loguniform": [1, 16]},
        "distillation.alpha": {"uniform": [1, 0.5]},
        "teachers.count": {"integer": [1, 3]},
        "student.training.epochs": {"choice": [2, 0]},
    }
    changes = {"trials": None, "searcher": {"name": "optunna"}, "select": "worst_grp"}
    found = faults(tmp_path, space=space, seeds=[7, 7], **changes)
    whole = "\n".join(found)
    for says in (
        "space.distillation.alpha: an empty range",
        "Did you mean optuna?",
        "Did you mean worst_group?",
        "space.distillation.temprature: no key of a job",
        "space.teachers.count: changes what trials share",
        "trials: the searcher optuna never ends",
        "space.student.training.epochs = 0: must be greater than or equal to 1",
        "seeds = [7, 7]: names the same seed twice",
        "final.seeds = [7]: must be fresh",
    ):
        assert says in whole
    assert len(found) == 9


def test_a_base_jobs_faults_hide_none_of_its_searchs(tmp_path: Path) -> None:
    path = write_search(
        tmp_path,
        space={"distillation.alpha": {"choice": [0.5, 2]}, "strategi": {"choice": ["aver"]}},
        seeds=["x"],
    )
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    job = {**merged(job, {"student.training.epochs": 0}), "sweep": {"ensemble.size": [1]}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.raises(JobError) as caught:
        load_search(path, ["student.workers=[1", "trials=010"])
    whole = str(caught.value)
    for says in (
        "trials = 010: octal",
        "student.workers = [1: is no valid YAML",
        "seeds.0 = x: must be",
        "job = job.yaml: is a study",
        "job: student.training.epochs = 0: must be greater than or equal to 1",
        "space.strategi: no key of a job. Did you mean space.strategy?",
        "space.distillation.alpha = 2: must be less than or equal to 1",
    ):
        assert says in whole
    assert len(caught.value.faults) == 7


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"trials": 0}, ["trials"]),
        ({"trials": None, "minutes": -1}, ["minutes"]),
        ({"trials": None, "trails": 3}, ["trails"]),
        ({"trials": None, "searcher": {"name": "fastest"}}, ["searcher.name"]),
        ({"final": {"seeds": ["x"]}, "seeds": [100]}, ["final.seeds.0"]),
        ({"space": {**SPACE, "strategy": {"uniform": [2, 1]}}}, ["space.strategy"]),
        (
            {"space": {**SPACE, "distillation.sample_weighting": {}}},
            ["space.distillation.sample_weighting"],
        ),
        ({"space": {}}, ["space"]),
        ({"job": 3}, ["job"]),
        ({"searcher": "optuna"}, ["searcher"]),
    ],
)
def test_a_fault_is_not_told_again_by_what_depends_on_it(
    tmp_path: Path, changes: dict[str, Any], keys: list[str]
) -> None:
    with pytest.raises(JobError) as caught:
        planned(tmp_path, **changes)
    assert [fault.key for fault in caught.value.faults] == keys
