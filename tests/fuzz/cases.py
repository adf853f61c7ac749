"""One case: a copy of valid files, one of them damaged, and what a user would do with them."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest

from agrekd_ray.errors import AgrekdError

from .damage import BYTES, EXECUTED, VALUES, Damage

SECONDS = 100
"""After so long a case hangs; on an idle machine the slowest takes three seconds."""
BYTES_MORE = 3 << 30
"""A case may take so much more memory; a number in a file must not decide how much."""


class HangError(BaseException):
    """Not an `Exception`, so that nobody who is tolerant takes it for a fault of the files."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A kind of files.

    Attributes:
        name: of the kind.
        make: writes valid ones into the working folder; returns what is true of them.
        use: does what a user would do with the damaged one, or all, and asserts that what comes of
            it is right.
        targets: patterns of the files that are damaged.
        changes: patterns of files that using them may change.
        damages: further kinds of damage.
        again: whether the folder of a damaged file is made again as a whole.
    """

    name: str
    make: Callable[[], Any]
    use: Callable[[Random | None, Any, Path], None]
    targets: Sequence[str]
    changes: Sequence[str] = ()
    damages: Sequence[Damage] = field(default_factory=tuple)
    again: bool = False

    def __str__(self) -> str:
        return self.name


def targets(subject: Subject, place: Path) -> list[Path]:
    """The files that may be damaged."""
    return sorted(
        path
        for pattern in subject.targets
        for path in place.glob(pattern)
        if path.is_file() and not path.is_symlink()
    )


def run(subject: Subject, seed: int, whole: Path, truth: Any, place: Path) -> None:
    """Run a case in the working folder, which is empty.

    Args:
        subject: what is damaged.
        seed: of the damage.
        whole: folder of the valid files.
        truth: what `Subject.make` said of them.
        place: the working folder.
    """
    rng = Random(f"{subject.name} {seed}")
    shutil.copytree(whole, place, symlinks=True, dirs_exist_ok=True)
    target = rng.choice(targets(subject, place))
    done = None
    while done is None:
        groups = [BYTES, VALUES, *([subject.damages] * 2 if subject.damages else [])]
        done = rng.choice(rng.choice(groups))(rng, target)
    story = f"{subject.name}, seed {seed}: {target.relative_to(place)}: {done}; kept in {place}"
    print(story)
    before = _contents(place)
    said = "a right result"
    try:
        with _watched():
            subject.use(rng, truth, target)
    except AgrekdError as error:
        said = str(error).strip()
    except HangError:
        pytest.fail(f"{story}: not done after {SECONDS} s")
    assert said, f"{story}: an error without a word"
    assert "Traceback" not in said, f"{story}: {said}"
    after = _contents(place)
    changed = [
        name
        for name, content in before.items()
        if after.get(name) != content
        and not any(fnmatch(name, pattern) for pattern in subject.changes)
        and name != str(target.relative_to(place))
        and not (subject.again and (place / name).is_relative_to(target.parent))
    ]
    assert not changed, f"{story}: damaged {changed}"
    assert not (place / EXECUTED).exists(), f"{story}: ran a pickle"
    beside = {path.name for path in place.parent.iterdir()} - {place.name}
    assert not beside, f"{story}: wrote outside: {beside}"


def _contents(folder: Path) -> dict[str, str]:
    """Digest by path of every file; links by where they go."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = Path(root, name)
            if path.is_symlink():
                found[str(path.relative_to(folder))] = str(path.readlink())
            elif path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(folder))] = digest
    return found


@contextmanager
def _watched() -> Iterator[None]:
    """No network, and an end to what hangs or takes all memory."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise HangError

    def refuse(*args: Any) -> None:
        raise OSError("the network is not there")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc").is_dir() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, ring)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        if pages:
            limit = pages * resource.getpagesize() + BYTES_MORE
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            signal.signal(signal.SIGALRM, before)
