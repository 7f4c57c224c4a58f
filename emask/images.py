"""The only code between image bytes and arrays: formats, orientation, colour profile, alpha, greyscale, metadata."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from emask.errors import EmaskError, ImageError

Metadata = Literal["strip", "keep"]

# A picture with more pixels is refused before it is decoded: 100 megapixels take 300 MB as an array.
PIXEL_LIMIT = 100_000_000
# JPEG and WebP quality of what is written. At 95, without chroma subsampling, little of the mask is lost.
QUALITY = 95

# The EXIF entries that "strip" leaves: model of the camera, date, exposure, colour. A list of what to drop would never
# be complete: every caption may hold a name, and a new version of EXIF brings new ones.
_PUBLIC_BASE = {
    ExifTags.Base[name]
    for name in """Make Model Orientation XResolution YResolution ResolutionUnit DateTime WhitePoint
    PrimaryChromaticities YCbCrCoefficients YCbCrPositioning ReferenceBlackWhite ExifOffset""".split()
}
_PUBLIC_EXIF = {
    ExifTags.Base[name]
    for name in """ExposureTime FNumber ExposureProgram ISOSpeedRatings SensitivityType RecommendedExposureIndex
    ExifVersion DateTimeOriginal DateTimeDigitized SubsecTime SubsecTimeOriginal SubsecTimeDigitized
    ComponentsConfiguration CompressedBitsPerPixel ShutterSpeedValue ApertureValue BrightnessValue ExposureBiasValue
    MaxApertureValue SubjectDistance MeteringMode LightSource Flash FocalLength FlashPixVersion ColorSpace
    ExifImageWidth ExifImageHeight ExifInteroperabilityOffset FocalPlaneXResolution FocalPlaneYResolution
    FocalPlaneResolutionUnit SensingMethod CustomRendered ExposureMode WhiteBalance DigitalZoomRatio
    FocalLengthIn35mmFilm SceneCaptureType GainControl Contrast Saturation Sharpness SubjectDistanceRange
    LensSpecification LensMake LensModel Gamma""".split()
}
# How to turn a stored picture upright, by the orientation that EXIF gives it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# How a JPEG, PNG or WebP begins, as it is and in base64.
_PICTURE = re.compile(rb"\xff\xd8\xff|/9j/|\x89PNG|iVBORw0KGgo|RIFF.{4}WEBP|UklGR", re.DOTALL)
# Photoshop's resource that holds IPTC: captions, names, places.
_IPTC = 0x0404


@dataclass(frozen=True)
class Photo:
    """One decoded photo, upright.

    Attributes:
        pixels: (H, W, 3) uint8 RGB; a greyscale photo has three equal channels.
        name: what to call it in messages.
        format: "JPEG", "PNG" or "WEBP".
        alpha: (H, W) uint8, or None.
        grey: written back as one channel.
        lossless: a WebP that was stored without loss (PNG always is).
        save: arguments for Pillow's encoder: colour profile, EXIF, resolution and the like.
    """

    pixels: np.ndarray
    name: str
    format: str
    alpha: np.ndarray | None
    grey: bool
    lossless: bool
    save: dict[str, Any]


def load_photo(source: str | Path | bytes, *, metadata: Metadata = "strip", name: str | None = None) -> Photo:
    """Decode a photo and turn it upright.

    Args:
        source: a path, or the encoded bytes.
        metadata: "strip" keeps camera, date, exposure and colour profile and drops the rest, location, serial numbers
            and names with it; "keep" keeps all. Either way the orientation is applied, and embedded thumbnails and
            previews, which show the unchanged face, are dropped, with the maker's notes, XMP, IPTC, comment or text
            that they lie in.
        name: used in error messages; the path when omitted.

    Raises:
        ImageError: when it cannot be read, is no PNG, JPEG or WebP, is damaged, animated or too large.
    """
    label = name or (str(source) if not isinstance(source, bytes) else "the picture")
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise ImageError(f"cannot read {label}: {error.strerror or error}") from None
    if not data:
        raise ImageError(f"{label} is empty", "the file has zero bytes; fetch it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about sizes checked here, and about damaged EXIF
        try:
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
        except Image.DecompressionBombError:
            raise _too_large(label) from None
        except UnidentifiedImageError:
            raise ImageError(f"{label} is not a PNG, JPEG or WebP picture", "convert it to one of these") from None
        except Exception as error:  # a damaged header raises whatever the format's parser stumbles over
            raise _damaged(label, error) from None
        if image.width * image.height > PIXEL_LIMIT:
            raise _too_large(label, image.size)
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise ImageError(f"{label} is animated", "save one frame as a picture of its own")
        try:
            image.load()
        except MemoryError:
            raise _no_memory(label, image.size) from None
        except Exception as error:
            raise _damaged(label, error) from None
        try:
            return _from_image(image, data, label, metadata)
        except MemoryError:
            raise _no_memory(label, image.size) from None


def _too_large(label: str, size: tuple[int, int] | None = None) -> ImageError:
    extent = f" ({size[0]} x {size[1]} pixels)" if size else ""
    limit = PIXEL_LIMIT // 1_000_000
    return ImageError(f"{label} is too large{extent}: the limit is {limit} megapixels", "scale it down first")


def _no_memory(label: str, size: tuple[int, int]) -> ImageError:
    width, height = size
    return ImageError(f"not enough memory for {label} ({width} x {height} pixels)", "scale it down first")


def _damaged(label: str, error: Exception) -> ImageError:
    if "truncated" in str(error).lower():
        return ImageError(f"{label} is truncated: part of the file is missing", "fetch the file again")
    return ImageError(f"{label} is damaged and cannot be decoded", "fetch the file again")


def _from_image(image: Image.Image, data: bytes, label: str, metadata: Metadata) -> Photo:
    file_format = "JPEG" if image.format == "MPO" else str(image.format)
    info: dict[str, Any] = {str(key): value for key, value in image.info.items()}
    cmyk = image.mode in ("CMYK", "YCCK")
    if file_format == "PNG" and "transparency" in info:
        image.info["transparency"] = _transparency_in_8_bits(image.mode, data[24], info["transparency"])
    upright = _upright(image)  # before the EXIF is cleaned: Pillow hands out one and the same EXIF object
    save = _encoder_arguments(image, upright.size, file_format, info, metadata)
    image = upright
    if cmyk:  # written back as RGB, to which a CMYK profile does not apply
        image = _cmyk_to_rgb(image, save.pop("icc_profile", None))
    transparent = "transparency" in info
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip instead of scaling
        values = np.asarray(image)
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
        if transparent:
            image.putalpha(Image.fromarray(np.where(values == info["transparency"], 0, 255).astype(np.uint8)))
    elif image.mode == "P":
        image = image.convert("RGBA" if transparent else "RGB")
    elif image.mode == "1":
        image = image.convert("LA" if transparent else "L")
    elif transparent and image.mode in ("L", "RGB"):  # one grey level or colour stands for "transparent"
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    grey = image.mode in ("L", "LA", "La")
    alpha = np.asarray(image.getchannel("A")).copy() if image.mode in ("LA", "RGBA") else None
    return Photo(
        pixels=np.asarray(image.convert("RGB")).copy(),
        name=label,
        format=file_format,
        alpha=alpha,
        grey=grey,
        lossless=file_format == "PNG" or (file_format == "WEBP" and _is_lossless_webp(data)),
        save=save,
    )


def _transparency_in_8_bits(mode: str, depth: int, stored: Any) -> Any:
    """The grey level or colour that stands for "transparent" as Pillow's pixels have it: it brings them to 8 bits.

    Args:
        mode: Pillow's.
        depth: bits of a sample in the file.
        stored: in as many bits.
    """
    if mode == "L" and depth < 8:
        return stored * 255 // (2**depth - 1)
    if mode == "RGB" and depth == 16:  # one of several colours that are one in 8 bits
        return tuple(value >> 8 for value in stored)
    return stored


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose would write the EXIF anew as well, which fails where an entry is of an unusual type
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # unreadable EXIF: the picture stays as stored
        return image
    if isinstance(orientation, bytes) and len(orientation) == 1:  # stored as a byte
        orientation = orientation[0]
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as the profile has them: inks differ so much that without it they come out far too bright."""
    if profile:
        try:
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB")
            if converted is not None:  # it is for in-place conversion alone
                return converted
        except ImageCms.PyCMSError:
            pass  # a damaged profile, or one for other colours
    return image.convert("RGB")


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first picture chunk of a RIFF WebP container is VP8L."""
    at = 12
    while at + 8 <= len(data):
        chunk = data[at : at + 4]
        if chunk in (b"VP8L", b"VP8 "):
            return chunk == b"VP8L"
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def _encoder_arguments(
    image: Image.Image, size: tuple[int, int], file_format: str, info: dict[str, Any], metadata: Metadata
) -> dict[str, Any]:
    save: dict[str, Any] = {}
    if info.get("icc_profile"):
        save["icc_profile"] = info["icc_profile"]
    if "dpi" in info and file_format in ("JPEG", "PNG"):
        save["dpi"] = info["dpi"]
    exif = _clean_exif(image, size, metadata)
    if exif:
        save["exif"] = exif
    chunks = PngImagePlugin.PngInfo()
    if file_format == "PNG":
        for name, content in _colour_chunks(info).items():
            chunks.add(name, content)
    if metadata == "keep":
        xmp = info.get("xmp")
        if isinstance(xmp, bytes) and file_format in ("JPEG", "WEBP") and not _shows_a_picture(xmp):
            save["xmp"] = _upright_xmp(xmp)
        if file_format == "JPEG":
            if info.get("comment") and not _PICTURE.search(info["comment"]):
                save["comment"] = info["comment"]
            save["extra"] = _iptc_segment(info.get("photoshop", {}).get(_IPTC, b""))
        text = getattr(image, "text", None)
        if file_format == "PNG" and text:
            for key, value in text.items():
                if key == "XML:com.adobe.xmp":
                    if _shows_a_picture(value.encode()):
                        continue
                    value = _upright_xmp(value.encode()).decode()
                elif _PICTURE.search(value.encode("latin-1", "replace")):  # Latin-1 is how Pillow read the bytes
                    continue
                # ImageMagick's way to store EXIF, which is written as such, and others that may have thumbnails
                if not key.startswith("Raw profile type "):
                    chunks.add_itxt(key, str(value))
    if chunks.chunks:
        save["pnginfo"] = chunks
    return save


def _colour_chunks(info: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What a PNG without a colour profile says of its colours, as Pillow read it, in chunks to write back."""
    chunks = {}
    if "gamma" in info:
        chunks[b"gAMA"] = struct.pack(">I", round(info["gamma"] * 100_000))
    if len(info.get("chromaticity", ())) == 8:
        chunks[b"cHRM"] = struct.pack(">8I", *(round(value * 100_000) for value in info["chromaticity"]))
    if "srgb" in info:
        chunks[b"sRGB"] = bytes([info["srgb"]])
    return chunks


