"""Pictures of strangers and their folders: formats known to be safe, no more pixels than memory bears, in sRGB."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from rbctl.errors import InputError, abridged, reason
from rbctl.paths import made_by_system

if TYPE_CHECKING:
    from PIL import Image

# No format here starts a program, as Pillow's EPS does (Ghostscript), or opens other files.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
_HEIF = (".heic", ".heif", ".hif")
# By which the pictures of a folder are known; all begin one of FORMATS.
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", *_HEIF)
# Pictures too, but of formats that are not read.
_UNREAD = (
    ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".xcf", ".tga", ".ico", ".eps", ".ppm", ".pgm", ".exr", ".hdr", ".dds",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_CONVERT, _FOR_HEIF = "convert to PNG or JPEG", ", or install pillow-heif to read HEIC"
MOST_PIXELS = 120_000_000  # of a picture with alpha they take 1.8 GB on the way to RGB

# What Pillow's decoders raise on damaged pictures, by fuzzing.
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    SystemError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    BufferError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


@functools.cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF depends on how Pillow was built


def list_pictures(folder: Path, below: bool = False) -> list[Path]:
    """The pictures of a folder, by name; not opened. Files of operating systems and hidden ones are passed over.

    Pictures of formats that are not read are left out, and named on stderr.

    Args:
        folder: is there.
        below: also those of its folders.
    """
    pictures, left_out = list[Path](), list[str]()
    for path in sorted(folder.rglob("*") if below else folder.iterdir()):
        suffix, name = path.suffix.lower(), path.relative_to(folder)
        if suffix not in SUFFIXES and suffix not in _UNREAD:
            continue
        if any(map(made_by_system, name.parts)) or path.is_dir():
            continue
        if suffix in _UNREAD or (suffix in _HEIF and "HEIF" not in _known_formats()):
            left_out.append(name.as_posix())
        else:
            pictures.append(path)
    if left_out:
        _name_left_out(folder, tuple(left_out))
    return pictures


@functools.cache  # once, however often a benchmark lists the folder
def _name_left_out(folder: Path, names: tuple[str, ...]) -> None:
    named = ", ".join(map(abridged, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    mend = _CONVERT + (_FOR_HEIF if any(name.lower().endswith(_HEIF) for name in names) else "")
    click.echo(f"{folder}: left out: {named}; {mend}", err=True)


def _is_heif(source: Path | BinaryIO) -> bool:
    """Whether a picture is HEIC by its bytes; telephones and mailers send it as .jpg too."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(12)
    else:
        source.seek(0)
        start = source.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


@contextlib.contextmanager
def open_image(source: Path | BinaryIO, where: str = "") -> Iterator[Image.Image]:
    """Open a picture as it is stored; whatever of it fails inside the block is one line.

    Args:
        source: a path, or a file that holds the picture's bytes.
        where: what errors begin with. [default: the path]

    Raises:
        InputError: the file is missing, of none of ``FORMATS``, damaged, or has more than ``MOST_PIXELS``.
    """
    from PIL import Image

    where = where or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures above Pillow's own lower limit, and odd metadata
            with Image.open(source, formats=_known_formats()) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    size = f"{opened.width} x {opened.height} pixels"
                    raise InputError(f"{where}: {size} are more than {MOST_PIXELS // 10**6} million; scale it down")
                yield opened
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such picture") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(_known_formats())
        if "HEIF" not in known and _is_heif(source):
            raise InputError(f"{where}: is HEIC, which is not read; {_CONVERT}{_FOR_HEIF}") from error
        raise InputError(f"{where}: not a readable picture; formats: {known}") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: not a readable picture ({reason(error)})") from error


def converted(opened: Image.Image, mode: str = "RGB") -> Image.Image:
    """A stored picture as it is meant: in sRGB and turned as its EXIF says; alpha over white, 16 bits become 8.

    Args:
        opened: as :func:`open_image` gives it, inside its block.
        mode: Pillow's, of what is returned. Colours and alpha are only looked at for "RGB".

    Raises:
        ValueError: its pixels have no range known to be 0 to 1.
    """
    from PIL import Image, ImageOps

    opened.load()
    sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PNG")
    image = ImageOps.exif_transpose(opened)
    if sixteen:
        image = _eight_bit(image)
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of no known range; save it as an 8-bit PNG")
    elif mode == "RGB":
        image = _in_srgb(image)
    if mode == "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours of another space, as Display P3 of a telephone, in sRGB; a damaged profile counts for nothing."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    with contextlib.suppress(ImageCms.PyCMSError, *_DAMAGED):
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" not in ImageCms.getProfileDescription(own).lower():
            made = "RGB" if image.mode == "CMYK" else image.mode
            converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode=made)
            return converted or image
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits with 8; Pillow's own conversion cuts everything above 255 off."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
