"""Malformed files: each is a named error or a right result; no traceback, no hang, no damage.

A case is named by its kind and seed; that alone repeats it:
`pytest -m "fuzz or not fuzz" "tests/fuzz/test_fuzz.py::test_many_files[record-1017]"`.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import data_files, report_files, settings_files, stored_files
from .cases import Subject, run, targets

SUBJECTS: dict[Subject, tuple[int, int]] = {
    **settings_files.SUBJECTS,
    **stored_files.SUBJECTS,
    **data_files.SUBJECTS,
    **report_files.SUBJECTS,
}
"""How many cases of each: quick ones, and all others."""
FEW = [(subject, seed) for subject, (few, _) in SUBJECTS.items() for seed in range(few)]
MANY = [
    (subject, seed) for subject, (_, many) in SUBJECTS.items() for seed in range(1000, 1000 + many)
]

Case = Callable[[Subject, int], None]
Whole = Callable[[Subject], tuple[Path, Any]]


def name_of(value: Any) -> str:
    return str(value)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hugging Face hub gives up at once."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Folder of a kind's valid files, made once, and what is true of them."""
    made: dict[str, tuple[Path, Any]] = {}

    def find(subject: Subject) -> tuple[Path, Any]:
        if subject.name not in made:
            folder, before = tmp_path_factory.mktemp(f"{subject.name}-whole"), Path.cwd()
            os.chdir(folder)
            try:
                made[subject.name] = folder, subject.make()
            finally:
                os.chdir(before)
        return made[subject.name]

    return find


@pytest.fixture
def case(
    whole: Whole,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    offline: None,
) -> Case:
    """Runs a case; its folder is kept where it fails."""

    def go(subject: Subject, seed: int) -> None:
        files, truth = whole(subject)
        place = tmp_path_factory.mktemp(f"{subject.name}-{seed}") / "place"
        place.mkdir()
        monkeypatch.chdir(place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(subject, seed, files, truth, place)
        monkeypatch.chdir(files)
        shutil.rmtree(place.parent)

    return go


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(subject, marks=[] if few else [pytest.mark.fuzz])
        for subject, (few, _) in SUBJECTS.items()
    ],
    ids=name_of,
)
def test_undamaged_files_are_right(
    subject: Subject,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: None,
) -> None:
    files, truth = whole(subject)
    shutil.copytree(files, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(tmp_path / "place")
    for target in targets(subject, Path.cwd()):
        subject.use(None, truth, target)


@pytest.mark.parametrize(("subject", "seed"), FEW, ids=name_of)
def test_a_damaged_file(case: Case, subject: Subject, seed: int) -> None:
    case(subject, seed)


@pytest.mark.fuzz
@pytest.mark.parametrize(("subject", "seed"), MANY, ids=name_of)
def test_many_damaged_files(case: Case, subject: Subject, seed: int) -> None:
    case(subject, seed)