def _iptc_segment(iptc: bytes) -> bytes:
    """The JPEG segment (APP13) for IPTC; not Photoshop's other resources, some of which are thumbnails.

    Nothing for IPTC with a preview, or when it is too long for a segment.
    """
    content = b"Photoshop 3.0\0" + struct.pack(">4sHHI", b"8BIM", _IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    if not iptc or _PICTURE.search(iptc) or len(content) > 65533:
        return b""
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def _upright_xmp(xmp: bytes) -> bytes:
    return re.sub(rb'(tiff:Orientation(?:="|>))[1-8]', rb"\g<1>1", xmp)


def _shows_a_picture(value: bytes) -> bool:
    """Whether EXIF or XMP holds a picture, or speaks of a thumbnail, which would show the unchanged face."""
    return b"humbnail" in value or _PICTURE.search(value) is not None


def _clean_exif(image: Image.Image, size: tuple[int, int], metadata: Metadata) -> bytes | None:
    """EXIF to write back: upright, without a thumbnail, and with public entries alone unless all are kept.

    Args:
        image: has the EXIF.
        size: of the upright picture.
        metadata: as for `load_photo`.
    """
    try:
        exif = image.getexif()
        if not len(exif):
            return None
        # reading the sub-directories makes Pillow write them back; IFD1, the thumbnail, it never writes
        details = exif.get_ifd(ExifTags.IFD.Exif)
        exif.get_ifd(ExifTags.IFD.GPSInfo)
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        if metadata == "strip":
            for tag in set(exif) - _PUBLIC_BASE:
                del exif[tag]
            exif._ifds.pop(ExifTags.IFD.GPSInfo, None)
            for tag in set(details) - _PUBLIC_EXIF:
                del details[tag]
        for entries, sides in (
            (exif, (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength)),
            (details, (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)),
        ):
            for tag, side in zip(sides, size, strict=True):
                if tag in entries:  # of the picture as it was stored
                    entries[tag] = side
        # makers keep a preview of half the photo's size in their notes
        for entries in (exif, details):
            for tag in [tag for tag, value in entries.items() if isinstance(value, bytes) and _shows_a_picture(value)]:
                del entries[tag]
        return exif.tobytes() or None
    except Exception:  # damaged EXIF cannot be cleaned, so none of it is kept
        return None


def encode_photo(photo: Photo, pixels: np.ndarray | None = None, *, quality: int = QUALITY) -> bytes:
    """Encode in the photo's own format, with its own profile, alpha and metadata.

    Args:
        photo: says how.
        pixels: (H, W, 3) uint8 RGB instead of the photo's; of a greyscale photo the channels' mean is written.
        quality: JPEG and lossy WebP quality, 1..100; JPEG is written without chroma subsampling.

    Raises:
        ImageError: when the picture cannot be stored in this format, or memory runs out.
    """
    values = photo.pixels if pixels is None else pixels
    try:
        return _encode(photo, values, quality)
    except MemoryError:
        raise _no_memory(photo.name, (values.shape[1], values.shape[0])) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot encode {photo.name} as {photo.format}: {error}") from None


def _encode(photo: Photo, values: np.ndarray, quality: int) -> bytes:
    if photo.grey:
        image = Image.fromarray(np.rint(values.mean(axis=2, dtype=np.float32)).astype(np.uint8))
    else:
        image = Image.fromarray(values)
    if photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha))
    arguments: dict[str, Any] = dict(photo.save)
    if photo.format == "JPEG":
        arguments.update(quality=quality)
        if not photo.grey:
            arguments["subsampling"] = 0
    elif photo.format == "WEBP":
        # `exact` keeps the colours under transparent pixels
        arguments.update(quality=100 if photo.lossless else quality, lossless=photo.lossless, exact=True)
    buffer = io.BytesIO()
    image.save(buffer, format=photo.format, **arguments)
    return buffer.getvalue()


