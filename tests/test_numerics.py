"""What models compute in, and that what was made before is found again."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.config import check_job
from agrekd_ray.data import TEST, open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.fleet import actors
from agrekd_ray.fleet.actors import numbers_here
from agrekd_ray.logits import LogitsCache
from agrekd_ray.models import Model, build, load, save
from agrekd_ray.numerics import compiled, computing_in, numbers_on, training_kernels
from agrekd_ray.settings import Precision, Training, fingerprint
from agrekd_ray.teachers import DfrSettings, Pool, Recipe
from agrekd_ray.training import filling, predict
from tests.conftest import TINY, merged
from tests.shared import pool_of

GIVEN: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05}


def with_bfloat16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


@pytest.mark.parametrize(
    ("precision", "device", "has", "numbers"),
    [
        ("auto", "cuda", True, "bfloat16"),
        ("auto", "cuda:1", False, "float32"),
        ("auto", "cpu", True, "float32"),
        ("float32", "cuda", True, "float32"),
        ("bfloat16", "cuda", True, "bfloat16"),
        ("bfloat16", "cpu", False, "bfloat16"),
    ],
)
def test_what_a_precision_comes_to(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, device: str, has: bool, numbers: str
) -> None:
    with_bfloat16(monkeypatch, has)
    assert numbers_on(precision, torch.device(device)) == numbers


def test_a_gpu_without_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bfloat16(monkeypatch, has=False)
    with pytest.raises(RunError, match=r"bfloat16, and Tesla T4 .*set precision: float32"):
        numbers_on("bfloat16", "cuda")


def switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize("strict", [False, True])
def test_training_switches_kernels_and_switches_them_back(strict: bool) -> None:
    before = switches()
    with suppress(KeyError), training_kernels("cuda", deterministic=strict):
        fast = ("high", True, True, False, False)
        assert switches() == (("highest", False, False, True, True) if strict else fast)
        with training_kernels("cpu", deterministic=not strict):
            assert switches()[-1] == strict
        with training_kernels("cuda", deterministic=not strict):
            assert switches()[-1] != strict
        assert switches()[-1] == strict
        raise KeyError
    assert switches() == before
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_what_has_no_kernel_that_repeats_itself_is_an_error() -> None:
    def adaptive_pooling() -> None:
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but "
            "you set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism ..."
        )

    says = (
        r"^training\.deterministic: PyTorch has no adaptive_avg_pool2d_backward_cuda that repeats "
        r"itself; take another model, or set it to false\.$"
    )
    with pytest.raises(RunError, match=says), training_kernels("cuda", deterministic=True):
        adaptive_pooling()
    with (
        pytest.raises(RuntimeError, match="of another kind"),
        training_kernels("cuda", deterministic=True),
    ):
        raise RuntimeError("of another kind")


def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    with pytest.raises(RunError, match=r"cuda_graphs are a GPU's.*set default or off"):
        compiled(nn.Linear(1, 1), "cuda_graphs", "cpu")
    network = nn.Linear(1, 1)
    assert compiled(network, "off", "cpu") is network
    for block in ("student", "teachers"):
        changes = {f"{block}.training.compile": "cuda_graphs", f"{block}.gpus": 0}
        _, faults = check_job(merged(TINY, changes))
        assert [fault.key for fault in faults] == [f"{block}.training.compile"]
        _, faults = check_job(merged(TINY, {**changes, f"{block}.gpus": 1}))
        assert faults == []


def test_off_is_a_truth_value_to_yaml() -> None:
    assert Training(**GIVEN, compile=False).compile == "off"  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"compile": "default"}, {"deterministic": True}])
def test_what_is_not_the_default_makes_other_models(change: Any) -> None:
    assert fingerprint(Training(**GIVEN, **change)) != fingerprint(Training(**GIVEN))


@pytest.mark.parametrize(
    ("shape", "samples"),
    [((3, 224, 224), 445), ((1, 28, 28), 8192), ((128,), 2048), ((3, 9000, 9000), 1)],
)
def test_batches_fill_a_gpu_by_their_numbers(shape: tuple[int, ...], samples: int) -> None:
    assert filling(shape) == samples


def test_a_fleet_on_such_a_gpu_names_teachers_and_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bfloat16(monkeypatch, has=False)
    monkeypatch.setattr(actors, "this_node", lambda: "node-7")
    says = r"teachers a, b on node node-7: fleet\.precision: bfloat16.*set precision: float32"
    with pytest.raises(RunError, match=says):
        numbers_here(FleetSettings(gpus=1), "cuda", ["a", "b"])


def test_forward_passes_compute_in_what_is_said() -> None:
    ones = torch.ones(2, 2)
    with computing_in("bfloat16", "cpu"):
        assert (ones @ ones).dtype == torch.bfloat16
    with computing_in("float32", "cpu"):
        assert (ones @ ones).dtype == torch.float32


@pytest.mark.parametrize(
    ("fleet", "numbers"),
    [
        ({"gpus": 0.5}, "bfloat16"),
        ({"gpus": 0}, "float32"),
        ({"gpus": 1, "teachers": {"small": {"gpus": 0}}}, "float32"),
        ({"gpus": 1, "teachers": {"small": {"labels": {"zone": "b"}}}}, "bfloat16"),
        ({"gpus": 1, "precision": "float32"}, "float32"),
        ({"gpus": 0, "precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_all_teachers_of_a_fleet_compute_in_the_same(fleet: Any, numbers: str) -> None:
    assert FleetSettings(**fleet).computes_in == numbers


@pytest.mark.parametrize(
    ("given", "training", "recipe"),
    [
        ({}, "bddc5de9634fe2a9", "ce6322992ea5c849"),
        ({"precision": "float32"}, "bddc5de9634fe2a9", "ce6322992ea5c849"),
        ({"autocast": "none"}, "bddc5de9634fe2a9", "ce6322992ea5c849"),
        ({"autocast": None}, "bddc5de9634fe2a9", "ce6322992ea5c849"),
        ({"precision": "bfloat16"}, "ad5136358a22d81f", "bef82b729ab20668"),
        ({"autocast": "bfloat16"}, "ad5136358a22d81f", "bef82b729ab20668"),
    ],
)
def test_what_an_earlier_version_made_is_found(given: Any, training: str, recipe: str) -> None:
    """Fingerprints of the version that had `autocast`."""
    settings = Training(**GIVEN, **given)
    assert fingerprint(settings)[:16] == training
    dfr = Recipe(
        kind="dfr", model=Model(name="cnn"), training=settings, seed=4, retraining=DfrSettings()
    )
    assert fingerprint(1, dfr)[:16] == recipe


def test_records_of_an_earlier_version_are_found(make_job: Any) -> None:
    job = make_job()
    data, checkpoints, _ = pool_of(job)
    for numbers, before in (("float32", "none"), ("bfloat16", "bfloat16")):
        outputs = LogitsCache(job.outputs, checkpoints, data, numbers)  # type: ignore[arg-type]
        assert {key.autocast for key in outputs.keys.values()} == {before}


@pytest.mark.parametrize("block", ["fleet", "student.training", "teachers.training"])
def test_a_job_of_an_earlier_version_is_read(block: str) -> None:
    for old, new in ((None, "float32"), ("none", "float32"), ("bfloat16", "bfloat16")):
        job, faults = check_job(merged(TINY, {f"{block}.autocast": old}))
        assert faults == []
        found: Any = job
        for key in block.split("."):
            found = getattr(found, key)
        assert found.precision == new
        assert "autocast" not in found.model_dump()
    for wrong in ("float16", ["none"], True):
        _, faults = check_job(merged(TINY, {f"{block}.autocast": wrong}))
        assert [fault.key for fault in faults] == [f"{block}.autocast"]


def test_a_model_made_in_bfloat16_is_not_taken_for_one_in_float32(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` finds it wherever it was made."""
    job = make_job()
    data, _, drawn = pool_of(job)
    pool = Pool(job.teachers.store, data)
    recipe = next(iter(drawn.recipes.values()))
    model, manifest = load(pool.folder(recipe))
    assert manifest.made_by["numbers"] == "float32"
    exact = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"precision": "float32"})}
    )
    assert pool.folder(exact) == pool.folder(recipe)
    assert pool.find(exact) is not None
    shutil.rmtree(pool.folder(recipe))
    on_a_gpu = replace(manifest, made_by={**manifest.made_by, "numbers": "bfloat16"})
    save(pool.folder(recipe), model, on_a_gpu)
    assert pool.find(recipe) is not None
    with pytest.raises(RunError, match=r"made on a GPU in bfloat16.*say auto"):
        pool.find(exact)


def test_everybody_computes_in_it(make_job: Any) -> None:
    """Evaluation and recording in bfloat16 are near float32, not equal to it; so all tell."""
    data = open_dataset(make_job().data)
    model = build(Model(name="cnn"), data.shape, len(data.classes), 0)
    ids = data.splits[TEST][:64]
    exact, near = (predict(model, data, ids, precision=p) for p in ("float32", "bfloat16"))
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    torch.testing.assert_close(exact, near, atol=0.05, rtol=0.05)
    assert torch.equal(predict(model, data, ids), exact)
