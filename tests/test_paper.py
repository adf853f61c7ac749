"""The paper's jobs say what the paper says: its settings, and its figures to stand beside ours.

Figures are written down here apart from the jobs, as the paper has them: worst-group accuracy, and
accuracy where it gives one, in percent.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from agrekd_ray.config import Job, check_job, read_job
from agrekd_ray.config.sweep import settings_of
from agrekd_ray.results.metrics import ACCURACY, WORST_GROUP

from .conftest import merged

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "jobs/paper"
PAGE = (ROOT / "docs/paper.md").read_text()
VISION = ("waterbirds", "celeba")
R18, R34, R50 = (f"torchvision/resnet{depth}" for depth in (18, 34, 50))
VIT, CONVNEXT = "torchvision/vit_b_16", "timm/convnextv2_base.fcmae_ft_in1k"

Figures = dict[str, str]
"""By method: `worst group`, `worst group (accuracy)`, several of them at the values of a sweep."""


# The paper's tables: by job and point, the figures of each method.

TABLE_1: dict[float, dict[str, Figures]] = {
    0.995: {
        "erm": {
            "deep_ensemble": "29.2",
            "one_hot": "19.0",
            "random": "16.7",
            "aver": "26.5",
            "ae_kd": "29.2",
            "agre_kd": "29.2",
        },
        "dfr": {
            "deep_ensemble_dfr": "69.8 (72.8)",
            "one_hot_dfr": "52.6 (53.6)",
            "random": "48.5 (53.2)",
            "aver": "49.0 (54.1)",
            "ae_kd": "54.5 (58.8)",
            "agre_kd": "59.9 (63.9)",
        },
    },
    0.99: {
        "erm": {
            "deep_ensemble": "51.4",
            "one_hot": "21.6",
            "random": "18.5",
            "aver": "46.2",
            "ae_kd": "50.0",
            "agre_kd": "51.5",
        },
        "dfr": {
            "deep_ensemble_dfr": "75.3 (77.7)",
            "one_hot_dfr": "51.7 (51.9)",
            "random": "44.5 (49.7)",
            "aver": "58.7 (62.8)",
            "ae_kd": "66.3 (69.4)",
            "agre_kd": "67.5 (70.7)",
        },
    },
    0.98: {
        "erm": {
            "deep_ensemble": "71.5",
            "one_hot": "27.4",
            "random": "21.7",
            "aver": "69.1",
            "ae_kd": "70.5",
            "agre_kd": "71.4",
        },
        "dfr": {
            "deep_ensemble_dfr": "82.5 (84.2)",
            "one_hot_dfr": "80.0 (81.5)",
            "random": "32.6 (39.3)",
            "aver": "85.0 (86.5)",
            "ae_kd": "85.1 (86.6)",
            "agre_kd": "86.2 (87.5)",
        },
    },
    0.95: {
        "erm": {
            "deep_ensemble": "88.4",
            "one_hot": "41.4",
            "random": "34.6",
            "aver": "88.1",
            "ae_kd": "88.6",
            "agre_kd": "89.1",
        },
        "dfr": {
            "deep_ensemble_dfr": "88.9 (90.0)",
            "one_hot_dfr": "60.9 (61.8)",
            "random": "35.5 (41.8)",
            "aver": "87.3 (88.5)",
            "ae_kd": "86.9 (88.1)",
            "agre_kd": "88.7 (89.0)",
        },
    },
}

BOTH_KINDS: dict[str, dict[str, Figures]] = {
    "table2_waterbirds": {
        "erm": {
            "deep_ensemble": "59.3",
            "random": "39.6",
            "aver": "46.4",
            "ae_kd": "46.9",
            "agre_kd": "55.0",
        },
        "dfr": {
            "deep_ensemble_dfr": "90.0 (93.5)",
            "one_hot_dfr": "86.7 (91.4)",
            "random": "77.3 (89.6)",
            "aver": "82.9 (90.8)",
            "ae_kd": "85.0 (90.9)",
            "agre_kd": "87.9 (91.3)",
        },
    },
    "table2_celeba": {
        "erm": {
            "deep_ensemble": "37.2",
            "one_hot": "32.3",
            "random": "27.2",
            "aver": "28.8",
            "ae_kd": "30.5",
            "agre_kd": "37.6",
        },
        "dfr": {
            "deep_ensemble_dfr": "90.3 (92.4)",
            "one_hot_dfr": "88.9 (92.3)",
            "random": "85.1 (92.5)",
            "aver": "83.4 (92.4)",
            "ae_kd": "87.5 (92.3)",
            "agre_kd": "91.9 (91.7)",
        },
    },
    "table2_civilcomments": {
        "erm": {
            "deep_ensemble": "76.1",
            "one_hot": "75.5",
            "random": "75.2",
            "aver": "74.7",
            "ae_kd": "73.1",
            "agre_kd": "74.7",
        },
        "dfr": {
            "deep_ensemble_dfr": "76.6 (85.9)",
            "one_hot_dfr": "76.5 (85.7)",
            "random": "74.2 (91.0)",
            "aver": "75.0 (90.8)",
            "ae_kd": "74.8 (90.7)",
            "agre_kd": "75.9 (90.2)",
        },
    },
    "table3_self_distillation_waterbirds": {
        "erm": {
            "deep_ensemble": "59.3 (84.4)",
            "one_hot": "65.6 (85.7)",
            "random": "64.0 (83.5)",
            "aver": "63.7 (83.5)",
            "ae_kd": "61.0 (84.2)",
            "agre_kd": "66.3 (84.9)",
        },
        "dfr": {
            "deep_ensemble_dfr": "90.0 (93.5)",
            "one_hot_dfr": "90.9 (92.2)",
            "random": "90.3 (92.8)",
            "aver": "90.2 (92.8)",
            "ae_kd": "89.0 (91.9)",
            "agre_kd": "91.1 (91.4)",
        },
    },
    "table3_self_distillation_celeba": {
        "erm": {
            "deep_ensemble": "37.7 (95.6)",
            "one_hot": "37.5 (95.4)",
            "random": "35.8 (95.5)",
            "aver": "35.3 (95.6)",
            "ae_kd": "36.9 (95.6)",
            "agre_kd": "39.2 (94.5)",
        },
        "dfr": {
            "deep_ensemble_dfr": "88.8 (92.4)",
            "one_hot_dfr": "88.2 (92.5)",
            "random": "87.9 (92.6)",
            "aver": "88.3 (92.6)",
            "ae_kd": "89.4 (92.3)",
            "agre_kd": "91.9 (91.1)",
        },
    },
    "table4_heterogeneous_waterbirds": {
        "dfr": {
            "random": "80.6 (94.3)",
            "aver": "80.7 (94.2)",
            "ae_kd": "84.9 (93.5)",
            "agre_kd": "87.9 (93.5)",
        },
        "erm": {
            "random": "57.7 (88.9)",
            "aver": "41.7 (84.2)",
            "ae_kd": "57.9 (89.1)",
            "agre_kd": "61.6 (89.5)",
        },
    },
    "table8_heterogeneous_celeba": {
        "dfr": {
            "random": "79.4 (94.1)",
            "aver": "80.0 (94.1)",
            "ae_kd": "82.2 (93.9)",
            "agre_kd": "87.6 (90.4)",
        },
        "erm": {
            "random": "36.3 (95.9)",
            "aver": "36.1 (95.9)",
            "ae_kd": "40.2 (95.9)",
            "agre_kd": "41.2 (95.9)",
        },
    },
}

TABLE_7: dict[str, dict[str, str]] = {  # one-hot, Random, AVER, AE-KD, AGRE-KD
    "waterbirds": {
        "landbird on land": "99.3 96.7 96.8 96.1 94.3",
        "landbird on water": "74.0 86.2 87.4 86.4 87.5",
        "waterbird on land": "54.1 82.3 82.1 84.6 86.7",
        "waterbird on water": "93.4 91.5 90.9 91.4 90.6",
    },
    "celeba": {
        "not blond, female": "96.0 91.8 91.8 91.3 90.4",
        "not blond, male": "99.5 94.3 94.2 93.7 92.4",
        "blond, female": "85.2 93.8 93.9 94.6 95.0",
        "blond, male": "32.3 88.3 87.5 89.4 91.6",
    },
}

SWEPT: dict[str, tuple[str, list[Any], dict[str, dict[str, str]]]] = {
    "table5_biased_architecture": (
        "ensemble.biased_model",
        [R50, R34, R18],
        {
            "waterbirds": {"agre_kd": "86.7 (90.6) 85.2 (90.0) 86.8 (90.2)"},
            "celeba": {"agre_kd": "90.5 (91.8) 90.5 (91.8) 89.8 (91.5)"},
        },
    ),
    "table6_normalization": (
        "distillation.agre_kd.normalize",
        [True, False],
        {
            "waterbirds": {"agre_kd": "86.8 (90.6) 81.5 (91.0)"},
            "celeba": {"agre_kd": "90.9 (91.7) 87.9 (93.1)"},
        },
    ),
    "figure3_debiased_share": (
        "ensemble.debiased",
        [0, 1, 2, 3, 4, 5],
        {
            "waterbirds": {
                "aver": "51.2 51.2 58.6 66.6 74.5 81.4",
                "ae_kd": "57.3 61.0 70.5 74.4 76.2 83.7",
                "agre_kd": "59.8 78.5 77.2 82.9 84.1 86.3",
                "deep_ensemble": "63.8 - - - - -",
                "deep_ensemble_dfr": "- - - - - 89.9",
                "one_hot_dfr": "84.0 84.0 84.0 84.0 84.0 84.0",
            },
            "celeba": {
                "aver": "30.9 42.8 58.9 70.0 79.4 83.4",
                "ae_kd": "31.1 55.7 72.2 71.9 80.9 87.6",
                "agre_kd": "35.4 85.6 87.4 88.9 90.3 90.8",
                "deep_ensemble": "37.2 - - - - -",
                "deep_ensemble_dfr": "- - - - - 88.9",
                "one_hot_dfr": "76.9 76.9 76.9 76.9 76.9 76.9",
            },
        },
    ),
    "figure4_alpha": (
        "distillation.alpha",
        [0.1, 0.3, 0.5, 0.7, 0.9, 1.0],
        {
            "waterbirds": {
                "aver": "62.5 70.0 75.5 78.8 81.3 81.3",
                "agre_kd": "62.5 80.3 82.9 84.8 84.5 84.7",
                "one_hot_dfr": "84.0 84.0 84.0 84.0 84.0 84.0",
            },
            "celeba": {
                "aver": "42.2 57.5 69.7 73.6 78.6 81.1",
                "agre_kd": "69.2 84.4 86.9 86.9 86.9 86.4",
                "one_hot_dfr": "76.9 76.9 76.9 76.9 76.9 76.9",
            },
        },
    ),
    "figure5_temperature": (
        "distillation.temperature",
        [1, 2, 4, 6, 8, 10, 12, 14],
        {
            "waterbirds": {"agre_kd": "84.6 85.6 85.9 86.4 86.8 86.9 86.2 85.1"},
            "celeba": {"agre_kd": "90.1 89.9 90.4 90.5 90.8 90.3 90.2 90.6"},
        },
    ),
    "figure6_student_capacity": (
        "student.model",
        [R18, R34, R50],
        {
            "waterbirds": {"aver": "82.3 86.2 90.1", "agre_kd": "85.9 88.9 91.1"},
            "celeba": {"aver": "87.8 88.0 88.3", "agre_kd": "90.4 90.5 90.7"},
        },
    ),
    "figure7_ensemble_size": (
        "ensemble.size",
        [5, 10, 20, 30, 40, 50],
        {
            "waterbirds": {"agre_kd": "86.2 86.9 86.7 87.2 87.5 88.2"},
            "celeba": {"agre_kd": "90.3 90.7 90.5 90.5 90.8 90.5"},
        },
    ),
}

NUMBER = {"table4": 9, "table8": 9, "table7": 5, "figure3": 5, "figure4": 5, "figure5": 5}
"""Teachers of an ensemble where they are not ten."""


# What the jobs say.

PATHS = sorted(FOLDER.glob("*.yaml"))
JOBS: dict[str, Job] = {}


def job_of(name: str) -> Job:
    """A job as its file says it; its data need not be there."""
    if name not in JOBS:
        JOBS[name] = Job.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))
    return JOBS[name]


def parsed(text: str) -> list[dict[str, float]]:
    """`86.7 (90.6) -` as two places, of which the second has no figures."""
    found = []
    for worst, accuracy in re.findall(r"(-|[\d.]+)(?: \(([\d.]+)\))?", text):
        figures = {} if worst == "-" else {WORST_GROUP: float(worst)}
        found.append(figures | ({ACCURACY: float(accuracy)} if accuracy else {}))
    return found


def named(value: Any) -> Any:
    return value["name"] if isinstance(value, dict) else value


def shown(name: str) -> dict[tuple[Any, ...], dict[str, dict[str, float]]]:
    """What the reports of a job show beside its own figures: by values of the sweep and method."""
    job, found = job_of(name), {}
    assert job.published is not None
    for setting in settings_of(job.sweep, job.draws):
        here: dict[str, dict[str, float]] = {}
        for method in job.methods:
            for metric in (WORST_GROUP, ACCURACY):
                value = job.published.at(setting.at, method, metric)
                if value is not None:
                    here.setdefault(method, {})[metric] = value
        found[tuple(named(value) for value in setting.at.values())] = here
    return found


def expected(kinds: dict[str, Figures]) -> dict[tuple[Any, ...], dict[str, dict[str, float]]]:
    return {
        (value,): {method: parsed(text)[0] for method, text in kinds[kind].items()}
        for kind, value in (("erm", 0), ("dfr", "all"))
    }


def written(name: str) -> set[tuple[str, str, float]]:
    """Every published figure in a job's file, so that none is there that no point shows."""
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["published"]
    return {
        (metric, method, value)
        for figures in raw["figures"]
        for metric in (WORST_GROUP, ACCURACY)
        for method, value in figures.get(metric, {}).items()
    }


