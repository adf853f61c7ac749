"""Teachers in memory: a plain class, driven by Ray actors and by tests alike."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agrekd_ray.data import Samples
from agrekd_ray.distillation.spec import GradientRequest, TeacherGradients, View, teacher_gradients
from agrekd_ray.errors import RunError
from agrekd_ray.logits import LogitsCache, LogitsWriter
from agrekd_ray.models import check_classes, load
from agrekd_ray.models.classifier import seen_shape
from agrekd_ray.numerics import computing_in, numbers_on
from agrekd_ray.results import Span, added
from agrekd_ray.settings import Precision
from agrekd_ray.training import Loader, Request, filling

VIEWS_OPEN = 3
"""Views with unfinished records that a host keeps open: last epoch's, this one's, the next."""
FILL = 256
"""Samples of a forward pass where a record is filled up, on the CPU."""
Part = tuple[int, int]
"""Of the rows of a record: (number, of so many parts)."""
WHOLE: Part = (0, 1)


class TeacherHost:
    """Frozen teachers that answer requests, and compute the coming batches in between.

    Heads whose backbones have the same weights share one backbone and pay one forward pass. With
    `outputs`, every answer is recorded, and none is computed that has been recorded already. What
    is kept between two requests is a cache: any request can be repeated, to this host or to
    another, and has the same answer. A host never sees a group label and never trains.

    Args:
        checkpoints: folders by teacher's name.
        samples: the data set.
        device: where the teachers are put.
        precision: of the forward passes; logits are float32 in any case.
        capacity: batches that are under way or waiting at once; answered ones go first, then
            the oldest.
        concurrent: backbones that compute at the same time.
        outputs: where answers are recorded; None records nothing.

    Raises:
        CheckpointError: a checkpoint cannot be used, or is of other classes than the data.
        RunError: the device does not compute in that precision.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        samples: Samples,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        capacity: int = 8,
        concurrent: int = 1,
        outputs: LogitsCache | None = None,
    ) -> None:
        self._samples, self._device = samples, torch.device(device)
        self._loader = Loader(samples, device)
        self._fills = FILL
        self._numbers = numbers_on(precision, self._device)
        self._capacity, self._outputs = capacity, outputs
        self._backbones: dict[str, nn.Module] = {}
        self._heads: dict[str, tuple[str, nn.Module]] = {}
        for name, folder in checkpoints.items():
            model, manifest = load(folder, self._device)
            check_classes(folder, manifest, samples.classes)
            shared = manifest.backbone
            # Channels last: convolutions are a quarter to a half faster, answers equal to 1e-5.
            backbone = model.backbone.to(memory_format=torch.channels_last)
            self._backbones.setdefault(shared, backbone)
            self._heads[name] = (shared, model.head)
            if self._device.type == "cuda":
                fills = filling(seen_shape(model, samples.shape))
                self._fills = min(fills, self._fills) if len(self._heads) > 1 else fills
        self._as = {name: name for name in self._heads}
        """What a teacher's answers are recorded as: its own, or its backbone's."""
        for name, (shared, _) in self._heads.items():
            if outputs is not None and outputs.place(name).head is not None:
                self._as[name] = shared
        self._recorded: dict[str, list[str]] = {}
        for name, recorded in self._as.items():
            self._recorded.setdefault(recorded, []).append(name)
        self.stride = 8 * self._fills if self._device.type == "cuda" else FILL
        """Samples that it records between two signs of life, within seconds."""
        self._partials: OrderedDict[int, dict[str, LogitsWriter]] = OrderedDict()
        self._computing = ThreadPoolExecutor(concurrent, thread_name_prefix="backbone")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-forward")
        self._kept: OrderedDict[tuple[object, ...], Future[dict[str, Tensor]]] = OrderedDict()
        self.forwards = 0
        """Forward passes of a backbone so far."""
        self.seconds = 0.0
        """That they took."""
        self.spans: dict[str, Span] = {}
        """The same by backbone: `forward NAMES` of the teachers that share it."""
        self.computed = 0
        """Samples that a backbone has seen so far, over all passes."""

    @property
    def names(self) -> tuple[str, ...]:
        """The teachers here."""
        return tuple(self._heads)

    @property
    def outputs(self) -> LogitsCache | None:
        """Where answers are recorded."""
        return self._outputs

    @property
    def backbones(self) -> int:
        """Backbones in memory."""
        return len(self._backbones)

    def gradients(self, names: Sequence[str], request: GradientRequest) -> TeacherGradients:
        """What the named teachers say; then starts on the views that will be asked for next.

        Raises:
            RunError: a teacher's logits are not finite, or cannot be recorded.
        """
        # A record is of use when all of an ensemble have one, so everybody here is recorded.
        wanted = self.names if self._outputs else tuple(names)
        now = (request.epoch, request.ids)
        coming = self._logits(wanted, now)
        for view in request.ahead:
            self._logits(wanted, view)
        logits = coming.result()
        answered = self._kept_key(wanted, now)
        if answered in self._kept:  # the first to go from now on
            self._kept.move_to_end(answered, last=False)
        return teacher_gradients(
            request, names, torch.stack([logits[name] for name in names]), self._samples
        )

    def expect(self, names: Sequence[str], views: Sequence[View]) -> None:
        """Start on views that the named teachers will be asked for."""
        wanted = self.names if self._outputs else tuple(names)
        for view in views:
            self._logits(wanted, view)

    def complete(self, epoch: int, limit: int | None = None, part: Part = WHOLE) -> int:
        """Record what is missing of an epoch's view: the samples that its batches left out.

        Args:
            epoch: whose view.
            limit: samples to compute at most; None for all.
            part: of the rows, where hosts share a record; only who does the whole finishes it.

        Returns:
            Samples of the part that some teacher is still missing.

        Raises:
            RunError: as `gradients`.
        """
        return self._thread.submit(self._fill, epoch, limit, part).result()

    def leave(self, epoch: int) -> None:
        """Leave an epoch's records in the making to another host, with what they hold."""
        self._thread.submit(self._leave, self._samples.view(epoch)).result()

    def _logits(self, names: tuple[str, ...], view: View) -> Future[dict[str, Tensor]]:
        """The teachers' logits of a view: kept, on their way, or started now."""
        epoch, ids = view
        key = self._kept_key(names, view)
        if key not in self._kept:
            while len(self._kept) >= self._capacity:
                self._kept.popitem(last=False)[1].cancel()
            self._kept[key] = self._thread.submit(self._answer, names, epoch, ids)
        self._kept.move_to_end(key)
        return self._kept[key]

    @staticmethod
    def _kept_key(names: tuple[str, ...], view: View) -> tuple[object, ...]:
        return (view[0], np.ascontiguousarray(view[1]).tobytes(), names)

    @torch.inference_mode()
    def _answer(self, names: tuple[str, ...], epoch: int, ids: np.ndarray) -> dict[str, Tensor]:
        if self._outputs is None:
            return self._compute(names, epoch, ids)
        outputs, view = self._outputs, self._samples.view(epoch)
        rows = outputs.rows(ids)
        begun, known, writers = self._partials.get(view, {}), {}, dict[str, LogitsWriter]()
        for name in names:
            recorded = self._as[name]
            if recorded not in begun and (record := outputs.read(name, view)) is not None:
                known[name] = record[rows]
            else:
                writers[recorded] = self._partial(outputs, name, view)
        unknown_B = np.zeros(len(rows), dtype=bool)
        for writer in writers.values():
            unknown_B |= ~writer.known_N[rows]
        if unknown_B.any():
            asked = [self._recorded[recorded][0] for recorded in writers]
            found = self._compute(asked, epoch, ids[unknown_B])
            self._record(outputs, epoch, rows[unknown_B], found)
        written = {recorded: writer.get(rows) for recorded, writer in writers.items()}
        logits_mBC = {
            name: known[name] if name in known else outputs.of(name, written[recorded])
            for name, recorded in ((name, self._as[name]) for name in names)
        }
        return {
            name: torch.from_numpy(np.asarray(logits_BC, np.float32))
            for name, logits_BC in logits_mBC.items()
        }

    def _record(
        self, outputs: LogitsCache, epoch: int, rows: np.ndarray, found: dict[str, Tensor]
    ) -> None:
        for recorded, answer in found.items():
            names = self._recorded[recorded]
            form = outputs.place(names[0]).key.form
            if bool((answer.abs() > form.most).any()):
                who, what = self._who(recorded)
                raise RunError(
                    f"{who} answers with {what} beyond what {form.dtype} holds; set "
                    "outputs.dtype: float32."
                )
            partial = self._partial(outputs, names[0], self._samples.view(epoch))
            partial.put(rows, answer.numpy())

    def _who(self, recorded: str) -> tuple[str, str]:
        """Who answers with what, in words."""
        if recorded in self._heads:
            return f"teacher {recorded}", "logits"
        return f"the backbone of {', '.join(self._recorded[recorded])}", "features"

    def _partial(self, outputs: LogitsCache, name: str, view: int) -> LogitsWriter:
        if view not in self._partials:
            while len(self._partials) >= VIEWS_OPEN:
                for partial in self._partials.popitem(last=False)[1].values():
                    partial.close()
        begun, recorded = self._partials.setdefault(view, {}), self._as[name]
        if recorded not in begun:
            begun[recorded] = outputs.begin(name, view)
        return begun[recorded]

    def _leave(self, view: int) -> None:
        for partial in self._partials.pop(view, {}).values():
            partial.close()

    @torch.inference_mode()
    def _fill(self, epoch: int, limit: int | None, part: Part) -> int:
        outputs = self._outputs
        if outputs is None:
            return 0
        view = self._samples.view(epoch)
        begun = self._partials.get(view, {})
        # One look at each: other jobs may finish records all the while.
        missing_of = [name for name in self.names if outputs.read(name, view) is None]
        partials = {self._as[name]: self._partial(outputs, name, view) for name in missing_of}
        for recorded in begun.keys() - partials.keys():
            begun.pop(recorded).discard()
        unknown_N = np.zeros(outputs.count, dtype=bool)
        for partial in partials.values():
            unknown_N |= ~partial.known_N
        missing = np.flatnonzero(unknown_N)
        missing = missing[missing % part[1] == part[0]]
        now = missing if limit is None else missing[:limit]
        parts = [now[start : start + self._fills] for start in range(0, len(now), self._fills)]
        under_way: tuple[np.ndarray, Callable[[], dict[str, Tensor]]] | None = None
        for rows, loaded in zip(parts, self._loader(self._requests(epoch, parts)), strict=True):
            wanted = [one for one, p in partials.items() if not p.known_N[rows].all()]
            asked = [self._recorded[recorded][0] for recorded in wanted]
            started = self._start(asked, epoch, loaded.inputs)
            if under_way is not None:  # what came before is written while the device computes
                self._record(outputs, epoch, under_way[0], under_way[1]())
            under_way = rows, started
        if under_way is not None:
            self._record(outputs, epoch, under_way[0], under_way[1]())
        if len(now) == len(missing) and part == WHOLE:
            for recorded in partials:
                self._partials[view].pop(recorded).finish()
        return len(missing) - len(now)

    def _compute(self, names: Iterable[str], epoch: int, ids: np.ndarray) -> dict[str, Tensor]:
        began = time.perf_counter()
        (loaded,) = self._loader([Request(ids, epoch)])
        return self._start(tuple(names), epoch, loaded.inputs, began)()

    def _requests(self, epoch: int, parts: Sequence[np.ndarray]) -> Iterator[Request]:
        assert self._outputs is not None
        return (Request(self._outputs.ids(rows), epoch) for rows in parts)

    @torch.inference_mode()
    def _start(
        self, names: Sequence[str], epoch: int, inputs: Tensor, began: float | None = None
    ) -> Callable[[], dict[str, Tensor]]:
        """Has the teachers' backbones compute; what it returns waits for the answers, on the CPU.

        They are logits [B, C] by teacher or, where these are recorded, features [B, D] by backbone.

        Args:
            names: of the teachers.
            epoch: whose view is shown.
            inputs: on the device.
            began: when the work for them began; None for now.
        """
        began = time.perf_counter() if began is None else began
        if inputs.ndim == 4:  # images
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        heads: dict[str, list[str]] = {}
        for name in names:
            heads.setdefault(self._heads[name][0], []).append(name)

        @torch.inference_mode()
        def through(shared: str) -> tuple[dict[str, Tensor], float]:
            start = time.perf_counter()
            with computing_in(self._numbers, self._device):
                features = self._backbones[shared](inputs)
                answers = {
                    self._as[n]: (
                        features if self._as[n] == shared else self._heads[n][1](features)
                    ).float()
                    for n in heads[shared]
                }
            return answers, time.perf_counter() - start

        passes = self._computing.map(through, heads) if len(heads) > 1 else map(through, heads)
        done = dict(zip(heads, passes, strict=True))
        logits = {
            name: answer.to("cpu", non_blocking=True)
            for answers, _ in done.values()
            for name, answer in answers.items()
        }
        arrived = torch.cuda.Event() if self._device.type == "cuda" else None
        if arrived is not None:
            arrived.record()

        def result() -> dict[str, Tensor]:
            if arrived is not None:
                arrived.synchronize()
            seconds = time.perf_counter() - began
            # A GPU is only told what to do; all that is known is when it had done everything.
            self._count(
                heads,
                seconds,
                {
                    shared: own if arrived is None else seconds / len(heads)
                    for shared, (_, own) in done.items()
                },
                len(inputs),
            )
            for name, answer in logits.items():
                broken = int((~torch.isfinite(answer)).any(1).sum())
                if broken:
                    who, what = self._who(name)
                    raise RunError(
                        f"{who} answers with NaN or infinite {what} (epoch {epoch}, "
                        f"{broken} of {len(answer)} samples); train it again, or set "
                        "fleet.precision: float32."
                    )
            return logits

        return result

    def _count(
        self, heads: Collection[str], seconds: float, own: Mapping[str, float], samples: int
    ) -> None:
        """Adds up what some passes took: in all, and by backbone."""
        self.forwards += len(heads)
        self.seconds += seconds
        for shared, took in own.items():
            hosted = ", ".join(name for name, (where, _) in self._heads.items() if where == shared)
            self.spans = added(self.spans, {f"forward {hosted}": Span(1, took)})
        self.computed += len(heads) * samples
