"""Teachers of other makers: what can teach is taken, what cannot says why, and nothing runs."""

from __future__ import annotations

import csv
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from agrekd_ray.cli import app
from agrekd_ray.config import Job, check_job
from agrekd_ray.data import SELECT, open_dataset
from agrekd_ray.distillation import TeacherHost
from agrekd_ray.errors import AgrekdError, CheckpointError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.models import (
    Classifier,
    Manifest,
    Model,
    Preprocessing,
    behind,
    build,
    load,
    read_manifest,
    save,
)
from agrekd_ray.models.checkpoint import WEIGHTS
from agrekd_ray.models.classifier import seen_shape
from agrekd_ray.models.program import Program, read_program
from agrekd_ray.teachers import DfrSettings, Pool, draw, retrain_head
from agrekd_ray.teachers.imported import Source, import_teacher
from agrekd_ray.training import evaluate, predict
from tests.shared import pool_of

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}
CONVNEXT = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 2, "image_size": 8}


class Small(nn.Module):
    """A network of somebody else, with a view and a constant of its own."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.out = nn.Linear(4 * 64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(images)).relu() * self.scale
        return self.out(features.view(features.shape[0], -1))


def export(path: Path, model: nn.Module, example: torch.Tensor, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    return resnet18(num_classes=10).eval()


RESNET = Model(name="torchvision/resnet18")


def test_a_state_dict_becomes_a_teacher(make_job: Any, tmp_path: Path, resnet: nn.Module) -> None:
    data = open_dataset(make_job().data)
    torch.save({"state_dict": resnet.state_dict(), "epoch": 9}, tmp_path / "mine.pt")
    images = data.inputs(data.splits[SELECT][:4], None)
    for name, preprocess in (
        ("plain", None),
        ("shown", {"size": 32, "mean": [0.5] * 3, "std": [2.0] * 3}),
    ):
        model = Model.model_validate({**RESNET.model_dump(), "preprocess": preprocess})
        folder = import_teacher(Source(tmp_path / "mine.pt", model), data, tmp_path, name).folder
        assert folder == tmp_path / "imported" / name
        teacher, manifest = load(folder)
        assert manifest.classes == data.classes
        assert manifest.made_by["file"] == "mine.pt"
        shown = images
        if preprocess:
            shown = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
            shown = (shown - 0.5) / 2
        with torch.inference_mode():
            assert torch.allclose(teacher(images), resnet(shown), atol=1e-5)
    with pytest.raises(CheckpointError, match="one of this name already"):
        import_teacher(Source(tmp_path / "mine.pt", RESNET), data, tmp_path, "plain")


def test_classes_in_another_order_are_put_right(
    make_job: Any, tmp_path: Path, resnet: nn.Module
) -> None:
    data = open_dataset(make_job().data)
    save_file(resnet.state_dict(), tmp_path / "mine.safetensors")
    order = tuple(reversed(data.classes))
    source = Source(tmp_path / "mine.safetensors", RESNET, order)
    teacher, _ = load(import_teacher(source, data, tmp_path, "reversed").folder)
    images = data.inputs(data.splits[SELECT][:4], None)
    with torch.inference_mode():
        assert torch.allclose(teacher(images), resnet(images).flip(1), atol=1e-5)
    with pytest.raises(CheckpointError, match="its classes are 'a', 'b'"):
        import_teacher(Source(source.path, RESNET, ("a", "b")), data, tmp_path, "other")


def _nan(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "fc.bias": torch.full((10,), torch.nan)}


def _fewer(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "fc.bias": torch.ones(4), "fc.weight": torch.ones(4, 512)}


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        ("", dict, "does not say what it belongs to"),
        ("torchvision/resnet50", dict, "weights of another architecture"),
        ("torchvision/resnet18", _nan, "NaN"),
        ("torchvision/resnet18", _fewer, "a head of 4 classes (fc), but 10 are wanted"),
        ("torchvision/resnet18", lambda s: {k: s[k] for k in list(s)[9:]}, "without conv1.weight"),
        ("torchvision/resnet18", lambda s: {**s, "more": s["fc.bias"]}, "unknown: more"),
        ("torchvision/resnet81", dict, "did you mean"),
        ("cnn", dict, "weights of another architecture"),
        ("torchvision/resnet18", lambda s: {"model": _Payload()}, "can run code"),
    ],
)
def test_what_cannot_teach_says_why(
    make_job: Any,
    tmp_path: Path,
    resnet: nn.Module,
    model: str,
    change: Callable[..., Any],
    words: str,
) -> None:
    data = open_dataset(make_job().data)
    torch.save(change(resnet.state_dict()), tmp_path / "mine.pt")
    with pytest.raises(AgrekdError) as caught:
        import_teacher(Source(tmp_path / "mine.pt", Model(name=model)), data, tmp_path, "mine")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "imported").exists()


class _Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("proof",)


@pytest.mark.parametrize("kind", ["vit", "convnextv2"])
def test_a_folder_of_transformers(make_job: Any, tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    data = open_dataset(make_job().data)
    args = VIT if kind == "vit" else CONVNEXT
    for classes in (10, 4):
        config = AutoConfig.for_model(kind, **args, num_labels=classes)
        published = AutoModelForImageClassification.from_config(config).eval()
        published.save_pretrained(tmp_path / f"{kind}-{classes}")
        if classes == 10:
            wanted = published
    shown = {"size": 16, "mean": [0.0] * 3, "std": [1.0] * 3} if kind != "vit" else None
    source = Source(
        tmp_path / f"{kind}-10", Model.model_validate({"name": "", "preprocess": shown})
    )
    teacher, manifest = load(import_teacher(source, data, tmp_path, kind).folder)
    assert manifest.model.name == f"transformers/{kind}"
    images = data.inputs(data.splits[SELECT][:4], None)
    if shown:
        images = nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = wanted(pixel_values=images).logits
        images = data.inputs(data.splits[SELECT][:4], None)
        assert torch.allclose(teacher(images), expected, atol=1e-5)
    with pytest.raises(AgrekdError, match="a head of 4 classes"):
        import_teacher(Source(tmp_path / f"{kind}-4", source.model), data, tmp_path, "four")
    wanted.base_model.save_pretrained(tmp_path / "headless")
    with pytest.raises(AgrekdError, match=r"without classifier\.(weight|bias)|a head of 2 classes"):
        import_teacher(Source(tmp_path / "headless", source.model), data, tmp_path, "headless")
    with pytest.raises(AgrekdError, match=r"no config\.json there"):
        import_teacher(Source(tmp_path, Model(name="")), data, tmp_path, "none")


# --- exported programs ---


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(4)
    return Small().eval()


def test_a_program_teaches_but_has_no_head(make_job: Any, tmp_path: Path, small: nn.Module) -> None:
    data = open_dataset(make_job().data)
    path = export(tmp_path / "small.pt2", small, torch.rand(2, 3, 8, 8))
    with pytest.raises(CheckpointError, match=r"can run code .* --trust"):
        import_teacher(Source(path, Model(name="")), data, tmp_path, "small")
    source = Source(path, Model(name=""), trusted=True)
    folder = import_teacher(source, data, tmp_path, "small").folder
    path.unlink()
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", WEIGHTS]
    ids = data.splits["train"][:50]
    with torch.inference_mode():
        expected = small(data.inputs(ids, None))
        assert torch.allclose(load(folder)[0](data.inputs(ids, None)), expected, atol=1e-6)
    host = TeacherHost({"small": folder}, data)  # in another memory layout
    assert torch.allclose(host._compute(["small"], 0, ids)["small"], expected, atol=1e-5)
    with pytest.raises(AgrekdError, match="no last layer of its own"):
        retrain_head(load(folder)[0], data, DfrSettings(), seed=0)


def test_programs_of_transformers_keep_their_answers(tmp_path: Path) -> None:
    args = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Model(name="transformers/bert", args={**args, "intermediate_size": 32})
    bert = build(model, (12,), 2, seed=0).eval()
    ids = torch.randint(0, 50, (5, 12))
    path = export(tmp_path / "bert.pt2", bert, ids[:2])
    with torch.inference_mode():
        assert torch.allclose(read_program(path)(ids), bert(ids), atol=1e-6)


class _TwoOut(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((1, 2)), images.sum((1, 2))


def _training(path: Path) -> Path:
    return export(path, Small().train(), torch.rand(2, 3, 8, 8))


def _dropout(path: Path) -> Path:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10)).train()
    return export(path, model, torch.rand(2, 3, 8, 8))


def _of_no_use(path: Path) -> Path:
    path.write_bytes(b"PK nothing")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: export(p, _TwoOut(), torch.rand(2, 3, 8, 8)), "gives 2 outputs"),
        (lambda p: export(p, Small(4).eval(), torch.rand(2, 3, 8, 8)), "the data have 10 classes"),
        (
            lambda p: export(p, Small().eval(), torch.rand(2, 3, 8, 8), dynamic=False),
            "dynamic batch dimension",
        ),
        (_training, "model.eval()"),
        (_dropout, "model.eval()"),
        (_of_no_use, "no program that torch.export.save"),
        (lambda p: p, "no such file"),
    ],
)
def test_programs_that_cannot_teach(
    make_job: Any, tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    data = open_dataset(make_job().data)
    source = Source(make(tmp_path / "x.pt2"), Model(name=""), trusted=True)
    with pytest.raises(CheckpointError) as caught:
        import_teacher(source, data, tmp_path, "x")
    assert words in str(caught.value)


def test_reading_a_program_can_run_code_and_a_checkpoint_of_one_cannot(
    make_job: Any, tmp_path: Path, small: nn.Module, monkeypatch: Any
) -> None:
    """Why `--trust` is asked for, and why only once."""
    monkeypatch.chdir(tmp_path)
    data = open_dataset(make_job().data)
    path = export(tmp_path / "small.pt2", small, torch.rand(2, 3, 8, 8))
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(evil, "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            if "sample_inputs" in entry.filename:
                buffer = tmp_path / "inputs"
                torch.save(_Payload(), buffer)
                content = buffer.read_bytes()
            after.writestr(entry, content)
    with pytest.raises(CheckpointError, match="--trust"):
        import_teacher(Source(evil, Model(name="")), data, tmp_path, "evil")
    assert not Path("proof").exists()
    import contextlib

    with contextlib.suppress(CheckpointError):
        import_teacher(Source(evil, Model(name=""), trusted=True), data, tmp_path, "evil")
    assert Path("proof").exists()  # torch.export.load did that
    source = Source(path, Model(name=""), trusted=True)
    folder = import_teacher(source, data, tmp_path, "small").folder
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    load(folder)


@pytest.mark.parametrize(
    "target", ["aten.from_file.default", "os.system", "aten.__class__.default", "eval", "", "aten"]
)
def test_a_checkpoint_of_a_program_calls_operators_alone(target: str, small: nn.Module) -> None:
    graph = {
        "weights": [],
        "input": "x",
        "output": "y",
        "calls": [["y", target, [{"of": "x"}], {}, []]],
    }
    with pytest.raises(CheckpointError, match="the program calls"):
        Program(graph, {})


def test_a_damaged_program(make_job: Any, tmp_path: Path, small: nn.Module) -> None:
    import hashlib

    data = open_dataset(make_job().data)
    path = export(tmp_path / "small.pt2", small, torch.rand(2, 3, 8, 8))
    source = Source(path, Model(name=""), trusted=True)
    folder = import_teacher(source, data, tmp_path, "small").folder
    for text in ("", "{", "[]", "{}", '{"weights": [], "input": "x", "output": "y", "calls": []}'):
        save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"program": text})
        values = json.loads((folder / "manifest.json").read_text())
        values["weights"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        values.pop("sha256", None)  # as if it had been made by hand
        (folder / "manifest.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match="damaged program"):
            load(folder)


# --- ensembles ---


def strangers(data: Any, place: Path) -> list[str]:
    """Untrained teachers of three architectures, each with an image size of its own."""
    shown = {"size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    models = [
        {"name": "transformers/vit", "args": VIT},
        {"name": "torchvision/resnet18", "small_stem": True},
        {"name": "transformers/convnextv2", "args": CONVNEXT, "preprocess": shown},
    ]
    folders = []
    for number, values in enumerate(models):
        model = Model.model_validate(values)
        folder = place / str(number)
        manifest = Manifest(model, data.shape, data.classes, f"f{number}", "unknown")
        save(folder, build(model, data.shape, 10, seed=number), manifest)
        folders.append(str(folder))
    return folders


def _distil(make_job: Callable[..., Job], tmp_path: Path, guidance: str) -> Any:
    data = open_dataset(make_job().data)
    job = make_job(
        **{
            "ensemble.size": 0,
            "ensemble.debiased": 0,
            "ensemble.checkpoints": strangers(data, tmp_path / "own"),
            "methods": ["aver", "agre_kd", "teacher_vote"],
            "guidance": guidance,
        }
    )
    from rich.console import Console

    outcomes = run_job(RunFolder.create(job), Console(quiet=True))
    assert [outcome.method for outcome in outcomes] == ["aver", "agre_kd", "teacher_vote"]
    return outcomes


def test_a_heterogeneous_ensemble_teaches_one_student(make_job: Any, tmp_path: Path) -> None:
    outcomes = _distil(make_job, tmp_path, "local")
    for outcome in outcomes[:2]:
        weights = outcome.history[-1].weights
        assert all(len(of) == 3 for of in weights.values())


def test_where_all_teachers_are_handed_in_there_is_no_pool(make_job: Any, tmp_path: Path) -> None:
    data = open_dataset(make_job().data)
    first, second, third = map(Path, strangers(data, tmp_path / "own"))
    for folder, name in ((first, "good"), (second, "other/good"), (third, "known")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        folder.rename(tmp_path / name)
    ensemble = {
        "checkpoints": [str(tmp_path / name) for name in ("good", "other/good")],
        "biased": str(tmp_path / "known"),
    }
    raw = {
        "name": "handed",
        "data": make_job().model_dump(mode="json")["data"],
        "ensemble": ensemble,
        "student": {"model": {"name": "cnn"}},
        "methods": ["agre_kd"],
        "guidance": "local",
    }
    job, faults = check_job(raw)
    assert job is not None, faults
    drawn = draw(job.ensemble, job.teachers)
    assert (drawn.teachers, drawn.biased, drawn.recipes) == (("good", "good-2"), "known", {})
    assert {drawn.kind(name) for name in (*drawn.teachers, drawn.biased)} == {"own"}
    training = job.student.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (15, 64, 0.05)
    _, faults = check_job({**raw, "ensemble": {"checkpoints": ensemble["checkpoints"]}})
    assert [fault.key for fault in faults] == ["teachers"]  # which draw the biased model


@pytest.mark.chaos
def test_a_heterogeneous_ensemble_teaches_through_the_fleet(
    make_job: Any, tmp_path: Path, ray_session: Any
) -> None:
    live = _distil(make_job, tmp_path / "live", "live")
    local = _distil(make_job, tmp_path / "local", "local")
    for one, other in zip(live, local, strict=True):
        assert one.splits["test"].accuracy == pytest.approx(other.splits["test"].accuracy, abs=0.02)


def test_a_biased_model_of_another_architecture(make_job: Any) -> None:
    job = make_job(**{"ensemble.biased_model": {"name": "cnn", "args": {"width": 3}}})
    _, folders, drawn = pool_of(job)
    plain = draw(make_job().ensemble, job.teachers)
    assert drawn.teachers == plain.teachers
    recipe = drawn.recipes[drawn.biased]
    assert (recipe.kind, recipe.training) == ("erm", job.teachers.training)
    assert recipe.seed == plain.recipes[plain.biased].seed
    assert read_manifest(folders[drawn.biased]).model == job.ensemble.biased_model
    same = make_job(**{"ensemble.biased_model": job.teachers.model.model_dump()})
    assert draw(same.ensemble, same.teachers).biased == plain.biased


def test_first_weights_are_part_of_what_makes_a_teacher(make_job: Any, tmp_path: Path) -> None:
    network = build(make_job().teachers.model, (3, 8, 8), 10, seed=1)
    prints = []
    for number in range(2):
        with torch.no_grad():
            network.head.bias += 1
        torch.save(network.state_dict(), tmp_path / "first.pt")
        os.utime(tmp_path / "first.pt", (number, number))
        job = make_job(**{"teachers.model.weights": str(tmp_path / "first.pt")})
        pool = Pool(job.teachers.store, open_dataset(job.data))
        prints.append(pool.fingerprint(draw(job.ensemble, job.teachers).recipes["erm-0"]))
    plain = make_job()
    pool = Pool(plain.teachers.store, open_dataset(plain.data))
    prints.append(pool.fingerprint(draw(plain.ensemble, plain.teachers).recipes["erm-0"]))
    assert len(set(prints)) == 3


# --- the command line ---


@pytest.fixture
def job_file(make_job: Any, tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(make_job().model_dump(mode="json")))
    return path


def agrekd(*words: object) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, words)))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_import_list_and_evaluate(
    job_file: Path, make_job: Any, tmp_path: Path, resnet: nn.Module, monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    save_file(resnet.state_dict(), tmp_path / "mine.safetensors")
    words = ["teachers", "import", tmp_path / "mine.safetensors", "--job", job_file]
    words += ["--name", f"mine-{os.getpid()}", "--model", "torchvision/resnet18"]
    told = agrekd(*words, "--preprocess", "{size: 16, mean: [0, 0, 0], std: [1, 1, 1]}")
    folder = Path(told.splitlines()[0])
    assert f"ensemble.checkpoints=[{folder}]" in told
    assert read_manifest(folder).model.preprocessing is not None
    before = agrekd("teachers", "list", job_file)
    assert folder.name in before
    assert "torchvision/resnet18" in before
    data, folders, drawn = pool_of(make_job())
    listed = agrekd("teachers", "list", job_file)
    assert all(name in listed for name in drawn.teachers)
    assert str(folders["dfr-0"] if "dfr-0" in folders else next(iter(folders.values()))) in listed
    shown = agrekd("teachers", "evaluate", job_file, "-o", tmp_path / "figures.csv")
    assert "bias-conflicting" in shown
    assert "evaluate 0/" in shown
    assert folder.name in shown.partition("imported beside them, and evaluated by name: ")[2]
    with (tmp_path / "figures.csv").open() as file:
        assert {row["teacher"] for row in csv.DictReader(file)} == {*drawn.teachers, drawn.biased}
    used = [*drawn.teachers, drawn.biased, folder.name]
    shown = agrekd("teachers", "evaluate", job_file, *used, "-o", tmp_path / "figures.csv")
    assert f"{folder.name}: " in shown.partition("accuracy in %")[0]
    with (tmp_path / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    mine = [r for r in rows if r["teacher"] == folder.name and r["split"] == "test"]
    expected = evaluate(load(folder)[0], data, "test")
    figures = {row["group"]: float(row["accuracy"]) for row in mine}
    assert figures == pytest.approx({"": expected.accuracy, **expected.groups})
    assert {row["teacher"] for row in rows} >= {*drawn.teachers, drawn.biased, folder.name}
    only = agrekd("teachers", "evaluate", job_file, folder.name)
    assert drawn.teachers[0] not in only
    with pytest.raises(AgrekdError, match="no teacher nobody"):
        agrekd("teachers", "evaluate", job_file, "nobody")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "cnn", "--model-args", "width"], "width"),
        (["--model", "cnn", "--model-args", "width=010"], "args.width = 010"),
        (["--model", "cnn", "--preprocess", "imagnet"], "preprocess"),
        (["--model", "cnn", "--preprocess", "{mean: [010]}"], "preprocess.mean.0 = 010"),
        (["--model", "cnn", "--preprocess", "{size: [}"], "no valid YAML"),
        (["--model", "cnn", "--name", "../up"], "letters, digits"),
        (["--model", "cnn"], "no such file of weights"),
    ],
)
def test_import_says_what_is_wrong(
    job_file: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(AgrekdError) as caught:
        agrekd(
            *("teachers", "import", tmp_path / "none.pt", "--job", job_file, "--name", "x"), *words
        )
    assert said in str(caught.value)


@pytest.mark.parametrize(("size", "most"), [(None, 512), (512, 21), (4096, 1)])
def test_a_batch_is_as_large_as_what_its_network_sees_lets_it_be(
    make_job: Callable[..., Job], size: int | None, most: int
) -> None:
    seen: list[torch.Size] = []

    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.shape)
            return images.mean((2, 3))

    model = behind(
        Classifier(Network(), nn.Identity()),
        Preprocessing(size=size, mean=(0.0,) * 3, std=(1.0,) * 3),
    )
    data = open_dataset(make_job().data)
    predict(model, data, data.splits[SELECT][:25])
    assert [len(images) for images in np.split(np.arange(25), range(most, 25, most))] == [
        shape[0] for shape in seen
    ]
    assert {shape[1:] for shape in seen} == {seen_shape(model, data.shape)}