def holds(name: str, figures: dict[tuple[Any, ...], dict[str, dict[str, float]]]) -> None:
    assert shown(name) == figures
    assert written(name) == {
        (metric, method, value)
        for here in figures.values()
        for method, of_method in here.items()
        for metric, value in of_method.items()
    }


def test_table_1_has_the_papers_figures() -> None:
    figures = {
        (aligned, *place): here
        for aligned, kinds in TABLE_1.items()
        for place, here in expected(kinds).items()
    }
    holds("table1_colored_mnist", figures)


@pytest.mark.parametrize("name", BOTH_KINDS)
def test_a_table_of_biased_and_debiased_teachers_has_the_papers_figures(name: str) -> None:
    holds(name, expected(BOTH_KINDS[name]))


@pytest.mark.parametrize("data", VISION)
@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_has_the_papers_places_and_figures(name: str, data: str) -> None:
    key, values, by_data = SWEPT[name]
    full, figures = f"{name}_{data}", {method: parsed(t) for method, t in by_data[data].items()}
    assert all(len(of_method) == len(values) for of_method in figures.values())
    assert list(job_of(full).sweep) == [key]
    holds(
        full,
        {
            (value,): {m: of_method[n] for m, of_method in figures.items() if of_method[n]}
            for n, value in enumerate(values)
        },
    )


