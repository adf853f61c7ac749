"""Data sets of pictures that are decoded once, and shown in deterministic views."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationInfo, field_validator
from rich.filesize import decimal
from torch import Tensor

from agrekd_ray.data.chunks import Work
from agrekd_ray.data.dataset import Annotations, Rows
from agrekd_ray.data.decode import CHANGED, REMARKS, Decoding, remarks_of
from agrekd_ray.data.decoded import DecodedRows
from agrekd_ray.data.pictures import Source, decoding
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.data.prepared_samples import PreparedSamples
from agrekd_ray.data.views import Views, augment, draws
from agrekd_ray.settings import Count, LocalPath, Seed, Settings, fingerprint


class Pictures(Settings):
    """What data sets of pictures share.

    Pictures are decoded once: the shorter side is resized to `resize`, and the square in the
    middle is kept. Evaluation sees the middle of it, `size` pixels wide; so do training views
    without `views.crop`, and those with it are cut out of the whole square.

    Attributes:
        seed: draws the halves of validation and the views.
        size: height and width that models see, in pixels.
        resize: height and width that are kept; null follows `size` as 256 follows 224, so that
            models see three quarters of the square.
        views: augmentation of the training samples.
        decoding: 2 shows a picture as a viewer does: turned as its orientation says, on white
            where it is transparent, more than 8 bits scaled. 1 is what earlier versions did, which
            was none of that; pictures without any of that are the same, and so are their teachers.
        prepared: folder of decoded pictures, shared by all jobs.
        keep_decoded: false keeps no decoded pictures, where the disk has no room for them: each is
            decoded whenever it is shown. All are decoded once before, to find broken ones.
    """

    seed: Seed = 0
    size: Count = 224
    resize: Count | None = None
    views: Views = Views()
    decoding: Decoding = 2
    prepared: LocalPath = Path("runs/prepared")
    keep_decoded: bool = True

    @field_validator("resize")
    @classmethod
    def _no_smaller_than_size(cls, resize: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("size")
        if resize and size and resize < size:
            raise ValueError(f"smaller than what models see (data.size is {size})")
        return resize

    @property
    def side(self) -> int:
        """Height and width that are kept, in pixels."""
        return self.resize or _usual_side(self.size)


def _usual_side(size: int) -> int:
    """Of pictures whose middle, `size` pixels wide, is seen: 256 for 224."""
    return round(size * 256 / 224)


def _of_sizes(settings: Pictures) -> Iterator[str]:
    """What is to be said where models see less than half of the square that is kept."""
    size, side = settings.size, settings.side
    if 2 * size**2 < side**2:
        yield (
            f"models see the middle {size} × {size} of {side} × {side} pixels, "
            f"{size**2 / side**2:.0%} of a picture; data.resize: {_usual_side(size)} shows them "
            "three quarters"
        )


def as_evaluated(pixels: Tensor, size: int) -> Tensor:
    """Decoded squares, uint8 [B, 3, side, side], as evaluation sees them: the middle of each.

    Args:
        pixels: of the squares.
        size: height and width of the middle.

    Returns:
        Float32 [B, 3, size, size] in [0, 1].
    """
    edge = (pixels.shape[-1] - size) // 2
    middle = slice(edge, edge + size)
    return pixels[:, :, middle, middle].float() / 255


class PictureDataset(PreparedSamples):
    """Pictures by id (a `Dataset`).

    Args:
        settings: of the data set.
        source: of the encoded pictures.
        annotations: of the pictures.
    """

    def __init__(self, settings: Pictures, source: Source, annotations: Annotations) -> None:
        side, version, size = settings.side, settings.decoding, settings.size
        given = (
            settings.prepared,
            fingerprint(version, source.stamp, side),
            source.count,
            (3, side, side),
        )
        rows = PreparedRows(*given, remarks=remarks_of(version))
        if not (settings.keep_decoded or rows.whole):
            rows = PreparedRows(*given, remarks=remarks_of(version), kept=False)
        super().__init__(rows, annotations, (3, size, size), settings.views)
        self.settings, self._source, self.stamps = settings, source, source.stamps
        self.views_fingerprint = settings.views.fingerprint(settings.seed)

    def remarks(self) -> list[str]:
        """See `Remarked.remarks`."""
        counts = {} if self.unprepared() else self.rows.remarks()
        counted = [f"{count:,} {REMARKS[name]}" for name, count in counts.items() if count]
        return [*_of_sizes(self.settings), *self._of_room(), *counted]

    def _of_room(self) -> Iterator[str]:
        """What is to be said where the disk has no room for the decoded pictures."""
        with contextlib.suppress(OSError):  # which whoever writes there says
            if (needed := self.rows.left_bytes()) > (free := self.rows.free()):
                yield (
                    f"decoded, they take {decimal(needed)}, and {decimal(free)} are free in "
                    f"{self.settings.prepared}; data.keep_decoded: false decodes them when they "
                    "are shown"
                )

    def missing_source(self) -> str:
        """See `PreparedSamples.missing_source`."""
        missing = self._source.missing()
        return f"no file {missing}" if missing else ""

    def making(self, numbers: Sequence[int]) -> Iterator[Work]:
        """See `PreparedSamples.making`."""
        settings = self.settings
        return decoding(self._source, numbers, settings.side, settings.decoding)

    def how(self) -> str:
        """See `PreparedSamples.how`."""
        counts = self.rows.remarks()
        # Pictures that the versions decode alike are the same pictures.
        version = self.settings.decoding if any(counts.get(name) for name in CHANGED) else 1
        return fingerprint(version, self.settings.size, self.settings.side)

    def arrays(self, view: int | None) -> tuple[Rows, ...]:
        """See `Arrays.arrays`: squares of pixels, uint8, and what augments them."""
        self.prepare()
        return self._squares, *draws(self.views, self.settings.seed, view, self.size)

    @functools.cached_property
    def _squares(self) -> Rows:
        """The decoded pictures, [N, 3, side, side]."""
        if self.rows.kept:
            return self.rows.rows()
        return DecodedRows(self._source, self.settings.side, self.settings.decoding)

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        """See `Arrays.show`."""
        pixels, *random = rows
        settings = self.settings
        if random:
            return augment(pixels.float() / 255, random, self.views, settings.size)
        return as_evaluated(pixels, settings.size)