def save_photo(
    photo: Photo, path: str | Path, pixels: np.ndarray | None = None, *, quality: int = QUALITY, force: bool = False
) -> Path:
    """Encode a photo and write it whole or not at all; arguments as for `encode_photo` and `write_bytes`."""
    return write_bytes(Path(path), encode_photo(photo, pixels, quality=quality), force=force)


def write_bytes(path: Path, data: bytes, *, force: bool = False) -> Path:
    """Write a file whole or not at all: to a temporary file beside it, synced, then renamed.

    Args:
        path: missing folders are made.
        data: the content.
        force: replace a file that is there already.

    Raises:
        ImageError: when the file exists and `force` is not set, or it cannot be written. No partial file stays behind.
    """
    if not force and (path.exists() or path.is_symlink()):
        raise ImageError(f"{path} exists already", "use --force to replace it, or --resume to skip what is done")
    temporary = path.parent / f".emask-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # 0o666 less the umask, as for any other file the user makes; tempfile would make it private
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise _write_error(path, error) from None
    except BaseException:  # Ctrl-C above all
        _remove(temporary)
        raise
    return path


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # it was never made, or its folder is gone


def write_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write files by name, over what is there, each as `write_bytes` does; None leaves one out."""
    for name, content in files.items():
        if content is not None:
            write_bytes(folder / name, content, force=True)


def _write_error(path: Path, error: OSError) -> EmaskError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImageError(f"cannot write {path}: the disk is full", "free some space, then run again with --resume")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ImageError(f"cannot write {path}: {error.strerror}", "choose another folder with -o")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return ImageError(f"cannot write {path}: a folder of its path is a file", "choose another folder with -o")
    return ImageError(f"cannot write {path}: {error.strerror or error}")
