"""The pool, its debiased models, and the ensemble drawn from it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from agrekd_ray.config.points import points_of, remarks_on_biased
from agrekd_ray.data import DFR, SELECT, open_dataset
from agrekd_ray.errors import AgrekdError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.models import Classifier, Model, load
from agrekd_ray.settings import Training, fingerprint
from agrekd_ray.teachers import (
    DfrSettings,
    EnsembleSettings,
    Pool,
    TeacherSettings,
    draw,
    retrain_head,
)
from agrekd_ray.teachers.dfr import (
    BatchSettings,
    _balanced,
    _balanced_batches,
    _by_batches,
    _Logistic,
)
from agrekd_ray.training import evaluate

from .conftest import Run
from .shared import pool_of


class _FirstPixels(torch.nn.Module):
    """Features that are plain numbers of the image, so that the right answer is known."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1).flatten(1)
        return torch.cat([grey, images.amax((2, 3))], dim=1)


def test_a_retrained_head_relies_less_on_colour(make_job: Any) -> None:
    data = open_dataset(make_job(**{"data.train": 800, "data.val": 500}).data)
    biased = Classifier(_FirstPixels(), torch.nn.Linear(67, 10))
    ids = data.splits["train"]
    features = biased.backbone(data.inputs(ids, None)).detach().numpy()
    fitted = LogisticRegression(max_iter=300).fit(features, data.labels(ids).numpy())
    with torch.no_grad():
        biased.head.weight.copy_(torch.from_numpy(fitted.coef_))
        biased.head.bias.copy_(torch.from_numpy(fitted.intercept_))
    before = evaluate(biased, data, "test").worst_group_accuracy
    debiased = retrain_head(biased, data, DfrSettings(), seed=0)
    after = evaluate(debiased, data, "test").worst_group_accuracy
    assert before < 0.5 < 0.7 < after
    assert debiased.head.weight.abs().sum() != biased.head.weight.abs().sum()
    batches = DfrSettings(batches=BatchSettings(learning_rate=0.01))
    ours, again = (retrain_head(biased, data, batches, seed=0) for _ in range(2))
    assert evaluate(ours, data, "test").worst_group_accuracy > 0.7
    assert torch.equal(ours.head.weight, again.head.weight)
    other = retrain_head(biased, data, batches, seed=1)
    assert not torch.equal(ours.head.weight, other.head.weight)


def test_the_scaler_is_folded_into_the_layer(make_job: Any, monkeypatch: Any) -> None:
    """One retraining: the layer's logits are those of scaler and regression together."""
    data = open_dataset(make_job().data)
    model = Classifier(_FirstPixels(), torch.nn.Linear(67, 10))
    calls: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    fit = _Logistic.fit

    def spy(self: Any, features: np.ndarray, labels: np.ndarray) -> Any:
        result = fit(self, features, labels)
        calls.append((features, *result))
        return result

    monkeypatch.setattr(_Logistic, "fit", spy)
    settings = DfrSettings(inverse_penalties=(0.5,), retrainings=1)
    head = retrain_head(model, data, settings, seed=0).head
    scaled, weight, bias = calls[-1]
    raw = model.backbone(data.inputs(data.splits[DFR], None)).double().numpy()
    mean, deviation = raw.mean(0), raw.std(0)
    deviation[deviation == 0] = 1
    expected = (raw - mean) / deviation @ weight.T + bias
    logits = head(torch.from_numpy(raw).float()).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    assert len(scaled) < len(raw)


def test_subsamples_are_balanced() -> None:
    groups = np.repeat([0, 1, 3], [50, 7, 20])
    rows = _balanced(groups, np.random.default_rng(0))
    assert np.bincount(groups[rows]).tolist() == [7, 7, 0, 7]
    assert len(set(rows.tolist())) == len(rows)


def test_batches_have_as_many_of_every_group() -> None:
    groups = np.repeat([3, 0, 1], [20, 50, 7])
    batches = list(_balanced_batches(groups, 8, 300, np.random.default_rng(0)))
    drawn = np.array([np.bincount(groups[rows], minlength=4) for rows in batches])
    assert set(drawn[:, [0, 1, 3]].ravel()) == {2, 3}
    assert drawn.sum(0).tolist() == [800, 800, 0, 800]
    assert set(np.concatenate(batches)) == set(range(77))


