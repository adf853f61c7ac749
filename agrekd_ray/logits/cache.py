"""The folder of all records: a folder a teacher, a file a view."""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from agrekd_ray.data import TRAIN, Samples
from agrekd_ray.files import (
    Identity,
    exists,
    identity,
    replacing,
)
from agrekd_ray.logits.ahead import ReadAhead, read_ahead
from agrekd_ray.logits.features import Head, Headed, Logits, column_of, mapped
from agrekd_ray.logits.forms import Recorded
from agrekd_ray.logits.record import Key, OutputSettings, cannot_write, read_record, write_record
from agrekd_ray.logits.remote import Remote, bring
from agrekd_ray.logits.together import side_by_side
from agrekd_ray.logits.writer import LogitsWriter
from agrekd_ray.models import read_manifest
from agrekd_ray.settings import Numbers, fingerprint
from agrekd_ray.training import Column

MANIFEST = "key.json"
MAPPED = 4096
"""Records that a process keeps mapped; the kernel allows some 65,000 maps a process."""


class LogitsCache:
    """The records that one job reads and writes.

    Where several teachers have one backbone, its features may be recorded in place of each one's
    logits, which its head then makes of them (`OutputSettings.features`); what is found either way
    is read.

    Args:
        settings: where they are.
        checkpoints: folders of the teachers, by name.
        samples: the data set.
        numbers: that the teachers' forward passes compute in.
    """

    def __init__(
        self,
        settings: OutputSettings,
        checkpoints: Mapping[str, Path],
        samples: Samples,
        numbers: Numbers,
    ) -> None:
        self._samples, self._records = samples, _Records(settings)
        self._together = settings.together
        ids = samples.splits[TRAIN]
        self.count = len(ids)
        """N, samples of a view."""
        self.row_of = np.full(samples.size, -1)
        """The row that a sample of the training split has in a record, by id; -1 for others."""
        self.row_of[ids] = np.arange(len(ids))
        self.keys = {
            name: _key(folder, settings, samples, numbers) for name, folder in checkpoints.items()
        }
        self._places = _places(settings, checkpoints, self.keys)
        self._read: OrderedDict[tuple[str, int], tuple[Logits, Path]] = OrderedDict()
        self._features: OrderedDict[tuple[str, int], Recorded] = OrderedDict()
        self._heads: dict[str, tuple[Tensor, Tensor]] = {}
        self._reading = Lock()  # of several threads

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the records that samples of the training split have."""
        return self.row_of[ids]

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """The samples of some rows."""
        return self._samples.splits[TRAIN][rows]

    def place(self, name: str) -> Place:
        """What is recorded of a teacher from now on."""
        return self._places[name][0]

    def path(self, name: str, view: int) -> Path:
        """Where a teacher's record of a view is, or will be."""
        paths = [self._records.path(place.key, view) for place in self._places[name]]
        return next(filter(exists, paths), paths[0])

    def read(self, name: str, view: int) -> Logits | None:
        """Logits [N, C] of a teacher and view; None where there is no sound record.

        The first look verifies the checksum, of large records once for all processes of a node;
        later ones cost nothing.

        Raises:
            CheckpointError: the head that makes logits of recorded features is damaged.
        """
        found = self._found(name, view)
        return None if found is None else found[0]

    def _found(self, name: str, view: int) -> tuple[Logits, Path] | None:
        found = self._read.get((name, view))
        if found is None:
            seen = self.seen(name, view)
            found = self._look(name, view)
            if found is None and self._brought(name, view, seen):
                found = self._look(name, view)
            if found is None:
                return None
        with self._reading:
            found = self._read.setdefault((name, view), found)
            self._read.move_to_end((name, view))
            while len(self._read) > MAPPED:
                self._read.popitem(last=False)
        return found

    def seen(self, name: str, view: int) -> dict[str, Identity]:
        """What is there now where a teacher's record of a view may be, by folder of the record."""
        keys = [place.key for place in self._places[name]]
        return {key.folder: identity(self._records.path(key, view)) for key in keys}

    def column(self, names: Sequence[str], view: int, logits: Sequence[Logits]) -> Column:
        """Logits of a view as one column [M, C].

        Where they are larger than memory, rows are read ahead; with `OutputSettings.together` out
        of a copy that has those of a sample side by side.

        Args:
            names: of M teachers.
            view: number of the view.
            logits: theirs, as `read` has them.

        Raises:
            RunError: the copy cannot be written.
        """
        ahead = read_ahead([*{id(rows): rows for rows in map(mapped, logits)}.values()])
        if ahead is not None and self._together:
            files = [file for name in names if (file := self.file(name, view)) is not None]
            copy = f"together-{fingerprint(*(folder for folder, _ in files))[:20]}-{view:05}.rows"
            logits, whole_NW = side_by_side(files[0][1].with_name(copy), logits)
            ahead = ReadAhead([whole_NW])
        return column_of(logits, self.row_of, ahead)

    def of(self, name: str, recorded_BD: np.ndarray) -> np.ndarray:
        """Logits [B, C] of a teacher out of rows as they are recorded of it from now on."""
        head = self.place(name).head
        if head is None:
            return recorded_BD
        return Headed(recorded_BD, *self._head(name, head))[:]

    def _look(self, name: str, view: int) -> tuple[Logits, Path] | None:
        for place in self._places[name]:
            logits: Logits | None = None
            if place.head is None:
                logits = self._records.read(place.key, view)
            elif (features := self._look_at_features(place.key, view)) is not None:
                logits = Headed(features, *self._head(name, place.head))
            if logits is not None:
                return logits, self._records.path(place.key, view)
        return None

    def _look_at_features(self, key: Key, view: int) -> Recorded | None:
        """The same object for all heads."""
        known = self._features.get((key.folder, view))
        known = self._records.read(key, view) if known is None else known
        if known is None:
            return None
        with self._reading:
            known = self._features.setdefault((key.folder, view), known)
            while len(self._features) > MAPPED:
                self._features.popitem(last=False)
        return known

    def _head(self, name: str, head: Head) -> tuple[Tensor, Tensor]:
        if name not in self._heads:
            self._heads[name] = head.load()
        return self._heads[name]

    def _brought(self, name: str, view: int, seen: Mapping[str, Identity]) -> bool:
        """Have a record brought from where others have it, if it is to be had.

        Args:
            name: of the teacher.
            view: number of the view.
            seen: files that are missing or damaged, by folder of the record.
        """
        return False

    def missing(self, views: Iterable[int]) -> list[tuple[str, int]]:
        """Teachers and views without a sound record."""
        return [
            (name, view) for view in views for name in self.keys if self.read(name, view) is None
        ]

    def begin(self, name: str, view: int) -> LogitsWriter:
        """A record in the making: what was left of an earlier one, or a new one.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        return self._records.begin(self.place(name).key, view)

    def write(self, name: str, view: int, logits_NC: Recorded) -> None:
        """Keep a record that was made whole.

        Args:
            name: of the teacher.
            view: number of the view.
            logits_NC: all rows [N, C].

        Raises:
            RunError: the disk is full or cannot be written.
        """
        self._records.write(self.keys[name], view, logits_NC)

    def file(self, name: str, view: int) -> tuple[str, Path] | None:
        """Folder and file of the record that `read` reads; None where there is no sound one."""
        found = self._found(name, view)
        return None if found is None else (found[1].parent.name, found[1])

    def bring(
        self, name: str, view: int, folder: str, seen: Identity, parts: Iterable[bytes]
    ) -> None:
        """Keep the file of a record that another node has.

        One process of a node does, others that want it meanwhile wait.

        Args:
            name: of the teacher.
            view: number of the view.
            folder: of the record, as `file` has it there.
            seen: the file that is missing or damaged here.
            parts: of the file, in order; not asked for where somebody else has brought it.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        for place in self._places[name]:
            if place.key.folder == folder:
                self._records.bring(place.key, view, seen, parts)

    def settle(self, views: Iterable[int]) -> None:
        """Wait until the object store has the records of some views that are here.

        Raises:
            RunError: it cannot be written.
        """
        self._records.settle((key, view) for view in views for key in self._every_key())

    def touch(self) -> None:
        """Note that the records are used today, for `prune`."""
        for key in self._every_key():
            _touch(self._records.path(key, 0).parent)

    def bytes(self) -> int:
        """Size of the finished records of these teachers."""
        folders = {self._records.path(key, 0).parent for key in self._every_key()}
        return sum(f.stat().st_size for folder in folders for f in folder.glob("view-*.arrow"))

    def _every_key(self) -> list[Key]:
        return [*{p.key.folder: p.key for places in self._places.values() for p in places}.values()]


