"""Texts on the terminal and in files: shown as they are, and UTF-8 whatever the locale says."""

from __future__ import annotations

import ast
import codecs
import io
import json
import locale
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

import agrekd_ray
from agrekd_ray import terminal
from agrekd_ray.experiment.display import Display
from agrekd_ray.files import DamagedError, read_text
from agrekd_ray.report import tables
from agrekd_ray.report.settings_plots import (
    Point,
    parallel_coordinates,
    parameter_effects,
    worst_against_accuracy,
)
from agrekd_ray.report.style import new_figure, save
from agrekd_ray.settings import absolute
from agrekd_ray.terminal import in_utf8, prepare_streams, screen

from .conftest import TINY, merged

SOURCES = sorted(Path(agrekd_ray.__file__).parent.rglob("*.py"))
ODD = r"lr:x:1 :cat: [red]a[/red] [/] [bold]x \[b] [link=x] {b} %s $\tau_0^2$"
"""Markup, codes of emoji, formats and mathematics, to all of which a name is just a name."""


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    """All calls in a file by the name that is called; a method's has a dot before it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), call) for call in calls]


def _is_text_of_the_locale(name: str, call: ast.Call) -> bool:
    last = name.rpartition(".")[2]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if {"text", "universal_newlines"} & {*given} and name.startswith("subprocess."):
        return True
    if last in ("read_text", "write_text"):
        return last != name
    modes = [*call.args, *([given["mode"]] if "mode" in given else [])]
    return last in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and any(
        isinstance(mode, ast.Constant) and re.fullmatch(r"[rwax]\+?t?", str(mode.value))
        for mode in modes
    )


def test_no_file_is_read_or_written_by_the_locale() -> None:
    found = [
        f"{path.name}:{call.lineno}"
        for path in SOURCES
        for name, call in _calls(path)
        if _is_text_of_the_locale(name, call)
    ]
    assert found == []


def test_one_place_makes_consoles() -> None:
    makers = {path.name for path in SOURCES for name, _ in _calls(path) if name.endswith("Console")}
    assert makers == {"terminal.py"}


def test_every_sign_of_ours_has_a_near_one() -> None:
    signs: set[str] = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        docs = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # What is written as an escape is looked for, not shown.
                signs |= set() if id(node) in docs else set(node.value) & set(text)
    signs = {sign for sign in signs if not sign.isascii()}
    assert len(signs) > 10
    assert signs - {*terminal._SIGNS} == set()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "euc_jp", "utf-8"])
def test_a_terminal_without_a_sign_gets_another(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    signs = "".join(terminal._SIGNS)
    console = screen(width=200)
    table = Table(title=signs, box=SIMPLE_HEAD)
    table.add_column(signs)
    table.add_row(f"{signs} Vögel 鳥")
    console.print(table)
    print(signs)
    for _ in track(range(2), description=signs, console=screen(force_terminal=True)):
        pass
    stream.flush()
    shown = content.getvalue().decode(encoding)
    names = {"ascii": r"V\xf6gel \u9ce5", "utf-8": "Vögel 鳥", "euc_jp": "Vögel 鳥"}
    assert names.get(encoding, r"Vögel \u9ce5") in shown
    assert ("±" in shown) == (encoding != "ascii")
    assert ("+-..." in shown) == (encoding == "ascii")


def test_the_name_of_a_file_is_printed_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    screen().print(os.fsdecode(b"V\xf6gel"))
    stream.flush()
    assert content.getvalue() == b"V\xf6gel\n"


@pytest.mark.parametrize(
    ("code", "utf8_mode", "again"),
    [("ISO-8859-1", 0, True), ("eucJP", 0, True), ("UTF-8", 0, False), ("ISO-8859-1", 1, False)],
)
def test_another_locale_starts_the_program_anew(
    code: str, utf8_mode: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    others = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    flags = SimpleNamespace(**{**others, "utf8_mode": utf8_mode})
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    monkeypatch.setattr(locale, "getencoding", lambda: code)
    monkeypatch.setattr(sys, "flags", flags)
    monkeypatch.setattr(sys, "orig_argv", ["python", "agrekd", "run", "x"])
    monkeypatch.setattr(os, "environ", {})
    in_utf8()
    in_utf8()  # once only
    assert started == [(sys.executable, [sys.executable, "agrekd", "run", "x"])] * again
    assert os.environ == ({"PYTHONUTF8": "1", "PYTHONIOENCODING": code} if again else {})


@pytest.fixture(scope="module")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody whose locale is Latin-1."""
    if not shutil.which("localedef"):
        pytest.skip("no localedef, which makes locales")
    folder = tmp_path_factory.mktemp("locales")
    name = "en_US.ISO-8859-1"
    words = ["localedef", "-f", "ISO-8859-1", "-i", "en_US", str(folder / name)]
    if subprocess.run(words, capture_output=True).returncode > 1:
        pytest.skip("localedef has no sources of locales")
    return {"LOCPATH": str(folder), "LC_ALL": name}


CODE = """
import json, locale, os, sys
from agrekd_ray.terminal import in_utf8, prepare_streams
in_utf8()
prepare_streams()
print(json.dumps([locale.getencoding(), sys.getfilesystemencoding(), sys.stdout.encoding]))
print(os.listdir(sys.argv[1]), sys.argv[2], "–", open(sys.argv[1] + "/Vögel", "w").encoding)
"""


