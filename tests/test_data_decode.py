"""One encoded picture: depth, range, orientation and transparency, as its file says of them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from agrekd_ray.data.chunks import CHUNK, BrokenRowsError
from agrekd_ray.data.decode import REMARKS, UnfitError, decode
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.errors import DataError
from agrekd_ray.settings import fingerprint
from tests import pictures

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
ALL_16 = (RAMP * 65535).astype(np.uint16)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(values: np.ndarray, bits: int, colours: int, transparent: Sequence[int] = ()) -> bytes:
    """A PNG file; Pillow writes only some of them.

    Args:
        values: [height, width] or [height, width, channels].
        bits: of a channel.
        colours: 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha.
        transparent: the colour that is.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    if bits >= 8:
        rows = [row.astype(f">u{bits // 8}").tobytes() for row in values]
    else:
        planes = np.unpackbits(values[..., None].astype(np.uint8), axis=2)[:, :, -bits:]
        rows = [np.packbits(row).tobytes() for row in planes]
    height, width = values.shape[:2]
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
            if transparent
            else b"",
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        )
    )


def tiff(
    values: np.ndarray, bits: int, kind: int = 1, zero: int = 1, order: str = "<", channels: int = 1
) -> bytes:
    """An uncompressed TIFF file.

    Args:
        values: [height, width] of the numbers' own type, or packed bytes of 12-bit numbers.
        bits: of a number.
        kind: 1 whole numbers, 2 signed ones, 3 fractions.
        zero: what 0 is: 0 white, 1 black; 2 says that it is RGB.
        order: of bytes.
        channels: of the picture.
    """
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [
        *((256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, zero), (273, 8)),
        *((277, channels), (278, SIDE), (279, len(content)), (339, kind)),
    ]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
        for tag, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def packed_12(values: np.ndarray) -> np.ndarray:
    """Two numbers of 12 bits in three bytes."""
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
    return np.packbits(bits.reshape(-1))