class EvalLogits:
    """What models say to splits without augmentation, recorded like everything they say.

    Args:
        settings: where the records are.
        samples: the data set.
        numbers: that the models' forward passes compute in.
    """

    def __init__(self, settings: OutputSettings, samples: Samples, numbers: Numbers) -> None:
        self._settings = settings.model_copy(update={"dtype": "float32", "top_k": None})
        self._records = _Records(self._settings)
        self._samples, self._numbers = samples, numbers
        self._used: dict[str, Key] = {}

    def read(self, folder: Path, split: str) -> Tensor | None:
        """Logits [N, C], float32; None where they are not recorded.

        Args:
            folder: the model's checkpoint.
            split: name of the split.

        Raises:
            CheckpointError: there is no checkpoint.
        """
        key = self._key(folder, split)
        known = self._records.read(key, 0)
        if known is None:
            return None
        _touch(self._records.path(key, 0).parent)
        self._used[key.folder] = key
        return torch.from_numpy(np.array(known[:]))

    def write(self, folder: Path, split: str, logits_NC: Tensor) -> None:
        """Record logits [N, C]; other arguments as `read`.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        self._records.write(self._key(folder, split), 0, logits_NC.numpy())

    def settle(self) -> None:
        """Wait until the object store has what was read and written.

        Raises:
            RunError: it cannot be written.
        """
        self._records.settle((key, 0) for key in self._used.values())

    def _key(self, folder: Path, split: str) -> Key:
        return _key(folder, self._settings, self._samples, self._numbers, split)


@dataclass(frozen=True)
class Place:
    """What is recorded of a teacher.

    Attributes:
        key: of the record.
        head: that makes logits of it, where it holds the features of the backbone.
    """

    key: Key
    head: Head | None = None


def _places(
    settings: OutputSettings, checkpoints: Mapping[str, Path], keys: Mapping[str, Key]
) -> dict[str, tuple[Place, ...]]:
    """Where each teacher's records may be, the place for new ones first."""
    found: dict[str, tuple[Place, ...]] = {name: (Place(key),) for name, key in keys.items()}
    if not settings.features or settings.top_k is not None:
        return found
    sharing: dict[str, list[str]] = {}
    for name, folder in checkpoints.items():
        sharing.setdefault(read_manifest(folder).backbone, []).append(name)
    for backbone, names in sharing.items():
        heads = {name: Head.of(checkpoints[name], keys[name].weights) for name in names}
        first = next(iter(heads.values()))
        if len(names) < 2 or not backbone or first is None or None in heads.values():
            continue
        key = replace(
            keys[names[0]],
            teacher=f"features of {', '.join(names)}",
            weights=backbone,
            model={"features": keys[names[0]].model["name"]},
            classes=first.features,
        )
        smaller = key.bytes < len(names) * keys[names[0]].bytes
        for name in names:
            places = (Place(key, heads[name]), *found[name])
            found[name] = places if smaller else places[::-1]
    return found


