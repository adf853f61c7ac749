"""Kinds of debiased teachers: right values by hand, no group label where none is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax

from agrekd_ray.config import check_job
from agrekd_ray.data import DFR, SELECT, Dataset, open_dataset
from agrekd_ray.errors import AgrekdError
from agrekd_ray.models import Classifier, Model, build, load
from agrekd_ray.settings import Training, fingerprint
from agrekd_ray.teachers import (
    KINDS,
    DfrSettings,
    EnsembleSettings,
    Pool,
    Recipe,
    TeacherSettings,
    draw,
    family,
)
from agrekd_ray.teachers.afr import AfrSettings, afr, afr_weights, minimum
from agrekd_ray.teachers.disagreement import SelfSettings, _most, disagreement, divergence
from agrekd_ray.teachers.kinds import Half, HeldOut, worst_cell
from agrekd_ray.teachers.pseudo import PseudoSettings
from agrekd_ray.teachers.retraining import Halves, retrained
from agrekd_ray.trained import open_student
from tests import pictures
from tests.conftest import TINY, Run, merged

GROUP_FREE = [name for name, kind in KINDS.items() if not kind.needs_groups]
ERM_LAYER = np.array([[-0.2] * 3 + [-1.5] * 3, [0.2] * 3 + [1.5] * 3]), np.zeros(2)
"""Of a model that believes the spurious features."""


def half(size: int, aligned: float, seed: int) -> Half:
    """Three features of the class and three cleaner ones that agree with it in so many samples."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    sign = 2 * labels - 1
    agrees = rng.random(size) < aligned
    core = sign[:, None] + rng.normal(0, 1.0, (size, 3))
    spurious = np.where(agrees, sign, -sign)[:, None] + rng.normal(0, 0.3, (size, 3))
    features = np.concatenate([core, spurious], axis=1)
    weight, bias = ERM_LAYER
    groups = 2 * labels + agrees
    named = (features @ weight.T + bias).argmax(1)
    return Half(features, labels, named, groups, groups)


def blind(given: Half) -> Half:
    return replace(given, groups_N=None, evaluated_N=None)


def worst_group(layer: tuple[np.ndarray, np.ndarray], tested: Half) -> float:
    weight, bias = layer
    right = (tested.features_ND @ weight.T + bias).argmax(1) == tested.labels_N
    assert tested.groups_N is not None
    return worst_cell(right, tested.groups_N)[0]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_raises_the_worst_group_well_above_erm(name: str) -> None:
    fit, select, tested = half(600, 0.85, 0), half(400, 0.85, 1), half(4000, 0.5, 2)
    kind = KINDS[name]
    seen = [given if kind.needs_groups else blind(given) for given in (fit, select)]
    held_out = HeldOut(seen[0], lambda: seen[1], *ERM_LAYER)
    erm = worst_group(ERM_LAYER, tested)
    layer = kind.function(held_out, kind.settings(), 0)
    assert erm < 0.1
    assert worst_group(layer, tested) > 0.7
    again = kind.function(held_out, kind.settings(), 0)
    np.testing.assert_array_equal(layer[0], again[0])