def test_a_latin1_locale(latin1: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "Vögel").touch()
    script = tmp_path.with_suffix(".py")
    script.write_text(CODE, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONIO", "PYTHONU"))}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "Vögel"],
        env={**environment, **latin1},
        capture_output=True,
        check=True,
    )
    where, files = done.stdout.decode("latin-1").splitlines()
    assert json.loads(where)[:2] == ["ISO-8859-1", "utf-8"]
    assert codecs.lookup(json.loads(where)[2]).name == "iso8859-1"
    assert files.lower() == "['vögel'] vögel - utf-8"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: Vögel\r\n".encode(), None),
        ("a: Vögel\n".encode("utf-8-sig"), None),
        ("a: 1\nb: Vögel\n".encode("latin-1"), "not UTF-8 in line 2"),
        ("a: Vögel\n".encode("utf-16"), "is UTF-16"),
        ("a: Vögel\n".encode("utf-16-be"), "null characters, as UTF-16|not UTF-8"),
        ("a: x\n".encode("utf-16-le"), "null characters, as UTF-16"),
        ("a: Vögel\n".encode("utf-32"), "UTF-16|null"),
    ],
)
def test_a_text_is_utf8(tmp_path: Path, content: bytes, said: str | None) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    if said is None:
        assert read_text(path) == "a: Vögel\n"
        return
    with pytest.raises(DamagedError, match=said) as caught:
        read_text(path)
    assert "\n" not in str(caught.value)


def test_a_path_of_other_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        absolute(Path(os.fsdecode(b"/tmp/V\xf6gel")))


def test_a_text_is_shown_as_it_is() -> None:
    console = screen(file=io.StringIO(), width=200)
    table = Table(title=ODD)
    table.add_column(ODD)
    table.add_row(ODD)
    console.print(table)
    console.print(ODD, style="red")
    assert console.file.getvalue().count(ODD) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_progress_line_shows_names_as_they_are(is_terminal: bool) -> None:
    console = screen(file=io.StringIO(), width=300, force_terminal=is_terminal, color_system=None)
    with Display(console) as display:
        display.stage("train", 2, "epochs")
        display.advance(ODD, 2)
        display.note(ODD, style="yellow")
    assert console.file.getvalue().count(ODD) >= 2  # type: ignore[attr-defined]


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    name = r"$\frac{ a_b^2$"  # as a formula it is an error
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot([1, 10, 1000], [1, 2, 3], label=name)
    axes.set_xscale("log")
    axes.set_yticks([1, 2], [name, name])
    axes.set_title(name)
    figure.legend()
    save(figure, tmp_path / "some.png")
    powers = [tick.label1 for tick in axes.xaxis.get_major_ticks()]
    assert all(label.get_parse_math() for label in powers if label.get_text())
    scores = {"test/worst_group_accuracy": 0.3, "test/accuracy": 0.5}
    points = [Point(name, number, {name: number}, scores) for number in range(3)]
    for draw in (worst_against_accuracy, parameter_effects, parallel_coordinates):
        drawn = draw(points)
        assert drawn is not None
        save(drawn, tmp_path / "some.png")


def test_a_cell_in_markdown_means_nothing_but_itself() -> None:
    cells = [r"a|b\c", "`x` *y* <b>", "[x](y)", "two\nlines", "_all_ val_loss", "+1 [-2, 3]", "$x$"]
    shown = [
        r"a\|b\\c", r"\`x\` \*y\* \<b>",
        r"[x\](y)", "two lines", r"\_all\_ val_loss", "+1 [-2, 3]", r"\$x\$",
    ]  # fmt: skip
    found = tables.Table("", tables.texts({"name": "a|b"}, [[cell] for cell in cells]))
    table = tables.markdown(found).splitlines()
    assert table == [r"| a\|b |", "| :--- |", *(f"| {cell} |" for cell in shown)]


def test_a_run_where_nothing_is_ascii_but_the_terminal(tmp_path: Path) -> None:
    """And whose store's address is relative: it is resumed from another folder."""
    place, elsewhere = tmp_path / "lr:x:1 what? [red] Vögel 100%", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    changes = {
        "data.train": 128,
        "data.val": 160,
        "teachers.count": 2,
        "teachers.training.epochs": 1,
        "ensemble": {"size": 2, "debiased": 0},
        "student.training.epochs": 1,
        "guidance": "local",
        "tracking": {"uri": "sqlite:///rel.db?timeout=30"},
    }
    job = "# Vögel\n" + yaml.safe_dump(merged(TINY, changes))
    (place / "tiny.yaml").write_text(job, encoding="utf-8-sig")

    def agrekd(where: Path, *words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agrekd_ray", *map(str, words)],
            cwd=where,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=True,
        )
        return done.stdout.decode("ascii")

    shown = str(place).encode("ascii", "backslashreplace").decode()
    assert f"results     {shown}/runs/tiny/" in agrekd(place, "run", "tiny.yaml")
    (folder,) = (path for path in (place / "runs/tiny").iterdir() if not path.is_symlink())
    with closing(sqlite3.connect(place / "rel.db")) as store:
        before = store.execute("select run_uuid from runs").fetchall()
        assert len(before) == 2
        agrekd(elsewhere, "resume", folder)
        assert store.execute("select run_uuid from runs").fetchall() == before
    assert list(elsewhere.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {place.name, elsewhere.name}
    assert {path.name for path in place.iterdir()} == {"tiny.yaml", "runs", "rel.db"}
