"""Bytes to arrays and back: formats, orientation, profiles, alpha, greyscale, metadata, atomic writing."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from emask import images
from emask.errors import ImageError
from emask.images import encode_photo, load_photo, save_photo, write_bytes

SERIAL = ExifTags.Base.BodySerialNumber
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    """A smooth picture that survives JPEG."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 55, size[1]))
    rgba = np.stack([x + y, y * 3, 200 - x, np.where(x > 100, 255, 40)], -1).astype(np.uint8)
    return Image.fromarray(rgba).convert(mode)


def encoded(image: Image.Image, file_format: str, **arguments: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **arguments)
    return buffer.getvalue()


def exif_with_everything() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Artist] = "Ada"
    exif[ExifTags.Base.ImageDescription] = exif[ExifTags.Base.Copyright] = "Lovelace"
    exif[ExifTags.Base.XPTitle] = "Lovelace".encode("utf-16le")
    exif.get_ifd(ExifTags.IFD.Exif)[0xA437] = "Lovelace"  # Photographer, new with EXIF 3.0
    exif.get_ifd(ExifTags.IFD.Exif)[SERIAL] = "SN-12345"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:01:02 03:04:05"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[2] = (48.0, 8.0, 0.0)
    return exif


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of (tag, type, count, value) as given, also where Pillow would write another type."""
    at = 8 + 2 + 12 * len(entries) + 4  # offsets are from the start of the TIFF header
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            value, values = struct.pack("<I", at + len(values)), values + value
        directory += struct.pack("<HHI4s", tag, kind, count, value)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values


def cmyk_profile() -> bytes:
    """A profile of a press whose paper is white, whose cyan prints red and whose other inks print black."""
    white, red, black = bytes([255, 128, 128]), bytes([136, 208, 195]), bytes([0, 128, 128])  # CIELAB in 8 bits
    corners = {0b0000: white, 0b1000: red}  # one bit for each ink: C, M, Y, K
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *np.eye(3, dtype=int).ravel() * 65536)
    table += ramp * 4 + b"".join(corners.get(inks, black) for inks in range(16)) + ramp * 3
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4xI", 144 + len(table), 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    return (header + d50).ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize(("file_format", "arguments"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_lossless_round_trip_is_exact(mode: str, file_format: str, arguments: dict[str, object]) -> None:
    image = picture(mode)
    photo = load_photo(encoded(image, file_format, **arguments))
    again = load_photo(encode_photo(photo))
    np.testing.assert_array_equal(again.pixels, np.asarray(image.convert("RGB")))
    assert again.format == file_format and (again.alpha is not None) == mode.endswith("A")
    if photo.alpha is not None:
        np.testing.assert_array_equal(again.alpha, photo.alpha)
    if file_format == "PNG":  # WebP itself knows no greyscale
        assert Image.open(io.BytesIO(encode_photo(photo))).mode == mode


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_formats_stay_close(file_format: str) -> None:
    image = picture()
    data = encode_photo(load_photo(encoded(image, file_format, quality=95)))
    again = Image.open(io.BytesIO(data))
    assert again.format == file_format and again.size == image.size
    assert np.abs(np.asarray(again, float) - np.asarray(image, float)).mean() < 4


def test_jpeg_is_written_without_chroma_subsampling_and_grey_as_one_channel() -> None:
    from PIL import JpegImagePlugin

    colour = Image.open(io.BytesIO(encode_photo(load_photo(encoded(picture(), "JPEG")))))
    assert JpegImagePlugin.get_sampling(colour) == 0
    grey = load_photo(encoded(picture("L"), "JPEG"))
    changed = grey.pixels.copy()
    changed[..., 0] += 3  # the mean over the channels is what is written
    assert Image.open(io.BytesIO(encode_photo(grey, changed))).mode == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied_once(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo = load_photo(encoded(picture(), file_format, exif=exif))
    assert photo.pixels.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    again = load_photo(encode_photo(photo))
    assert again.pixels.shape == photo.pixels.shape
    assert Image.open(io.BytesIO(encode_photo(photo))).getexif().get(ExifTags.Base.Orientation, 1) == 1


# how the stored picture is to be turned, by orientation
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("metadata", ["strip", "keep"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "others"), [
    pytest.param(3, [], id="clean"),
    pytest.param(1, [], id="orientation as a byte"),
    pytest.param(3, [(ExifTags.Base.XResolution, 2, 3, b"72\0")], id="resolution as text"),
    pytest.param(3, [(ExifTags.Base.Make, 5, 1, struct.pack("<II", 1, 2))], id="maker as a fraction"),
])  # fmt: skip
def test_orientation_is_applied_beside_entries_of_another_type(
    kind: int, others: list[tuple[int, int, int, bytes]], orientation: int, metadata: str
) -> None:
    exif = exif_of((ExifTags.Base.Orientation, kind, 1, bytes([orientation, 0])), *others)
    photo = load_photo(encoded(picture(), "PNG", exif=exif), metadata=metadata)  # type: ignore[arg-type]
    upright = TURNS[orientation](np.asarray(picture("RGB")))
    np.testing.assert_array_equal(photo.pixels, upright)
    np.testing.assert_array_equal(load_photo(encode_photo(photo)).pixels, upright)


@pytest.mark.parametrize("value", [b"\0\0", b"\x09\0"])
def test_an_unknown_orientation_turns_nothing(value: bytes) -> None:
    exif = exif_of((ExifTags.Base.Orientation, 3, 1, value))
    photo = load_photo(encoded(picture(), "PNG", exif=exif))
    np.testing.assert_array_equal(photo.pixels, np.asarray(picture("RGB")))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("metadata", ["strip", "keep"])
def test_exif_has_the_sides_of_the_upright_photo(orientation: int, metadata: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength] = 40, 24
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight] = 40, 24
    photo = load_photo(encoded(picture(), "JPEG", exif=exif), metadata=metadata)  # type: ignore[arg-type]
    written = Image.open(io.BytesIO(encode_photo(photo)))
    exif = written.getexif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == written.size
    if metadata == "keep":
        assert (exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength]) == written.size


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("metadata", ["strip", "keep"])
def test_metadata_policy(file_format: str, metadata: str) -> None:
    data = encoded(picture(), file_format, exif=exif_with_everything())
    written = encode_photo(load_photo(data, metadata=metadata))  # type: ignore[arg-type]
    exif = Image.open(io.BytesIO(written)).getexif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    assert exif[ExifTags.Base.Make] == "Maker"
    assert details[ExifTags.Base.DateTimeOriginal] == "2024:01:02 03:04:05"
    kept = metadata == "keep"
    assert bool(exif.get_ifd(ExifTags.IFD.GPSInfo)) == kept
    assert (SERIAL in details) == kept and (b"SN-12345" in written) == kept
    assert (ExifTags.Base.Artist in exif) == kept and (0xA437 in details) == kept
    assert all((name in written) == kept for name in (b"Lovelace", "Lovelace".encode("utf-16le")))


def photoshop(**resources: bytes) -> bytes:
    """An APP13 segment; resources by their number in hexadecimal after an r."""
    content = b"Photoshop 3.0\0"
    for name, value in resources.items():
        content += struct.pack(">4sHHI", b"8BIM", int(name[1:], 16), 0, len(value)) + value + bytes(len(value) % 2)
    content = content[:65533]  # the longest that fits: of the last value only its padding is lost
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def test_iptc_is_kept_without_photoshops_thumbnails() -> None:
    def written(metadata: str, iptc: bytes) -> bytes:
        preview = encoded(picture(size=(16, 16)), "JPEG", comment=b"THUMBNAIL-MARK")
        extra = photoshop(r0409=preview, r040C=preview, r0425=b"digest") + photoshop(r0404=iptc)
        data = encoded(picture(), "JPEG", extra=extra)
        return encode_photo(load_photo(data, metadata=metadata))  # type: ignore[arg-type]

    iptc = b"\x1c\x02\x78\0\x0aby the sea"  # dataset 2:120, the caption
    for caption in (iptc, iptc + b"\x1c\x02\x50\0\x03Ada"):  # the length odd and even
        kept = written("keep", caption)
        assert Image.open(io.BytesIO(kept)).info["photoshop"] == {0x0404: caption} and b"THUMBNAIL-MARK" not in kept
        assert "photoshop" not in Image.open(io.BytesIO(written("strip", caption))).info
    preview = iptc + b"\x1c\x02\xca\0\x04\xff\xd8\xff\xe0"  # dataset 2:202
    assert b"by the sea" not in written("keep", preview)
    longest = 65533 - 14 - 12
    assert b"IPTC" in written("keep", b"IPTC".ljust(longest - 1))
    assert b"IPTC" not in written("keep", b"IPTC".ljust(longest)), "with its padding it is too long"


PREVIEWS = {name: encoded(picture(size=(16, 16)), name) for name in ("JPEG", "PNG", "WEBP")}


def test_text_of_a_png_keeps_no_thumbnail() -> None:
    def kept(**text: str) -> dict[str, str]:
        chunks = PngImagePlugin.PngInfo()
        for key, value in text.items():
            chunks.add_itxt(key, value)
        photo = load_photo(encoded(picture(), "PNG", pnginfo=chunks), metadata="keep")
        return {key: str(value) for key, value in Image.open(io.BytesIO(encode_photo(photo))).text.items()}

    turned = {"Comment": "by the sea", "XML:com.adobe.xmp": '<x tiff:Orientation="6"/>'}
    assert kept(**turned) == {**turned, "XML:com.adobe.xmp": '<x tiff:Orientation="1"/>'}
    assert kept(**{"XML:com.adobe.xmp": "<xmp:Thumbnails/>", "Raw profile type 8bim": "8bim 1 00"}) == {}
    assert kept(Comment="the thumbnail of a video") == {"Comment": "the thumbnail of a video"}
    for preview in PREVIEWS.values():
        value = base64.b64encode(preview).decode()
        assert kept(**{"XML:com.adobe.xmp": f'<x GImage:Data="{value}"/>'}) == {}
        assert kept(Icon=value) == kept(Icon=preview.decode("latin-1")) == {}


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("preview", PREVIEWS)
def test_xmp_with_a_preview_is_never_kept(file_format: str, preview: str) -> None:
    def written(content: bytes) -> object:
        data = encoded(picture(), file_format, xmp=b"<x>" + content + b"</x>")
        return Image.open(io.BytesIO(encode_photo(load_photo(data, metadata="keep")))).info.get("xmp")

    assert written(b"by the sea") == b"<x>by the sea</x>"
    assert written(base64.b64encode(PREVIEWS[preview])) is None


def test_a_comment_of_a_jpeg_that_is_a_preview_is_never_kept() -> None:
    def written(comment: bytes) -> bytes:
        return encode_photo(load_photo(encoded(picture(), "JPEG", comment=comment), metadata="keep"))

    assert b"by the sea" in written(b"by the sea")
    assert b"by the sea" not in written(b"by the sea" + PREVIEWS["JPEG"])


def test_the_thumbnail_of_the_unchanged_face_is_never_kept() -> None:
    # EXIF with a thumbnail directory (IFD1): offsets are from the start of the TIFF header
    thumbnail = encoded(picture(size=(16, 16)), "JPEG") + b"THUMBNAIL-MARK"

    def entry(tag: int, kind: int, count: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, kind, count, value)

    first = (1).to_bytes(2, "little") + entry(0x0112, 3, 1, 1)
    second = (3).to_bytes(2, "little") + entry(0x0103, 3, 1, 6)
    start = 8 + len(first) + 4
    at = start + 2 + 3 * 12 + 4
    second += entry(0x0201, 4, 1, at) + entry(0x0202, 4, 1, len(thumbnail))
    tiff = b"II*\0" + (8).to_bytes(4, "little") + first + start.to_bytes(4, "little") + second + b"\0" * 4 + thumbnail
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0" + tiff)
    assert b"THUMBNAIL-MARK" in data
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(ExifTags.IFD.IFD1)
    for metadata in ("strip", "keep"):
        assert b"THUMBNAIL-MARK" not in encode_photo(load_photo(data, metadata=metadata))  # type: ignore[arg-type]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("preview", PREVIEWS)
def test_a_preview_in_the_makers_notes_is_never_kept(file_format: str, preview: str) -> None:
    def written(notes: bytes) -> bytes:
        exif = exif_with_everything()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = notes
        data = encoded(picture(), file_format, exif=exif)
        assert b"MAKER-MARK" in data
        return encode_photo(load_photo(data, metadata="keep"))

    kept = written(b"Maker\0MAKER-MARK")
    assert b"MAKER-MARK" in kept
    dropped = written(b"Maker\0MAKER-MARK" + PREVIEWS[preview])
    assert b"MAKER-MARK" not in dropped and b"SN-12345" in dropped


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_colour_profile_is_kept(file_format: str) -> None:
    photo = load_photo(encoded(picture(), file_format, icc_profile=SRGB))
    assert Image.open(io.BytesIO(encode_photo(photo))).info["icc_profile"] == SRGB


@pytest.mark.parametrize("profile", [cmyk_profile(), b"", b"damaged", cmyk_profile()[:500], SRGB])
def test_cmyk_becomes_rgb_as_its_profile_says(profile: bytes) -> None:
    """Without one that says how, as Pillow converts."""
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255  # white paper beside cyan
    data = encoded(Image.frombytes("CMYK", (32, 16), inks.tobytes()), "JPEG", quality=95, icc_profile=profile)
    photo = load_photo(data)
    paper, ink = photo.pixels[4, 4].astype(int), photo.pixels[4, 28].astype(int)
    assert np.abs(paper - 255).max() < 16
    assert np.abs(ink - ([255, 0, 0] if profile == cmyk_profile() else [0, 255, 255])).max() < 16
    written = Image.open(io.BytesIO(encode_photo(photo)))
    assert written.mode == "RGB" and "icc_profile" not in written.info


def test_other_modes_become_rgb_or_grey() -> None:
    palette = load_photo(encoded(picture().quantize(64), "PNG"))
    assert not palette.grey and palette.pixels.shape == (24, 40, 3)
    bilevel = load_photo(encoded(picture("1"), "PNG"))
    assert bilevel.grey and set(np.unique(bilevel.pixels)) <= {0, 255}
    cmyk = load_photo(encoded(picture("CMYK"), "JPEG"))
    assert Image.open(io.BytesIO(encode_photo(cmyk))).mode == "RGB"
    deep = Image.fromarray((np.linspace(0, 65535, 40 * 24).reshape(24, 40)).astype(np.uint16))
    grey = load_photo(encoded(deep, "PNG"))
    assert grey.grey and grey.pixels.min() == 0 and grey.pixels.max() == 255


def png(depth: int, kind: int, row: bytes, **chunks: bytes) -> bytes:
    """A picture of one row of four pixels, as Pillow writes none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0))]
    parts += [chunk(name.encode(), content) for name, content in chunks.items()]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("depth", "row", "level", "alpha"), [
    (1, bytes([0b01010000]), 1, [255, 0, 255, 0]),
    (2, bytes([0b00011011]), 2, [255, 255, 0, 255]),
    (4, bytes([0x03, 0x4F]), 3, [255, 0, 255, 255]),
    (8, bytes([0, 7, 8, 255]), 7, [255, 0, 255, 255]),
    (16, struct.pack(">4H", 0, 0x1234, 0x1235, 65535), 0x1234, [255, 0, 255, 255]),
])  # fmt: skip
def test_one_grey_level_stands_for_transparent(depth: int, row: bytes, level: int, alpha: list[int]) -> None:
    photo = load_photo(png(depth, 0, row, tRNS=struct.pack(">H", level)))
    assert photo.grey and photo.alpha is not None and photo.alpha.tolist() == [alpha]
    again = load_photo(encode_photo(photo))
    assert again.grey and again.alpha is not None and again.alpha.tolist() == [alpha]
    assert load_photo(png(depth, 0, row)).alpha is None