class _Blind:
    """A data set whose groups nobody may read."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @property
    def groups(self) -> Any:
        raise AssertionError("groups were read")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_without_need_of_groups_read_none(make_job: Any, name: str) -> None:
    data: Any = _Blind(open_dataset(make_job().data))
    model = build(Model(name="cnn", args={"width": 4}), data.shape, 10, seed=0)
    kind = KINDS[name]
    if kind.needs_groups:
        with pytest.raises(AssertionError, match="groups were read"):
            retrained(Halves(model, data), kind, kind.settings(), 0)
    else:
        made = retrained(Halves(model, data), kind, kind.settings(), 0)
        assert not torch.equal(made.head.weight, model.head.weight)


# --- AFR -------------------------------------------------------------------------------------


def test_the_weights_of_afr_by_hand() -> None:
    labels, confidence = np.array([0, 0, 0, 1]), np.array([0.5, 1.0, 0.0, 0.25])
    # exp(-2 p) over 3 samples of class 0 and one of class 1.
    raw = np.array([0.36787944 / 3, 0.13533528 / 3, 1 / 3, 0.60653066])
    np.testing.assert_allclose(afr_weights(confidence, labels, 2.0), raw / raw.sum(), rtol=1e-7)
    level = afr_weights(confidence, labels, 0.0)
    np.testing.assert_allclose(level, [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_afr_s_layer_is_where_the_gradient_of_its_loss_is_zero() -> None:
    fit = half(200, 0.8, 0)
    held_out = HeldOut(fit, lambda: fit, *ERM_LAYER)
    weights = afr_weights(np.full(200, 0.5), fit.labels_N, 4.0)
    layer = [torch.tensor(part, requires_grad=True) for part in minimum(held_out, weights, 0.1)]
    logits = torch.from_numpy(fit.features_ND) @ layer[0].T + layer[1]
    losses = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(fit.labels_N), reduction="none"
    )
    start = map(torch.from_numpy, ERM_LAYER)
    apart = [((ours - erm) ** 2).sum() for ours, erm in zip(layer, start, strict=True)]
    (torch.from_numpy(weights) @ losses + 0.1 * sum(apart)).backward()
    for part in layer:
        assert part.grad is not None
        assert part.grad.abs().max() < 1e-4
    held = minimum(held_out, weights, 1e6)
    np.testing.assert_allclose(held[0], ERM_LAYER[0], atol=1e-5)


def test_afr_chooses_by_the_worst_cell_of_label_and_whether_erm_is_right() -> None:
    fit, select = half(400, 0.85, 0), half(300, 0.85, 1)
    held_out = HeldOut(blind(fit), lambda: blind(select), *ERM_LAYER)
    grid = {"gammas": (0.0, 8.0), "penalties": (0.01, 10.0)}
    single = [
        afr(held_out, AfrSettings(gammas=(gamma,), penalties=(penalty,)), 0)
        for gamma in grid["gammas"]
        for penalty in grid["penalties"]
    ]

    def score(layer: Any) -> float:
        right = (select.features_ND @ layer[0].T + layer[1]).argmax(1) == select.labels_N
        return min(right[select.cells == cell].mean() for cell in np.unique(select.cells))

    chosen = afr(held_out, AfrSettings(**grid), 0)
    assert score(chosen) == max(map(score, single)) > min(map(score, single))


def test_cells_are_label_and_whether_the_biased_model_is_right() -> None:
    given = Half(np.zeros((4, 1)), np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]))
    assert given.cells.tolist() == [0, 1, 2, 5]
    right = np.array([True, False, True, True])
    assert worst_cell(right, given.cells) == (0.0, 0.75)


# --- SELF ------------------------------------------------------------------------------------


def test_disagreement_is_the_divergence_of_the_twin_with_dropout() -> None:
    """One feature, whose half of samples has none of it, and half twice as much."""
    weight, bias = np.array([[0.0], [1.0]]), np.zeros(2)
    fit = Half(np.full((400, 1), 1.5), np.zeros(400, dtype=int), np.zeros(400, dtype=int))
    found = divergence(HeldOut(fit, lambda: fit, weight, bias), 0.5, np.random.default_rng(0))
    ours = softmax([0.0, 1.5])
    expected = [float((ours * np.log(ours / softmax([0.0, shown]))).sum()) for shown in (0.0, 3.0)]
    for value in expected:
        share = np.isclose(found, value).mean()
        assert 0.4 < share < 0.6
    assert np.isclose(found[:, None], expected).any(1).all()


def test_samples_of_most_disagreement_are_of_every_class_alike() -> None:
    apart = np.array([0.9, 0.1, 0.8, 0.7, 0.2, 0.3, 0.6])
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    rows = _most(apart, labels, (3, 6, 100, 1))
    assert [r.tolist() for r in rows] == [[0, 5, 6], [0, 2, 4, 5, 6], list(range(7)), [0, 5, 6]]


def test_self_says_that_every_rate_diverged() -> None:
    fit = half(60, 0.8, 0)
    settings = SelfSettings(learning_rates=(1e30,), steps=20, weight_decay=1.0)
    with pytest.raises(AgrekdError, match=r"lower teachers.self.learning_rates \(.* 1e\+30\)"):
        disagreement(HeldOut(fit, lambda: fit, *ERM_LAYER), settings, 0)


# --- pseudo-groups ---------------------------------------------------------------------------


def test_pseudo_groups_are_the_mistakes_of_the_twin(make_job: Any, monkeypatch: Any) -> None:
    data = open_dataset(make_job().data)
    ours, twin = (
        build(Model(name="cnn", args={"width": 4}), data.shape, 10, seed=n) for n in (0, 1)
    )
    for biased in (None, twin):
        seen = Halves(ours, data).held_out(KINDS["pseudo"], biased)
        for split, shown in ((DFR, seen.fit), (SELECT, seen.select)):
            ids = data.splits[split]
            asked: Classifier = biased or ours
            asked.eval()
            with torch.no_grad():
                named = asked(data.inputs(ids, None)).argmax(1)
            expected = 2 * data.labels(ids) + (named != data.labels(ids))
            assert shown.cells.tolist() == expected.tolist()
            assert shown.groups_N is None


def test_a_twin_is_the_pool_s_next_model_and_made_before(make_job: Any, tmp_path: Path) -> None:
    changes = {"teachers.store": str(tmp_path / "pool"), "ensemble": {"size": 2}}
    job = make_job(**changes, **{"ensemble.debiased": {"pseudo": 2}})
    pool = Pool(job.teachers.store, open_dataset(job.data))
    drawn = draw(job.ensemble, job.teachers)
    made = {name: r for name, r in drawn.recipes.items() if r.kind == "pseudo"}
    for recipe in made.values():
        assert recipe.twin is not None
        assert recipe.twin.name == f"erm-{(recipe.seed + 1) % 3}"
    families = pool.missing(drawn.recipes.values())
    assert sorted(r.name for f in families for r in f if r.kind == "erm") == sorted(
        {recipe.twin.name for recipe in made.values() if recipe.twin} | {drawn.biased}
    )
    first, second = pool.in_turn(families)
    assert all(r.kind == "erm" for f in first for r in f)
    assert {r.name for f in second for r in f} == set(made)
    trained: list[str] = []
    for turn in (first, second):
        for models in turn:
            pool.make(models, progress=lambda name, epoch, of: trained.append(name))
    assert pool.missing(drawn.recipes.values()) == []
    assert max(map(trained.count, trained)) == 2, "two epochs each: nothing was trained twice"
    # A family that is made alone makes the twin, too.
    alone = Pool(tmp_path / "other", open_dataset(job.data))
    recipe = next(iter(made.values()))
    alone.make([recipe])
    assert alone.find(recipe)
    assert alone.find(recipe.twin)  # type: ignore[arg-type]
    same = [load(p.folder(recipe))[0].head.weight for p in (pool, alone)]
    assert torch.equal(*same)
    single = make_job(**{"teachers.count": 1, "ensemble": {"size": 1}})
    one = draw(EnsembleSettings(size=1, debiased={"pseudo": 1}), single.teachers)
    assert one.recipes["pseudo-0"].twin is None


# --- recipes and draws -----------------------------------------------------------------------


def test_teachers_of_before_are_found_and_each_kind_counts_its_own_settings_alone() -> None:
    shared: dict[str, Any] = {"model": Model(name="cnn"), "training": Training(), "seed": 4}
    erm = Recipe(kind="erm", **shared)
    dfr = Recipe(kind="dfr", **shared, retraining=DfrSettings())
    # As the version before there were other kinds had them.
    assert fingerprint(1, erm)[:16] == "b1e8f67df0ab9e49"
    assert fingerprint(1, dfr)[:16] == "0ae0b7bdcd7fec32"
    assert erm.model_dump(mode="json")["dfr"] is None
    ours = Recipe(kind="afr", **shared, retraining=AfrSettings())
    dumped = ours.model_dump(mode="json")
    assert dumped.keys() == {"kind", "model", "training", "seed", "afr"}
    assert dumped["afr"]["gammas"] == [1.0, 2.0, 4.0, 8.0, 16.0]
    other = Recipe(kind="afr", **shared, retraining=AfrSettings(gammas=(1.0,)))
    assert fingerprint(other) != fingerprint(ours)
    assert ours.parent == erm
    pseudo = Recipe(kind="pseudo", **shared, retraining=PseudoSettings())
    assert fingerprint(pseudo) != fingerprint(pseudo.model_copy(update={"twin": erm}))


@pytest.mark.parametrize("name", GROUP_FREE)
def test_settings_of_other_kinds_make_no_other_teachers(make_job: Any, name: str) -> None:
    jobs = [
        make_job(**{"ensemble.debiased": {name: 1}}, **changes)
        for changes in (
            {},
            {"teachers.dfr.retrainings": 7},
            {f"teachers.{name}": KINDS[name].settings().model_dump() | _OTHER[name]},
        )
    ]
    prints = []
    for job in jobs:
        recipes = draw(job.ensemble, job.teachers).recipes
        pool = Pool(job.teachers.store, open_dataset(job.data))
        prints.append({name: pool.fingerprint(recipe) for name, recipe in recipes.items()})
    assert prints[0] == prints[1]
    assert {n for n in prints[0] if prints[0][n] != prints[2][n]} == {
        n for n in prints[0] if n.startswith(name)
    }


_OTHER: dict[str, dict[str, Any]] = {
    "afr": {"gammas": [3.0]},
    "self": {"steps": 100},
    "pseudo": {"retrainings": 3},
}


def test_kinds_debias_the_same_models_and_further_ones_exchange_nobody(make_job: Any) -> None:
    pool = make_job(**{"teachers.count": 7}).teachers

    def drawn(**debiased: Any) -> tuple[tuple[str, ...], str]:
        found = draw(EnsembleSettings(size=5, debiased=debiased, seed=3), pool)
        return found.teachers, found.biased

    plain = draw(EnsembleSettings(size=5, debiased=2, seed=3), pool)
    assert drawn(dfr=2) == (plain.teachers, plain.biased)
    for kind in GROUP_FREE:
        teachers, biased = drawn(**{kind: 2})
        assert [t.replace(kind, "dfr") for t in teachers] == list(plain.teachers)
        assert biased == plain.biased
    # Whatever the order in which they are listed.
    mixed = drawn(afr=1, dfr=1)
    assert mixed == drawn(dfr=1, afr=1)
    seeds = [{t.split("-")[1] for t in found[0]} for found in (mixed, drawn(dfr=1, afr=3))]
    assert seeds[0] == seeds[1]
    kinds = [[t for t in found[0] if t.startswith("afr")] for found in (mixed, drawn(dfr=1, afr=3))]
    assert set(kinds[0]) < set(kinds[1])
    assert drawn(afr="all")[0] == tuple(sorted(drawn(afr=5)[0]))


@pytest.mark.parametrize(
    ("debiased", "words"),
    [
        (0, "5 (0 debiased)"),
        (2, "5 (2 debiased)"),
        ({"dfr": 2}, "5 (2 debiased)"),
        ({"afr": 2}, "5 (2 AFR)"),
        ({"pseudo": "all"}, "5 (5 pseudo-DFR)"),
        ({"afr": 1, "dfr": 2, "self": 0}, "5 (2 DFR, 1 AFR)"),
    ],
)
def test_the_ensemble_in_words(make_job: Any, debiased: Any, words: str) -> None:
    pool = make_job(**{"teachers.count": 6}).teachers
    assert draw(EnsembleSettings(size=5, debiased=debiased), pool).in_words == words
    again = EnsembleSettings.model_validate(EnsembleSettings(debiased=debiased).model_dump())
    assert again == EnsembleSettings(debiased=debiased)


@pytest.mark.parametrize(
    ("debiased", "fault"),
    [
        (
            {"affr": 1},
            "ensemble.debiased.affr = 1: unknown key; known here: afr, dfr, ",
        ),
        ({"afr": 2, "dfr": 2}, "more debiased teachers than teachers (ensemble.size is 3)"),
        ({"afr": "all", "dfr": 1}, "more debiased teachers than teachers (ensemble.size is 3)"),
        ({"afr": -1}, "ensemble.debiased.afr = -1: must be greater than or equal to 0"),
        ({"afr": "some"}, "ensemble.debiased.afr = some: must be one of all"),
        (["afr"], "ensemble.debiased: must be"),
        (True, "ensemble.debiased = True: must be a number, not true"),
    ],
)
def test_what_cannot_be_debiased_is_a_fault_beside_others(debiased: Any, fault: str) -> None:
    raw = merged(TINY, {"ensemble.debiased": debiased, "seeds": [-1]})
    job, faults = check_job(raw)
    assert job is None
    said = [str(found) for found in faults]
    assert any(fault in line for line in said), said
    assert any(line.startswith("seeds.0") for line in said)


def test_every_kind_is_in_the_settings_and_has_words() -> None:
    for name, kind in KINDS.items():
        assert kind.name == name
        assert isinstance(getattr(TeacherSettings(model=Model(name="cnn")), name), kind.settings)
        assert family(name) == f"debiased ({kind.label})"
        EnsembleSettings(debiased={name: 1})
    assert (family("erm"), family("own")) == ("biased (ERM)", "own checkpoints")


# --- data without groups ---------------------------------------------------------------------


def _without_groups(place: Path, **changes: Any) -> dict[str, Any]:
    """A tiny job on pictures of which nobody knows a group."""
    folder = pictures.table(place / "own", pictures.spread((8, 8, 8)))
    data = pictures.small("table", place / "prepared", table=str(folder / "table.csv"))
    places = {"runs": str(place / "runs"), "teachers.store": str(place / "store")}
    own = {"data": data, "guidance": "local", "methods": ["aver", "agre_kd"], **places}
    return merged(TINY, {**own, **changes})


@pytest.mark.parametrize("name", GROUP_FREE)
def test_the_whole_chain_runs_without_one_group_label(
    tmp_path: Path, agrekd: Run, name: str
) -> None:
    raw = _without_groups(tmp_path, **{"ensemble.debiased": {name: 1}})
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw))
    code, out, err = agrekd("run", file)
    assert code == 0, err
    label = KINDS[name].label
    said = f"classes for training, debiasing ({label}), selection and evaluation"
    assert f"labels used: {said}" in out
    assert f"3 (1 {label})" in out
    assert agrekd("report", tmp_path / "runs/tiny/latest")[0] == 0
    page = tmp_path / "runs/tiny/latest/report.html"
    assert said in page.read_text()
    results = json.loads((tmp_path / "runs/tiny/latest/results.json").read_text())
    assert results["job"]["labels_used"] == f"labels used: {said}"
    (student,) = (tmp_path / "runs/tiny/latest/students").glob("aver-seed-0")
    assert f"Labels used: {said}." in open_student(student).card("ours")
    listed = agrekd("teachers", "list", file)[1]
    assert name in listed


def test_only_what_needs_groups_is_refused_without_them(tmp_path: Path) -> None:
    _, faults = check_job(_without_groups(tmp_path, **{"ensemble.debiased": 1}))
    (fault,) = [str(found) for found in faults]
    assert "needs group labels, and the data have none" in fault
    assert fault.endswith("or debias without them: {afr: …} or {self: …} or {pseudo: …}.")
    mixed = {"ensemble.debiased": {"dfr": 1, "afr": 1}, "methods": ["one_hot_dfr", "aver"]}
    _, faults = check_job(_without_groups(tmp_path, **mixed))
    assert [f"{found.key} = {found.value}" for found in faults] == [
        "methods.0 = one_hot_dfr",
        "ensemble.debiased = dfr=1 afr=1",
    ]
    job, faults = check_job(_without_groups(tmp_path, **{"ensemble.debiased": {"afr": 2}}))
    assert faults == []
    assert job is not None
    assert not job.retrains