@pytest.mark.parametrize("data", VISION)
def test_table_7_has_the_papers_figures_by_group(data: str) -> None:
    published = job_of(f"table7_groups_{data}").published
    assert published is not None
    (figures,) = published.figures
    methods = ("one_hot", "random", "aver", "ae_kd", "agre_kd")
    assert figures.groups == {
        group: dict(zip(methods, map(float, text.split()), strict=True))
        for group, text in TABLE_7[data].items()
    }
    assert (figures.at, figures.accuracy, figures.worst_group_accuracy) == ({}, {}, {})


def test_every_table_and_figure_of_the_paper_has_a_job() -> None:
    sources = {name: (job_of(name).published or None) for name in (p.stem for p in PATHS)}
    found = {name: re.search(r"(Table|Figure) \d", s.source) for name, s in sources.items() if s}
    of_paper = {*(f"Table {n}" for n in range(1, 9)), *(f"Figure {n}" for n in range(3, 8))}
    assert {match[0] for match in found.values() if match} == of_paper
    for name, match in found.items():
        assert match is not None
        assert name.startswith(match[0].lower().replace(" ", ""))
    assert len(PATHS) == 24


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_job_has_the_settings_that_the_paper_states(path: Path) -> None:
    job, table, data = job_of(path.stem), path.stem.split("_")[0], job_of(path.stem).data.name
    models = {"colored_idx": "torchvision/mobilenet_v2", "civilcomments": "bert-base-uncased"}
    students = {"colored_idx": "cnn", "civilcomments": "distilbert-base-uncased"}
    student = R50 if table == "table3" else students.get(data, R18)
    assert job.student.model.name.removeprefix("transformers/") == student
    assert job.teachers.model.name.removeprefix("transformers/") == models.get(data, R50)
    others = [VIT, CONVNEXT] if table in ("table4", "table8") else []
    assert [model.name for model in job.teachers.others] == others
    if data in (*VISION, "civilcomments"):
        models = (job.teachers.model, job.student.model, *job.teachers.others)
        assert all(model.weights for model in models)
    for training in (job.teachers.training, job.student.training):
        if data == "civilcomments":
            assert (training.optimizer, training.learning_rate) == ("adamw", 1e-5)
            assert (training.schedule, training.batch_size, training.epochs) == ("linear", 16, 10)
        else:
            assert (training.optimizer, training.learning_rate) == ("sgd", 1e-3)
            assert (training.schedule, training.weight_decay) == ("cosine", 1e-4)
            assert training.batch_size == {"waterbirds": 32, "celeba": 100}.get(data, 256)
    assert job.teachers.dfr.batches is not None
    assert job.ensemble.biased_from == "pool"
    biased = job.ensemble.biased_model
    if table in ("table4", "table8"):
        assert biased is not None
        assert biased.name == R50
    else:
        assert biased is None
    assert (job.distillation.temperature, job.distillation.alpha) == (4, 1)
    assert job.distillation.sample_weighting is None
    assert job.distillation.agre_kd.normalize
    assert job.seeds == (0, 1, 2)
    if "ensemble.size" not in job.sweep:
        assert job.ensemble.size == NUMBER.get(table, 10)
    if "ensemble.debiased" not in job.sweep:
        assert job.ensemble.debiased == "all"