def test_a_layer_trained_on_balanced_batches_is_that_of_the_balanced_data() -> None:
    """Group 1 of 4 % contradicts the second feature: that it is right by itself is not learnt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    conflicting = np.arange(1000) % 25 == 0
    sign = 2 * labels - 1
    core = sign + rng.normal(0, 1, 1000)
    spurious = np.where(conflicting, -sign, sign) + rng.normal(0, 0.1, 1000)
    features, groups = np.stack([core, spurious], 1), 2 * labels + conflicting
    weight, bias = _by_batches(features, labels, groups, BatchSettings(learning_rate=0.01), 0)
    assert weight.shape == (2, 2)
    assert bias.shape == (2,)
    core_pull, spurious_pull = weight[1] - weight[0]
    assert abs(spurious_pull) < 0.15 * core_pull
    wild = BatchSettings(learning_rate=1e4, weight_decay=1.0)
    with pytest.raises(
        AgrekdError, match=r"lower teachers.dfr.batches.learning_rate \(it is 10000"
    ):
        _by_batches(features, labels, groups, wild, 0)


def test_how_layers_are_retrained_parts_teachers_and_old_ones_are_found() -> None:
    """What is not used does not count, and without batches all is as before there were any."""
    settings = {
        "old": {"retrainings": 3},
        "batches": {"batches": {}},
        "same": {"batches": {"epochs": 100}, "retrainings": 3, "inverse_penalties": [0.2]},
        "longer": {"batches": {"epochs": 101}},
    }
    prints = {name: fingerprint(DfrSettings(**given)) for name, given in settings.items()}
    assert prints["batches"] == prints["same"]
    assert len(set(prints.values())) == 3
    before = {"inverse_penalties": DfrSettings().inverse_penalties, "retrainings": 3}
    assert prints["old"] == fingerprint(before)


def test_two_classes_have_two_rows() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 3))
    labels = (features[:, 0] > 0).astype(int)
    weight, bias = _Logistic(1.0, 0).fit(features, labels)
    assert weight.shape == (2, 3)
    assert bias.shape == (2,)
    assert ((features @ weight.T + bias).argmax(1) == labels).mean() > 0.95


def test_the_validation_halves_stay_apart(make_job: Any) -> None:
    data = open_dataset(make_job().data)
    assert not set(data.splits[DFR]) & set(data.splits[SELECT])


def test_a_finished_teacher_is_never_made_twice(make_job: Any, tmp_path: Path) -> None:
    job = make_job(**{"teachers.store": str(tmp_path / "pool")})
    data = open_dataset(job.data)
    pool = Pool(job.teachers.store, data)
    recipes = list(draw(job.ensemble, job.teachers).recipes.values())
    families = pool.missing(recipes)
    assert sum(map(len, families)) == len(recipes)
    assert pool.damaged(families) == []
    epochs: list[str] = []
    for family in families:
        pool.make(family, progress=lambda name, epoch, of: epochs.append(name))
    assert len(epochs) == 2 * 3
    assert pool.missing(recipes) == []
    debiased = next(r for r in recipes if r.kind == "dfr")
    (pool.folder(debiased) / "model.safetensors").write_bytes(b"damaged")
    assert pool.missing(recipes) == [[debiased]]
    assert pool.damaged([[debiased]]) == [pool.folder(debiased)]
    pool.make([debiased], progress=lambda *_: pytest.fail("the parent was trained again"))
    assert pool.missing(recipes) == []


@pytest.mark.parametrize(
    "change",
    [
        {"teachers.training.learning_rate": 0.06},
        {"teachers.model.args.width": 5},
        {"data.seed": 1},
        {"data.views": {"flip": True}},
        {"data.aligned": 0.9},
    ],
)
def test_whatever_makes_a_teacher_is_in_its_fingerprint(make_job: Any, change: Any) -> None:
    jobs = [make_job(), make_job(**change)]
    prints = []
    for job in jobs:
        recipe = draw(job.ensemble, job.teachers).recipes["erm-0"]
        prints.append(Pool(job.teachers.store, open_dataset(job.data)).fingerprint(recipe))
    assert prints[0] != prints[1]


def test_debiased_teachers_share_the_backbone_of_their_parent(make_job: Any, store: Path) -> None:
    job = make_job(**{"ensemble.debiased": 3})
    pool = Pool(store, open_dataset(job.data))
    drawn = draw(job.ensemble, job.teachers)
    for family in pool.missing(drawn.recipes.values()):
        pool.make(family)
    for recipe in drawn.recipes.values():
        if recipe.kind == "dfr" and pool.find(recipe.parent):
            child, parent = load(pool.folder(recipe)), load(pool.folder(recipe.parent))
            assert child[1].backbone == parent[1].backbone
            assert not torch.equal(child[0].head.weight, parent[0].head.weight)


def test_the_draw_nests_and_holds_its_mixture(make_job: Any) -> None:
    pool = make_job(**{"teachers.count": 7}).teachers
    draws = [draw(EnsembleSettings(size=5, debiased=n, seed=3), pool) for n in range(6)]
    for number, drawn in enumerate(draws):
        kinds = [name.split("-")[0] for name in drawn.teachers]
        assert kinds.count("dfr") == number == drawn.debiased
        assert len(set(drawn.teachers)) == 5
        assert drawn.recipes[drawn.biased].kind == "erm"
    seeds = [{name.split("-")[1] for name in drawn.teachers} for drawn in draws]
    assert all(each == seeds[0] for each in seeds)
    assert len({drawn.biased for drawn in draws}) == 1
    everywhere = {draw(EnsembleSettings(size=5, seed=s), pool).biased for s in range(40)}
    assert len(everywhere) == 7


def test_the_biased_model_is_drawn_outside_the_ensemble_where_the_pool_has_room(
    make_job: Any,
) -> None:
    pool = make_job(**{"teachers.count": 7}).teachers
    for seed, size in itertools.product(range(20), (1, 3, 6)):
        drawn = draw(EnsembleSettings(size=size, debiased="all", seed=seed), pool)
        assert drawn.biased.replace("erm", "dfr") not in drawn.teachers
        assert drawn.recipes[drawn.biased].kind == "erm"
    all_of_it = [draw(EnsembleSettings(size=7, seed=seed), pool) for seed in range(20)]
    assert all(drawn.biased in drawn.teachers for drawn in all_of_it)
    assert TeacherSettings.model_fields["count"].default == EnsembleSettings().size + 1


def test_the_papers_biased_model_is_drawn_from_all_of_the_pool(make_job: Any) -> None:
    """As every version has done it: runs of before go on with the model that they began with."""
    pool = make_job(**{"teachers.count": 7}).teachers
    for seed, teachers, biased in (
        (0, ("dfr-2", "dfr-4", "erm-3", "erm-5", "erm-6"), "erm-1"),
        (2, ("dfr-5", "dfr-6", "erm-2", "erm-3", "erm-4"), "erm-3"),
        (3, ("dfr-5", "dfr-6", "erm-1", "erm-2", "erm-4"), "erm-2"),
        (4, ("dfr-1", "dfr-2", "erm-0", "erm-4", "erm-5"), "erm-0"),
    ):
        drawn = draw(EnsembleSettings(size=5, debiased=2, seed=seed, biased_from="pool"), pool)
        assert (drawn.teachers, drawn.biased) == (teachers, biased)


def test_a_biased_model_that_teaches_is_said(make_job: Any, store: Path) -> None:
    said = "the biased model is a teacher, too, whom agre_kd then gives no weight; "
    one = {"methods": ["agre_kd"], "ensemble.debiased": 0}
    # Of three models three teach.
    remedy = "teachers.count: 4 would draw another"
    assert remarks_on_biased(make_job(**one)) == [said + remedy]
    both = f"ensemble.biased_from: outside and {remedy}"
    assert remarks_on_biased(make_job(**one, **{"ensemble.biased_from": "pool"})) == [said + both]
    # Those that do not ask the biased model, and one that is left.
    assert remarks_on_biased(make_job(**{**one, "methods": ["aver"]})) == []
    assert remarks_on_biased(make_job(**one, **{"teachers.count": 4})) == []
    assert remarks_on_biased(make_job(**{**one, "ensemble.debiased": "all"})) == []
    study = make_job(**one, sweep={"teachers.count": [3, 4]}, draws=[0, 1])
    assert remarks_on_biased(study) == [said + remedy], "once"
    # One that is named by its folder.
    data, folders, drawn = pool_of(make_job(**one))
    named = make_job(**one, **{"ensemble.biased": str(folders[drawn.teachers[0]])})
    pool = Pool(store, data)
    assert remarks_on_biased(named, pool) == [said + "ensemble.biased may name another"]
    assert remarks_on_biased(make_job(**{**one, "methods": ["aver"]}), pool) == []


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_verbs_say_that_the_biased_model_teaches(
    make_job: Any, tmp_path: Path, agrekd: Run, verb: str
) -> None:
    changes = {"methods": ["agre_kd"], "ensemble.debiased": 0, "guidance": "local"}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(make_job(**changes).model_dump(mode="json")))
    said = "ensemble: the biased model is a teacher, too, whom agre_kd then gives no weight"
    assert said in agrekd(verb, job, "student.training.epochs=1")[1]


def test_a_run_of_an_earlier_version_keeps_its_biased_model(make_job: Any, tmp_path: Path) -> None:
    swept = {"sweep": {"ensemble": [{"size": 1}, {"size": 2}]}}
    folder = RunFolder.create(make_job(**{"teachers.count": 7}, **swept))
    assert RunFolder.open(folder.path).job.ensemble.biased_from == "outside"
    file = folder.path / "job.yaml"
    file.write_text(file.read_text().replace("  biased_from: outside\n", ""))
    points = [job for _, job in points_of(RunFolder.open(folder.path).job)]
    assert [point.ensemble.biased_from for point in points] == ["pool", "pool"]


def test_a_pool_takes_its_architectures_in_turn() -> None:
    models = [Model(name="cnn", args={"width": n}) for n in (2, 3, 4)]
    pool = TeacherSettings(
        model=models[0],
        others=tuple(models[1:]),
        training=Training(epochs=1, batch_size=8, learning_rate=0.1),
        count=7,
        seed=20,
    )
    drawn = draw(EnsembleSettings(size=7, debiased=3), pool)
    for recipe in drawn.recipes.values():
        assert recipe.model == models[(recipe.seed - 20) % 3]
    assert {recipe.model.args["width"] for recipe in drawn.recipes.values()} == {2, 3, 4}
    assert drawn.recipes[drawn.biased].model == pool.architecture(drawn.recipes[drawn.biased].seed)