class _Records:
    """Records by key and view: in this node's folder and, where there is one, an object store."""

    def __init__(self, settings: OutputSettings) -> None:
        self._store = settings.store
        self._remote = Remote(settings.remote, settings.store) if settings.remote else None

    def path(self, key: Key, view: int) -> Path:
        return self._store / key.folder / f"view-{view:05}.arrow"

    def read(self, key: Key, view: int) -> Recorded | None:
        path = self.path(key, view)
        seen, known = identity(path), read_record(path, key)
        if known is None and self._remote is not None and self._remote.fetch(path, seen):
            _describe(path, key)
            known = read_record(path, key)
        return known

    def begin(self, key: Key, view: int) -> LogitsWriter:
        path = self.path(key, view)
        _describe(path, key)
        return LogitsWriter(path, key, self._finished)

    def write(self, key: Key, view: int, logits_NC: Recorded) -> None:
        path = self.path(key, view)
        _describe(path, key)
        write_record(path, key, logits_NC)
        self._finished(path)

    def bring(self, key: Key, view: int, seen: Identity, parts: Iterable[bytes]) -> None:
        path = self.path(key, view)
        _describe(path, key)
        try:
            bring(path, seen, lambda target: target.writelines(parts))
        except OSError as error:
            raise cannot_write(path, error) from None
        self._finished(path)

    def settle(self, wanted: Iterable[tuple[Key, int]] = ()) -> None:
        if self._remote is not None:
            self._remote.settle(self.path(key, view) for key, view in wanted)

    def _finished(self, path: Path) -> None:
        if self._remote is not None:
            self._remote.send(path)


def _key(
    folder: Path, settings: OutputSettings, samples: Samples, numbers: Numbers, split: str = TRAIN
) -> Key:
    manifest = read_manifest(folder)
    return Key(
        teacher=folder.name,
        weights=manifest.weights,
        model=manifest.model.model_dump(mode="json"),
        data=samples.fingerprint,
        views=samples.views_fingerprint if split == TRAIN else "evaluation",
        autocast="none" if numbers == "float32" else numbers,
        dtype=settings.dtype,
        top_k=settings.top_k,
        rows=len(samples.splits[split]),
        classes=len(samples.classes),
        split=split,
    )


def _touch(folder: Path) -> None:
    """Note that a teacher's records are used today; others' records may be read-only."""
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST)


def _describe(path: Path, key: Key) -> None:
    """Say beside a record, for people and for `prune`, whose it is."""
    about = path.with_name(MANIFEST)
    try:
        if not exists(about):
            with replacing(about) as draft:
                draft.write_text(json.dumps(key.about, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None