def test_three_of_each_architecture_teach() -> None:
    for name in ("table4_heterogeneous_waterbirds", "table8_heterogeneous_celeba"):
        pool = job_of(name).teachers
        models = [pool.architecture(seed).name for seed in range(pool.count)]
        assert {model: models.count(model) for model in models} == {R50: 3, VIT: 3, CONVNEXT: 3}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_the_paper_leaves_open_is_marked(path: Path) -> None:
    text = path.read_text()
    marked = [
        line.split(":")[0].strip(" #") for line in text.splitlines() if re.search("# assumed", line)
    ]
    assert {"count", "batches"} <= set(marked)
    data = job_of(path.stem).data.name
    if data == "civilcomments":
        assert "max_length" in marked
        return
    assert marked.count("epochs") == marked.count("momentum") == 2
    batches = 2 if data == "colored_idx" else 0
    assert marked.count("batch_size") == batches
    own = {"severity"} if data == "colored_idx" else {"size", "views"}
    assert own <= set(marked)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nothing_but_the_data_is_missing(path: Path, tmp_path: Path) -> None:
    raw, changes = read_job(path), {"data.path": str(tmp_path / "none")}
    if raw["data"]["name"] == "colored_idx":
        changes["data.download"] = None
    if raw["data"]["name"] == "civilcomments":  # whose models are on the hub
        for part in ("teachers", "student"):
            changes[f"{part}.model"] = {"name": "cnn"}
    job, faults = check_job(merged(raw, changes))
    assert job is None
    about_data = {"data.path", "teachers.model", "student.model"}
    allowed = about_data if raw["data"]["name"] == "civilcomments" else {"data.path"}
    assert {"data.path"} <= {fault.key for fault in faults} <= allowed


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_page_names_every_job(path: Path) -> None:
    assert f"`{path.stem}`" in PAGE