def test_one_colour_of_16_bits_stands_for_transparent() -> None:
    row = struct.pack(">12H", *[0x1234, 0, 0], *[0x1334, 0, 0], *[0x1234, 0x100, 0], *[0x1234, 0, 0])
    photo = load_photo(png(16, 2, row, tRNS=struct.pack(">3H", 0x1234, 0, 0)))
    assert photo.alpha is not None and photo.alpha.tolist() == [[0, 255, 255, 0]]


@pytest.mark.parametrize("metadata", ["strip", "keep"])
def test_what_a_png_says_of_its_colours_is_kept(metadata: str) -> None:
    chunks = {
        "gAMA": struct.pack(">I", 100_000), "sRGB": b"\1",
        "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    }  # fmt: skip
    written = encode_photo(load_photo(png(8, 2, bytes(12), **chunks), metadata=metadata))  # type: ignore[arg-type]
    assert all(name.encode() + content in written for name, content in chunks.items())
    plain = encode_photo(load_photo(png(8, 2, bytes(12)), metadata=metadata))  # type: ignore[arg-type]
    assert not any(name.encode() in plain for name in chunks)


def test_memory_that_runs_out_is_the_photos_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has been decoded, and when it is encoded."""

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError

    data = encoded(picture("L"), "PNG")
    photo = load_photo(data)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "fromarray", fail)
        with pytest.raises(ImageError, match=r"not enough memory for the picture \(40 x 24 pixels\)"):
            encode_photo(photo)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match="not enough memory"):
        load_photo(data)


BAD = [
    ("zero bytes", b"", "is empty"),
    ("text", b"hello\n" * 50, "is not a PNG, JPEG or WebP picture"),
    ("truncated JPEG", encoded(picture(size=(200, 200)), "JPEG")[:1500], "is truncated"),
    ("truncated PNG", encoded(picture(size=(200, 200)), "PNG")[:500], "bad"),
    ("truncated WebP", encoded(picture(size=(200, 200)), "WEBP")[:200], "bad"),
    ("GIF", encoded(picture("P"), "GIF"), "is not a PNG, JPEG or WebP picture"),
    (
        "animated",
        encoded(picture(), "WEBP", save_all=True, append_images=[picture().rotate(180)], duration=100),
        "is animated",
    ),
]


@pytest.mark.parametrize(("name", "data", "said"), BAD, ids=[case[0] for case in BAD])
def test_bad_bytes_are_one_clear_error(name: str, data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        load_photo(data, name="bad")
    assert "bad" in caught.value.message and "\n" not in caught.value.message


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (12_000, 9_000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"too large \(12000 x 9000 pixels\)"):
        load_photo(data)


def test_writing_makes_folders_and_never_replaces_without_force(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a" / "b.png", b"first")
    with pytest.raises(ImageError, match="exists already"):
        write_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    write_bytes(path, b"second", force=True)
    assert path.read_bytes() == b"second" and os.listdir(path.parent) == ["b.png"]
    with pytest.raises(ImageError, match="is a file"):
        write_bytes(path / "c.png", b"third")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise failure

    old = write_bytes(tmp_path / "a.png", b"old")
    monkeypatch.setattr(images.os, "replace", fail)
    with pytest.raises((ImageError, KeyboardInterrupt)):
        write_bytes(old, b"new", force=True)
    assert old.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]


def test_save_photo_honours_quality(tmp_path: Path) -> None:
    photo = load_photo(encoded(picture(size=(200, 200)), "JPEG"))
    low, high = (save_photo(photo, tmp_path / f"{q}.jpg", quality=q) for q in (30, 95))
    assert low.stat().st_size < high.stat().st_size
