"""Teachers in memory: a plain class, driven by Ray actors and by tests alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.data import Samples
from agrekd_ray.errors import RunError
from agrekd_ray.guidance.lesson import Question, Replies, View
from agrekd_ray.models import check_classes, load
from agrekd_ray.settings import Autocast

MEBIBYTE = 2**20


class _Memory:
    """What teachers said about a view, in tables of at most so many bytes; the oldest goes first.

    Epochs, methods and seeds that show the same view are told again for nothing.
    """

    def __init__(self, samples: Samples, limit: float) -> None:
        self._samples, self._limit = samples, limit
        self._tables: OrderedDict[tuple[str, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._table_bytes = samples.size * (4 * len(samples.classes) + 1)

    def get(self, name: str, view: int, ids: Tensor) -> Tensor | None:
        """Logits [B, C] of a teacher, where all of them are known."""
        table = self._tables.get((name, view))
        if table is None or not table[1][ids].all():
            return None
        self._tables.move_to_end((name, view))
        return table[0][ids]

    def put(self, name: str, view: int, ids: Tensor, logits_BC: Tensor) -> None:
        """Keep what a teacher said."""
        if (name, view) not in self._tables:
            while self._tables and (len(self._tables) + 1) * self._table_bytes > self._limit:
                self._tables.popitem(last=False)
            if self._table_bytes > self._limit:
                return
            size = self._samples.size
            empty = (
                torch.empty(size, len(self._samples.classes)),
                torch.zeros(size, dtype=torch.bool),
            )
            self._tables[name, view] = empty
        logits, known = self._tables[name, view]
        logits[ids], known[ids] = logits_BC, True


class TeacherHost:
    """Frozen teachers that answer questions, and compute the coming batches in between.

    Heads whose backbones have the same weights share one backbone and pay one forward pass. What
    is kept between two questions is a cache: any question can be repeated, to this host or to
    another, and has the same answer. A host never sees a group label and never trains.

    Args:
        checkpoints: folders by teacher's name.
        samples: the data set.
        device: where the teachers are put.
        autocast: precision of the forward pass; logits are float32 in any case.
        capacity: batches that are under way or waiting at once; the oldest goes first.
        memory: MiB for what the teachers said about views that come again.

    Raises:
        CheckpointError: a checkpoint cannot be used, or is of other classes than the data.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        samples: Samples,
        *,
        device: torch.device | str = "cpu",
        autocast: Autocast = "none",
        capacity: int = 8,
        memory: float = 256,
    ) -> None:
        self._samples, self._device = samples, torch.device(device)
        self._autocast, self._capacity = autocast, capacity
        self._backbones: dict[str, nn.Module] = {}
        self._memory = _Memory(samples, memory * MEBIBYTE)
        self._heads: dict[str, tuple[str, nn.Module]] = {}
        for name, folder in checkpoints.items():
            model, manifest = load(folder, self._device)
            check_classes(folder, manifest, samples.classes)
            shared = manifest.backbone
            self._backbones.setdefault(shared, model.backbone)
            self._heads[name] = (shared, model.head)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-forward")
        self._kept: OrderedDict[tuple[object, ...], Future[dict[str, Tensor]]] = OrderedDict()
        self.forwards = 0
        """Forward passes of a backbone so far."""

    @property
    def names(self) -> tuple[str, ...]:
        """The teachers here."""
        return tuple(self._heads)

    @property
    def backbones(self) -> int:
        """Backbones in memory."""
        return len(self._backbones)

    def replies(self, names: Sequence[str], question: Question) -> Replies:
        """What the named teachers say; then starts on the views that will be asked for next.

        Raises:
            RunError: a teacher's logits are not finite.
        """
        coming = self._logits(names, (question.epoch, question.ids))
        for view in question.ahead:
            self._logits(names, view)
        logits = coming.result()
        logits_mBC = torch.stack([logits[name] for name in names])
        student_BC = torch.from_numpy(np.array(question.logits_BC))
        gradients_mBC = kd_gradient(student_BC, logits_mBC, question.lesson.temperature)
        entropy_mB = None
        if question.lesson.cross_entropy:
            labels_B = self._samples.labels(question.ids)
            entropies = [F.cross_entropy(z, labels_B, reduction="none") for z in logits_mBC]
            entropy_mB = torch.stack(entropies).numpy()
        return Replies(tuple(names), gradients_mBC.numpy(), entropy_mB)

    def _logits(self, names: Sequence[str], view: View) -> Future[dict[str, Tensor]]:
        """The teachers' logits of a view: kept, on their way, or started now."""
        epoch, ids = view
        key = (epoch, np.ascontiguousarray(ids).tobytes(), tuple(names))
        if key not in self._kept:
            while len(self._kept) >= self._capacity:
                self._kept.popitem(last=False)[1].cancel()
            self._kept[key] = self._thread.submit(self._forward, tuple(names), epoch, ids)
        self._kept.move_to_end(key)
        return self._kept[key]

    @torch.inference_mode()
    def _forward(self, names: tuple[str, ...], epoch: int, ids: np.ndarray) -> dict[str, Tensor]:
        view, index = self._samples.view(epoch), torch.from_numpy(np.array(ids))
        logits: dict[str, Tensor] = {}
        unknown = []
        for name in names:
            known = self._memory.get(name, view, index)
            if known is None:
                unknown.append(name)
            else:
                logits[name] = known
        if unknown:
            for name, answer in self._compute(unknown, epoch, ids).items():
                logits[name] = answer
                self._memory.put(name, view, index, answer)
        return logits

    def _compute(self, names: Sequence[str], epoch: int, ids: np.ndarray) -> dict[str, Tensor]:
        images = self._samples.inputs(ids, epoch)
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        features: dict[str, Tensor] = {}
        logits = {}
        with torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._autocast == "bfloat16"
        ):
            for name in names:
                shared, head = self._heads[name]
                if shared not in features:
                    features[shared] = self._backbones[shared](images)
                    self.forwards += 1
                logits[name] = head(features[shared]).float().cpu()
        for name, answer in logits.items():
            broken = int((~torch.isfinite(answer)).any(1).sum())
            if broken:
                raise RunError(
                    f"teacher {name} answers with NaN or infinite logits (epoch {epoch}, {broken} "
                    f"of {len(ids)} samples); train it again, or set fleet.autocast: none."
                )
        return logits