DEEP: dict[str, tuple[bytes, np.ndarray]] = {
    "png": (png(ALL_16, 16, 0), ALL_16 >> 8),
    "png of Pillow": (saved(Image.fromarray(ALL_16), "PNG"), ALL_16 >> 8),
    "tiff": (tiff(ALL_16, 16), ALL_16 >> 8),
    "big-endian tiff": (tiff(ALL_16, 16, order=">"), ALL_16 >> 8),
    "packed tiff": (
        saved(Image.fromarray(ALL_16), "TIFF", compression="tiff_lzw"),
        ALL_16 >> 8,
    ),
    "white is 0": (tiff(ALL_16, 16, zero=0), 255 - (ALL_16 >> 8)),
    "12 bits": (tiff(packed_12(ALL_16 >> 4), 12), ALL_16 >> 8),
    "pgm": (b"P5 16 16 65535\n" + ALL_16.astype(">u2").tobytes(), ALL_16 >> 8),
    "rgb": (png(np.stack([ALL_16] * 3, 2), 16, 2), ALL_16 >> 8),
    "fractions": (tiff(RAMP.astype(np.float32), 32, 3), np.rint(RAMP * 255)),
    "fractions, white is 0": (tiff(RAMP.astype(np.float32), 32, 3, 0), 255 - np.rint(RAMP * 255)),
    "fractions of Pillow": (
        saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
        np.rint(RAMP * 255),
    ),
    "pfm": (
        b"Pf\n16 16\n-1.0\n" + RAMP[::-1].astype("<f4").tobytes(),
        np.rint(RAMP * 255),
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_scaled(name: str) -> None:
    content, wanted = DEEP[name]
    shown, remarks = decode(content, SIDE)
    assert remarks == {"scaled"}
    np.testing.assert_allclose(shown, np.broadcast_to(wanted, (3, SIDE, SIDE)), atol=1e-6)


def test_few_bits_fill_the_range() -> None:
    for bits in (1, 2, 4):
        values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2**bits
        shown, remarks = decode(png(values, bits, 0), SIDE)
        assert remarks == set()
        assert (shown == values * 255 // (2**bits - 1)).all()


def test_files_that_are_all_but_black_are_told() -> None:
    """A Kinect's millimetres, or 12 bits in a file of 16."""
    assert decode(png(ALL_16 >> 4, 16, 0), SIDE)[1] == {"scaled", "dark"}
    assert decode(tiff((RAMP / 100).astype(np.float32), 32, 3), SIDE)[1] == {"scaled", "dark"}


UNFIT: dict[str, tuple[bytes, str]] = {
    "negative fractions": (tiff((RAMP - 2).astype(np.float32), 32, 3), "fractions from -2 to -1;"),
    "fractions up to 255": (tiff((RAMP * 255).astype(np.float32), 32, 3), "from 0 to 255; .* 0 to"),
    "no number": (tiff(np.where(RAMP > 0.5, np.nan, 0).astype(np.float32), 32, 3), "from nan to"),
    "infinite": (tiff(np.where(RAMP > 0.5, np.inf, 0).astype(np.float32), 32, 3), "from 0 to inf"),
    "32 bits": (tiff(ALL_16.astype(np.uint32), 32), "32-bit whole numbers from 0 to 65535"),
    "signed 32": (tiff(ALL_16.astype(np.int32), 32, 2), "signed whole numbers from 0 to 65535"),
    "signed 16": (tiff(ALL_16.astype(np.int16), 16, 2), "signed whole numbers from -32"),
    "signed 8": (tiff(ALL_16.astype(np.int8), 8, 2), "signed whole numbers"),
    "rgb of fractions": (
        tiff(np.stack([RAMP.astype(np.float32)] * 3, 2), 32, 3, 2, channels=3),
        "kind of samples is not decoded",
    ),
    "a transparent colour of 16 bits": (
        png(np.stack([ALL_16] * 3, 2), 16, 2, (0, 0, 0)),
        "one transparent colour",
    ),
    "a jpeg of 12 bits": (
        saved(Image.fromarray(ALL_16.astype(np.uint8)), "JPEG").replace(
            b"\xff\xc0\0\x0b\x08", b"\xff\xc0\0\x0b\x0c"
        ),
        "a damaged JPEG, or one of other",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_values_of_unknown_range_are_refused(name: str) -> None:
    content, words = UNFIT[name]
    with pytest.raises(UnfitError, match=words):
        decode(content, SIDE)


def quarters() -> Image.Image:
    """Another colour in every corner, so that all ways to turn it differ."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    half = SIDE // 2
    pixels[:half, :half], pixels[:half, half:] = (200, 0, 0), (0, 200, 0)
    pixels[half:, :half], pixels[half:, half:] = (0, 0, 200), (200, 200, 200)
    return Image.fromarray(pixels)


def stored(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """What a camera stores of `quarters`, and how it says to turn it."""
    exif = Image.Exif()
    exif[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)
    turned = quarters()
    turned.info["exif"] = exif.tobytes()
    turned = ImageOps.exif_transpose(turned)
    exif[0x0112] = orientation
    return turned, exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    turned, exif = stored(orientation)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    content = saved(turned, kind, exif=exif, **options.get(kind, {}))
    shown, remarks = decode(content, SIDE)
    assert remarks == ({"turned"} if orientation > 1 else set())
    wanted = np.asarray(quarters()).transpose(2, 0, 1)
    assert abs(shown.astype(int) - wanted).max() < 12
    if kind != "TIFF":  # which Pillow turns by itself
        as_stored, none = decode(content, SIDE, 1)
        assert abs(as_stored.astype(int) - np.asarray(turned).transpose(2, 0, 1)).max() < 12
        assert none == set()


def test_a_turned_picture_is_cut_in_the_middle_of_what_is_seen() -> None:
    wide = Image.fromarray(np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (16, 1, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6
    shown, _ = decode(saved(wide, "PNG", exif=exif), SIDE)
    assert (shown[0, :, 0] == np.arange(16, 32) * 5).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0nothing", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""],
)
def test_damaged_exif_turns_nothing(exif: bytes) -> None:
    content = saved(quarters(), "PNG", exif=exif)
    shown, remarks = decode(content, SIDE)
    assert (shown == np.asarray(quarters()).transpose(2, 0, 1)).all()
    assert remarks == set()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(saved(quarters(), "JPEG", exif=exif), SIDE)[1] == set()


def hidden(mode: str) -> Image.Image:
    """Half of it is red that nobody sees."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[..., 0], pixels[: SIDE // 2, :, 3] = 200, 255
    return Image.fromarray(pixels).convert(mode)


LOWER = (np.arange(SIDE) >= SIDE // 2)[:, None]
TRANSPARENT: dict[str, bytes] = {
    "rgba png": saved(hidden("RGBA"), "PNG"),
    "la png": saved(hidden("LA"), "PNG"),
    "rgba webp": saved(hidden("RGBA"), "WEBP", lossless=True, exact=True),
    "rgba tiff": saved(hidden("RGBA"), "TIFF"),
    "pa tiff": saved(hidden("RGBA").convert("PA"), "TIFF"),
    "palette": saved(hidden("RGBA").quantize(4), "PNG"),
    "gif": saved(hidden("RGBA"), "GIF"),
    "a grey value": png(LOWER * np.full(SIDE, 7), 8, 0, (7,)),
    "a grey value of 4 bits": png(LOWER * np.full(SIDE, 9), 4, 0, (9,)),
    "a grey value of 2 bits": png(LOWER * np.full(SIDE, 2), 2, 0, (2,)),
    "a grey value of 16 bits": png(LOWER * np.full(SIDE, 700), 16, 0, (700,)),
    "a bit": png(LOWER * np.full(SIDE, 1), 1, 0, (1,)),
    "a colour": png(
        np.where(LOWER[:, :, None], (1, 2, 3), np.full((SIDE, 1), 9)),
        8,
        2,
        (1, 2, 3),
    ),
    "16 bits": png(
        np.stack([np.full((SIDE, SIDE), 9000), 65535 * ~np.broadcast_to(LOWER, (SIDE, SIDE))], 2),
        16,
        4,
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name: str) -> None:
    shown, remarks = decode(TRANSPARENT[name], SIDE)
    assert remarks - {"scaled", "dark"} == {"composed"}
    assert (shown[:, SIDE // 2 :] == 255).all()
    assert (shown[:, : SIDE // 2] < 250).any()


def test_half_transparent_is_half_white() -> None:
    shown, _ = decode(saved(Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 128)), "PNG"), SIDE)
    assert (abs(shown.astype(int) - 127) <= 1).all()


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_an_alpha_channel_that_hides_nothing_is_no_remark(kind: str) -> None:
    image = quarters().convert(kind)
    shown, remarks = decode(saved(image, "PNG"), SIDE)
    assert remarks == set()
    assert (shown == np.asarray(image.convert("RGB")).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "TIFF"), ("1", "TIFF")],
)
def test_other_colours_become_rgb_in_both_versions(mode: str, kind: str) -> None:
    image = Image.new(mode, (SIDE, SIDE))
    image.paste(tuple(range(40, 40 + 30 * len(image.getbands()), 30)), (0, 0, 8, 8))  # type: ignore[arg-type]
    content = saved(image, kind)
    shown, remarks = decode(content, SIDE)
    with Image.open(io.BytesIO(content)) as stored_so:
        wanted = np.asarray(stored_so.convert("RGB")).transpose(2, 0, 1)
    assert remarks == set()
    assert (shown == wanted).all()
    assert (decode(content, SIDE, 1)[0] == wanted).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    shown, remarks = decode(content, SIDE)
    assert remarks == {"first"}
    assert shown[:, 0, 0].tolist() == [255, 0, 0]


def test_a_colour_profile_is_told() -> None:
    from PIL import ImageCms

    for space, wanted in (("sRGB", set()), ("LAB", {"profile"})):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]
        assert decode(saved(quarters(), "PNG", icc_profile=profile), SIDE)[1] == wanted


def opened(folder: Path, **settings: Any) -> PictureDataset:
    values = pictures.small(
        "table", folder.parent / "prepared", table=folder / "table.csv", **settings
    )
    return ImageTable.model_validate(values).open()


def table(folder: Path, count: int) -> Path:
    """A table of so many pictures: every fifth has 16 bits, of the others every third is turned."""
    folder.mkdir()
    plain, deep = saved(quarters(), "PNG"), png(ALL_16, 16, 0)
    turned = saved(stored(6)[0], "PNG", exif=stored(6)[1])
    lines = ["path,label,split"]
    for number in range(count):
        content = deep if number % 5 == 0 else turned if number % 3 == 0 else plain
        (folder / f"{number}.png").write_bytes(content)
        split = ("train", "val", "test")[number % 3]
        lines.append(f"{number}.png,{('cat', 'dog')[number // 3 % 2]},{split}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_what_was_changed_is_counted_once_however_often_it_is_prepared(tmp_path: Path) -> None:
    count = 2 * CHUNK + 30
    folder = table(tmp_path / "own", count)
    broken = folder / f"{CHUNK + 1}.png"
    content, times = broken.read_bytes(), broken.stat()
    broken.write_bytes(bytes(len(content)))
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))  # it is the disk's fault
    with pytest.raises(BrokenRowsError, match=rf"row {CHUNK + 2}: broken image"):
        opened(folder).prepare()
    broken.write_bytes(content)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    data = opened(folder)
    assert data.unprepared() == CHUNK
    data.prepare()
    deep = len(range(0, count, 5))
    turned = len([n for n in range(0, count, 3) if n % 5])
    assert data.remarks() == [f"{turned} {REMARKS['turned']}", f"{deep} {REMARKS['scaled']}"]
    assert opened(folder).remarks() == data.remarks()


def test_pictures_that_both_versions_show_alike_are_the_same_data(tmp_path: Path) -> None:
    folder = pictures.table(tmp_path / "own")
    one, two = opened(folder, decoding=1), opened(folder)
    assert two.settings.decoding == 2
    assert one.fingerprint == two.fingerprint
    assert one.rows.place != two.rows.place
    assert one.remarks() == two.remarks() == []
    Image.fromarray(ALL_16).save(folder / "3.jpg", "PNG")
    one, two = opened(folder, decoding=1), opened(folder)
    assert one.fingerprint != two.fingerprint
    assert two.remarks() == [f"1 {REMARKS['scaled']}"]


def test_the_first_version_finds_what_earlier_versions_prepared(tmp_path: Path) -> None:
    from agrekd_ray.data.pictures import FolderPictures

    folder = pictures.table(tmp_path / "own")
    data = opened(folder, decoding=1)
    names = [f"{number}.jpg" for number in range(data.size)]
    stamp = FolderPictures(folder, names, str).stamp
    assert data.rows.place.name == fingerprint(1, stamp, 10)[:24]
    data.prepare()
    assert len((data.rows.place / "digests").read_bytes()) == 32, "a digest a chunk, nothing else"


def test_what_is_kept_follows_what_models_see_unless_it_is_said(tmp_path: Path) -> None:
    folder = pictures.table(tmp_path / "own")
    for size, side in ((224, 256), (64, 73), (1, 1)):
        data, said = opened(folder, size=size, resize=None), opened(folder, size=size, resize=side)
        assert data.rows.place == said.rows.place, "what was prepared before is found"
        assert data.fingerprint == said.fingerprint, "and so are models trained on it"
    with pytest.raises(ValueError, match=r"smaller than what models see \(data.size is 8\)"):
        opened(folder, size=8, resize=7)


def test_pictures_of_which_models_see_little_are_said(tmp_path: Path) -> None:
    folder = pictures.table(tmp_path / "own")
    for number, size in ((1, (9, 20)), (2, (21, 10)), (3, (20, 10))):
        (folder / f"{number}.jpg").write_bytes(pictures.picture(number, 0, 0, size))
    said = "models see the middle 6 × 6 of 10 × 10 pixels, 36% of a picture; data.resize: 7 shows"
    (line,) = opened(folder, size=6).remarks()
    assert line.startswith(said), "which needs no picture to be decoded"
    data = opened(folder, size=6)
    data.prepare()
    assert data.remarks() == [line, f"1 {REMARKS['small']}", f"2 {REMARKS['long']}"]
    assert opened(folder, size=8).remarks() == data.remarks()[1:]


def test_pictures_that_an_earlier_version_prepared_are_found_without_its_counts(
    tmp_path: Path,
) -> None:
    folder = table(tmp_path / "own", CHUNK + 5)
    data = opened(folder)
    data.prepare()
    file, known = data.rows.place / "digests", len(REMARKS) - 2
    records = np.frombuffer(file.read_bytes(), np.uint8).reshape(2, -1)
    file.write_bytes(records[:, : 32 + 4 * known].tobytes())
    assert not opened(folder).unprepared()
    assert opened(folder).fingerprint == data.fingerprint
    assert opened(folder).remarks() == data.remarks()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="its digests are of other rows"):
        opened(folder).remarks()


def test_an_unfit_picture_has_its_row(tmp_path: Path) -> None:
    folder = pictures.table(tmp_path / "own")
    (folder / "11.jpg").write_bytes(UNFIT["32 bits"][0])
    with pytest.raises(DataError, match=r"table.csv, row 12: a picture of 32-bit whole numbers"):
        opened(folder).prepare()
