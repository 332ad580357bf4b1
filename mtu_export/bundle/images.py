"""Images and masks: files, and fitting to an export's size. Plain Pillow, as an app would use.

Arrays are float32 [1, 3, H, W] in −1..1; masks are [1, 1, H, W] of 0 and 1, 1 = repaint.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mtu_export.spec import ParityError, PlanError, ResourceError, UnknownName, first_line
from mtu_export.storage import atomic_file

FILTERS: Mapping[str, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
MOST_PIXELS = 100_000_000
READ = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
"""Formats that are opened; Pillow's others run programs (EPS) or are no photographs."""
_WRITTEN = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
}
_WHITE = (255, 255, 255, 255)
_LARGEST_SIDE = 16_384
_ORIENTATION = 0x0112


# ------------------------------------------------------------------------------------- reading


def read(path: Path) -> Image.Image:
    """The decoded picture of a file (of an animation, the first frame).

    Raises ``PlanError`` for a file that is missing, no picture of the formats ``READ``, damaged,
    or of more than 100 megapixels (refused before anything is decoded).
    """
    name = repr(str(path)[:200])
    formats = [kind for kind in READ if kind in _installed()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's own limit, which warns below ours
        try:
            if path.exists() and not path.is_file():
                raise PlanError(f"{name} is not a file")
            with Image.open(path, formats=formats) as image:
                _check_size(image, name)
                image.load()
                return image
        except FileNotFoundError:
            raise PlanError(f"no image file {name}") from None
        except Image.UnidentifiedImageError:
            raise PlanError(f"{name} is not an image; legal: {', '.join(formats)}") from None
        except Image.DecompressionBombError:
            raise PlanError(f"{name} has more than {MOST_PIXELS // 1_000_000} megapixels") from None
        except PlanError:
            raise
        except MemoryError:
            raise ResourceError(f"{name} does not fit into memory") from None
        except Exception as error:  # the decoders raise of every kind on damaged files
            reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
            raise PlanError(f"{name} cannot be read as an image: {reason}") from None


def _installed() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise PlanError(f"{name} has no pixels: {width} x {height}")
    if width * height > MOST_PIXELS:
        raise PlanError(
            f"{name} has {width} x {height} pixels, more than {MOST_PIXELS // 1_000_000} megapixels"
        )


# --------------------------------------------------------------------------------------- fitting


RANGES: Mapping[str, tuple[float, float]] = {
    "-1..1": (127.5, 1),
    "0..1": (255, 0),
    "0..255": (1, 0),
}
"""Divisor and offset that bring 0..255 to a range."""


def fit(
    image: Image.Image,
    width: int,
    height: int,
    filter: str = "lanczos",
    range: str = "-1..1",
    *,
    grey: bool = False,
) -> np.ndarray:
    """The picture at an export's size, float32 [1, 3, H, W] in a range, or [1, 1, H, W] of grey.

    In this order: turned upright as its EXIF says; made RGB of 8 bits (:func:`upright_rgb`);
    scaled to cover ``width`` x ``height`` and cropped about the centre, which is one
    ``Image.resize`` with a ``box`` (``ImageOps.fit``), or the nearest pixels as of a mask; grey as
    Pillow's ``L``; for −1..1 ``value / 127.5 − 1``. Raises ``PlanError`` for no pixels or an
    illegal size and ``UnknownName`` for a filter or a range.
    """
    if filter not in FILTERS:
        raise UnknownName("filter", filter, list(FILTERS))
    if range not in RANGES:
        raise UnknownName("range", range, list(RANGES))
    upright = upright_rgb(image)
    if filter == "nearest":
        fitted = Image.fromarray(_nearest_pixels(np.asarray(upright), width, height))
    else:
        fitted = _cover(upright, width, height, FILTERS[filter])
    pixels = np.asarray(fitted.convert("L"))[..., None] if grey else np.asarray(fitted)
    divisor, offset = RANGES[range]
    values = pixels.transpose(2, 0, 1)[None].astype(np.float32) / divisor - offset
    return np.ascontiguousarray(values, np.float32)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright 8-bit RGB.

    Transparent pixels are composited on white. 16-bit grey is divided by 257; floating point is
    taken as 0..255. Palettes, CMYK and the like are converted as Pillow does; colour profiles are
    not applied. Raises ``PlanError`` for no pixels.
    """
    _check_size(image, "the image")
    upright = _turned(image)
    if upright.mode.startswith("I"):
        wide = np.clip(np.asarray(upright).astype(np.int32), 0, 65_535)
        upright = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    elif upright.mode == "F":
        wide = np.clip(np.nan_to_num(np.asarray(upright)), 0, 255)
        upright = Image.fromarray(np.rint(wide).astype(np.uint8))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    seen = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, _WHITE), seen).convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    """The picture as its EXIF data says it is to be shown."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise _damaged_exif(error) from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture, turned as its EXIF says."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise _damaged_exif(error) from None
    width, height = image.size
    return (height, width) if turned else (width, height)


def _damaged_exif(error: Exception) -> PlanError:
    """The error for EXIF data on which Pillow raises whatever it does."""
    return PlanError(f"the EXIF data of the image is damaged: {first_line(error)}")


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether pictures of these sizes have one aspect ratio, up to rounding a side to a pixel."""
    (a, b), (c, d) = one, other
    return abs(a * d - b * c) <= max(a, b, c, d)


def _cover(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling
) -> Image.Image:
    _check_sides(width, height)
    return ImageOps.fit(image, (width, height), resampling)


def _check_sides(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= _LARGEST_SIDE:
            raise PlanError(f"{name} must be 1 to {_LARGEST_SIDE} pixels, got {side}")


# ---------------------------------------------------------------------------------------- masks


def fit_mask(image: Image.Image, width: int, height: int) -> np.ndarray:
    """The mask at the picture's size, float32 [1, 1, H, W]: 1 (repaint) where it is light.

    Covered and cropped as :func:`fit` does, with nearest pixels; then grey (Pillow's ``L``) over
    255 at or above the threshold 0.5, so 128 and more. Transparent is white, so repainted.
    Raises ``PlanError`` as :func:`fit` does.
    """
    grey = np.asarray(upright_rgb(image).convert("L"))
    return (_nearest_pixels(grey, width, height) >= 128).astype(np.float32)[None, None]


def _nearest_pixels(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels [h, w, ...] covered and cropped to a size, by the nearest.

    Which pixel is nearest is computed in integers: Pillow's sum of fractions errs at borders.
    """
    _check_sides(width, height)
    down, across = pixels.shape[:2]
    scale = (down, height) if across * height > width * down else (across, width)
    rows, columns = _nearest(down, height, *scale), _nearest(across, width, *scale)
    return np.ascontiguousarray(pixels[rows][:, columns])


def _nearest(source: int, count: int, most: int, least: int) -> np.ndarray:
    """Which of ``source`` pixels is nearest to each of ``count``, most / least apart, centred."""
    middles = (2 * np.arange(count) + 1) * most
    return (source * least - count * most + middles) // (2 * least)


def masked_image(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``image * (mask < 0.5)``, float32: 0, mid grey, where the mask says repaint."""
    return image.astype(np.float32) * (mask < 0.5)


def cell_means(picture: np.ndarray, factor: int) -> np.ndarray:
    """The mean of each cell of ``factor`` x ``factor`` pixels, formed in float64, as float32."""
    batch, channels, height, width = picture.shape
    cells = picture.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return cells.mean((3, 5), dtype=np.float64).astype(np.float32)


# --------------------------------------------------------------------------------------- writing


def to_image(array: np.ndarray) -> Image.Image:
    """The picture of an array [1, 3, H, W] in −1..1; values beyond are clipped.

    Raises ``PlanError`` for another shape and ``ParityError`` for NaN or Inf.
    """
    if array.ndim != 4 or array.shape[:2] != (1, 3) or 0 in array.shape:
        raise PlanError(f"an image is [1, 3, H, W], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ParityError("the image holds NaN or Inf")
    pixels = np.rint((np.clip(array[0].astype(np.float64), -1, 1) + 1) * 127.5)
    return Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0)))


def check_suffix(path: Path) -> None:
    """Raise ``PlanError`` for a file name that :func:`save` would refuse."""
    if path.suffix.lower() not in _WRITTEN:
        raise PlanError(
            f"cannot write an image as {path.name[:200]!r}; legal suffixes: {', '.join(_WRITTEN)}"
        )


def save(array: np.ndarray, path: Path) -> None:
    """Write [1, 3, H, W] in −1..1 as PNG, JPEG or WebP (quality 95), whole or not at all.

    Raises as :func:`to_image` and :func:`check_suffix` do, and ``ResourceError``.
    """
    check_suffix(path)
    image = to_image(array)
    kind, options = _WRITTEN[path.suffix.lower()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as private:
            image.save(private, kind, **options)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ResourceError(f"cannot write {str(path)[:200]!r}: {reason}") from None
