"""Pictures: every mode and odd size, the fit against Pillow done by hand, and safe writing."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from mtu_export.bundle import images
from mtu_export.spec import PlanError, ResourceError, UnknownName

RANDOM = np.random.default_rng(0)
TESTDATA = Path(__file__).parents[2] / "runtime" / "testdata"


def photo(width: int, height: int) -> Image.Image:
    """Smooth and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    blue = np.full_like(red, 40)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def grey_png(width: int, height: int) -> bytes:
    """The header and a first byte of a PNG that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# --------------------------------------------------------------------------------------- fitting


@pytest.mark.parametrize(
    ("size", "target"),
    [((64, 64), (32, 32)), ((120, 60), (32, 32)), ((60, 120), (32, 48)), ((16, 16), (64, 32))],
)
def test_fit_is_scale_to_cover_then_centre_crop(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    """In two steps with whole pixels, as an app may do it, where the ratio leaves no fraction."""
    image = photo(*size)
    scale = max(target[0] / size[0], target[1] / size[1])
    large = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS)
    left, top = (large.width - target[0]) // 2, (large.height - target[1]) // 2
    by_hand = np.asarray(large.crop((left, top, left + target[0], top + target[1])), np.float32)
    fitted = images.fit(image, *target)
    assert fitted.shape == (1, 3, target[1], target[0])
    assert fitted.dtype == np.float32
    assert np.abs((fitted[0].transpose(1, 2, 0) + 1) * 127.5 - by_hand).max() <= 1.001


def nearest(sides: tuple[int, int, int, int]) -> list[list[int]]:
    """Rows and columns of the pixels under each centre, by rule I7, in fractions."""
    across, down, width, height = sides
    scale = min(Fraction(across, width), Fraction(down, height))
    return [
        [floor((Fraction(side) - scale * n) / 2 + (i + Fraction(1, 2)) * scale) for i in range(n)]
        for side, n in ((down, height), (across, width))
    ]


def lanczos(image: np.ndarray, count: int, first: float, scale: float) -> np.ndarray:
    """Rule I5 along axis 0: ``count`` pixels, ``scale`` apart from ``first`` on, to 8 bits."""
    stretch = max(1.0, scale)
    centres = first + (np.arange(count) + 0.5) * scale
    t = (np.arange(len(image)) + 0.5 - centres[:, None]) / stretch
    weights = np.where(abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)
    values = np.tensordot(weights / weights.sum(1, keepdims=True), image.astype(float), 1)
    return np.clip(np.floor(values + 0.5), 0, 255)


@pytest.mark.parametrize("size", [(50, 61), (61, 50), (200, 37), (37, 200), (11, 7)])
def test_fit_is_the_formula_of_the_contract(size: tuple[int, int]) -> None:
    """To a level here and there, as the contract says: Pillow's weights are fixed point."""
    (across, down), (width, height) = size, (48, 32)
    image = Image.fromarray(RANDOM.integers(0, 256, (down, across, 3), np.uint8))
    scale = min(across / width, down / height)
    columns = (height, (down - height * scale) / 2, scale)
    rows = (width, (across - width * scale) / 2, scale)
    pixels = np.asarray(image)
    if down - height > 2 * max(0, across - width):
        pixels = lanczos(pixels, *columns)
        pixels = lanczos(pixels.swapaxes(0, 1), *rows).swapaxes(0, 1)
    else:
        pixels = lanczos(pixels.swapaxes(0, 1), *rows).swapaxes(0, 1)
        pixels = lanczos(pixels, *columns)
    levels = (images.fit(image, width, height)[0].transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(levels - pixels).max() < 1.01
    assert np.abs(levels - pixels).mean() < 0.02


def test_the_tolerance_of_the_contract_tells_a_right_picture_from_a_wrong_one() -> None:
    """50 dB against the picture in testdata/: any good filter, and no rule left out."""
    expected = load_file(TESTDATA / "expected.safetensors")["image"]
    height, width = expected.shape[2:]
    read = images.read(TESTDATA / "input.png")
    upright = images.upright_rgb(read)

    def decibels(image: Image.Image, filter: str = "lanczos") -> float:
        levels = (images.fit(image, width, height, filter) - expected) * 127.5
        return 20 * np.log10(255 / max(1e-9, np.sqrt(np.mean(levels**2))))

    assert decibels(read) > 200
    assert all(decibels(read, name) > 50 for name in ("bicubic", "bilinear", "hamming"))
    wrong = {
        "stretched": upright.resize((width, height), Image.Resampling.LANCZOS),
        "not upright": Image.fromarray(np.asarray(read.convert("RGB"))),
        "on black": Image.alpha_composite(
            Image.new("RGBA", read.size, (0, 0, 0, 255)), read.convert("RGBA")
        ),
        "not centred": upright.crop((0, 0, upright.width - 2, upright.height - 2)),
    }
    wrong["on black"].getexif().update(read.getexif())
    assert all(decibels(image) < 50 for image in wrong.values())
    assert all(decibels(read, name) < 50 for name in ("box", "nearest"))


def test_values_are_from_minus_one_to_one() -> None:
    for value, expected in ((0, -1.0), (255, 1.0)):
        fitted = images.fit(Image.new("RGB", (9, 9), (value,) * 3), 8, 8)
        np.testing.assert_array_equal(fitted, np.full((1, 3, 8, 8), expected, np.float32))


RANGES = {"-1..1": (2 / 255, -1), "0..1": (1 / 255, 0), "0..255": (1, 0)}


@pytest.mark.parametrize("name", list(RANGES))
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("filter", ["lanczos", "nearest"])
def test_every_level_is_brought_to_the_range(name: str, grey: bool, filter: str) -> None:
    """A picture of its own size, so that no level is resampled."""
    factor, offset = RANGES[name]
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = Image.fromarray(np.stack([levels, levels, levels], -1))
    fitted = images.fit(ramp, 16, 16, filter, name, grey=grey)
    expected = levels.astype(np.float64) * factor + offset
    assert (fitted.shape, fitted.dtype) == ((1, 1 if grey else 3, 16, 16), np.float32)
    for channel in fitted[0]:
        np.testing.assert_allclose(channel, expected, atol=2e-7 * (255 if name == "0..255" else 1))


def test_grey_is_the_formula_of_the_contract_on_the_fitted_colours() -> None:
    """Rule I7 after I5: weights of 16 bits, of the picture that was resampled in colour."""
    image = Image.fromarray(RANDOM.integers(0, 256, (61, 50, 3), np.uint8))
    red, green, blue = images.fit(image, 48, 32, range="0..255")[0].astype(np.int64)
    expected = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    grey = images.fit(image, 48, 32, range="0..255", grey=True)
    np.testing.assert_array_equal(grey[0, 0], expected)


@settings(max_examples=60, deadline=None)
@given(sides=st.tuples(*[st.integers(1, 90)] * 4), seed=st.integers(0, 2**31))
def test_a_picture_takes_the_nearest_pixels_as_a_mask_does(
    sides: tuple[int, int, int, int], seed: int
) -> None:
    """Labels must not be mixed, and lie where the mask lies: rule I7 in fractions."""
    across, down, width, height = sides
    pixels = np.random.default_rng(seed).integers(0, 256, (down, across, 3)).astype(np.uint8)
    rows, columns = nearest(sides)
    fitted = images.fit(Image.fromarray(pixels), width, height, "nearest", "0..255")
    np.testing.assert_array_equal(fitted[0].transpose(1, 2, 0), pixels[rows][:, columns])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    to_width=st.integers(1, 70),
    to_height=st.integers(1, 70),
    filter=st.sampled_from(list(images.FILTERS)),
)
def test_any_size_gives_the_size_asked_and_keeps_a_flat_colour(
    width: int, height: int, to_width: int, to_height: int, filter: str
) -> None:
    fitted = images.fit(
        Image.new("RGB", (width, height), (10, 200, 90)), to_width, to_height, filter
    )
    assert fitted.shape == (1, 3, to_height, to_width)
    np.testing.assert_allclose((fitted[0, :, 0, 0] + 1) * 127.5, (10, 200, 90), atol=1e-3)
    assert np.ptp(fitted.reshape(3, -1), axis=1).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (1, 20_000)])
def test_extreme_pictures_work(size: tuple[int, int]) -> None:
    fitted = images.fit(Image.new("RGB", size, (255, 0, 0)), 512, 512)
    np.testing.assert_array_equal(fitted[0, :, 5, 5], (1, -1, -1))


def sixteen(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, np.uint16))


MODES: list[tuple[str, Image.Image, tuple[int, int, int]]] = [
    ("1", Image.new("1", (4, 4), 1), (255, 255, 255)),
    ("L", Image.new("L", (4, 4), 77), (77, 77, 77)),
    ("LA", Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
    ("RGBA opaque", Image.new("RGBA", (4, 4), (9, 8, 7, 255)), (9, 8, 7)),
    ("RGBA clear", Image.new("RGBA", (4, 4), (9, 8, 7, 0)), (255, 255, 255)),
    ("RGBA half", Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
    ("P", Image.new("RGB", (4, 4), (255, 0, 0)).quantize(4), (255, 0, 0)),
    ("CMYK", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    ("HSV", Image.new("RGB", (4, 4), (0, 255, 0)).convert("HSV"), (0, 255, 0)),
    ("YCbCr", Image.new("RGB", (4, 4), (255, 255, 255)).convert("YCbCr"), (255, 255, 255)),
    ("I;16 white", sixteen(65_535), (255, 255, 255)),
    ("I;16 grey", sixteen(257 * 100), (100, 100, 100)),
    ("I", Image.new("I", (4, 4), 65_535), (255, 255, 255)),
    ("F", Image.new("F", (4, 4), 12.4), (12, 12, 12)),
]


@pytest.mark.parametrize(("name", "image", "colour"), MODES, ids=[row[0] for row in MODES])
def test_every_mode(name: str, image: Image.Image, colour: tuple[int, int, int]) -> None:
    converted = images.upright_rgb(image)
    assert (converted.mode, converted.size) == ("RGB", (4, 4))
    assert np.abs(np.asarray(converted)[2, 2].astype(int) - colour).max() <= 1


def test_a_palette_with_a_clear_colour_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = 0
    image.save(tmp_path / "a.png")
    assert images.upright_rgb(images.read(tmp_path / "a.png")).getpixel((1, 1)) == (255,) * 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_turns_the_picture_upright(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste((0, 0, 0), (0, 0, 20, 20))  # black on the left: after the turn, at the top
    path = tmp_path / f"a.{suffix}"
    wide.save(path, exif=exif)
    upright = images.upright_rgb(images.read(path))
    assert upright.size == (20, 40)
    assert max(upright.getpixel((10, 5))) < 20  # type: ignore[arg-type]
    assert min(upright.getpixel((10, 35))) > 235  # type: ignore[arg-type]


def test_no_pixels_and_no_size_are_refused() -> None:
    with pytest.raises(PlanError, match="no pixels"):
        images.fit(Image.new("RGB", (0, 5)), 8, 8)
    for size in ((0, 8), (8, -1), (8, 10**9)):
        with pytest.raises(PlanError, match="must be 1 to"):
            images.fit(photo(4, 4), *size)
    with pytest.raises(UnknownName, match="lanczos"):
        images.fit(photo(4, 4), 8, 8, "sharp")
    with pytest.raises(UnknownName, match=r"unknown range '0..2'; choose from: -1\.\.1, 0\.\.1"):
        images.fit(photo(4, 4), 8, 8, range="0..2")


# --------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("size", [(20_000, 5001), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(grey_png(*size))
    with pytest.raises(PlanError, match="100 megapixels"):
        images.read(path)


def test_what_is_no_picture_is_one_line(tmp_path: Path) -> None:
    good = io.BytesIO()
    photo(64, 64).save(good, "PNG")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "half.png").write_bytes(good.getvalue()[:120])
    (tmp_path / "none.png").write_bytes(grey_png(0, 5))
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    names = ["empty.png", "text.png", "half.png", "none.png", "a.eps", "missing.png", ".", "a\0b"]
    for name in names:
        with pytest.raises(PlanError) as caught:
            images.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]))
def test_damaged_files_give_a_picture_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    stream = io.BytesIO()
    photo(24, 16).save(stream, kind)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        fitted = images.fit(images.read(path), 8, 8)
    except (PlanError, ResourceError) as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(fitted).all()


# ----------------------------------------------------------------------------------------- masks


def test_a_mask_is_zero_or_one_at_one_half() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    mask = images.fit_mask(ramp, 16, 16)
    assert mask.shape == (1, 1, 16, 16)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask.reshape(-1), (np.arange(256) / 255 >= 0.5))


@settings(max_examples=60, deadline=None)
@given(sides=st.tuples(*[st.integers(1, 90)] * 4), seed=st.integers(0, 2**31))
def test_a_mask_takes_the_nearest_pixels(sides: tuple[int, int, int, int], seed: int) -> None:
    """The pixel under each centre, in fractions; Pillow's floating point errs at borders."""
    across, down, width, height = sides
    pixels = np.random.default_rng(seed).integers(0, 256, (down, across)).astype(np.uint8)
    rows, columns = nearest(sides)
    mask = images.fit_mask(Image.fromarray(pixels), width, height)
    np.testing.assert_array_equal(mask[0, 0], pixels[rows][:, columns] >= 128)


def test_mask_and_picture_are_cut_alike() -> None:
    """A white half of a wide picture, as picture and as mask."""
    wide = Image.new("RGB", (120, 40))
    wide.paste((255, 255, 255), (60, 0, 120, 40))
    seen = images.fit(wide, 40, 40, "nearest")[:, :1] > 0
    np.testing.assert_array_equal(images.fit_mask(wide, 40, 40), seen)


def test_masked_picture_and_latent_mask_are_those_of_diffusers() -> None:
    from diffusers.image_processor import VaeImageProcessor

    image = photo(64, 32)
    mask = Image.fromarray((RANDOM.random((32, 64)) * 255).astype(np.uint8))
    fitted, cut = images.fit(image, 64, 32), images.fit_mask(mask, 64, 32)
    theirs = VaeImageProcessor(vae_scale_factor=8).preprocess(image, height=32, width=64)
    cut_theirs = VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    ).preprocess(mask, height=32, width=64)
    np.testing.assert_allclose(fitted, theirs.numpy(), atol=1e-6)
    np.testing.assert_array_equal(cut, cut_theirs.numpy())
    expected = theirs * (cut_theirs < 0.5)
    np.testing.assert_allclose(images.masked_image(fitted, cut), expected.numpy(), atol=1e-6)
    small = torch.nn.functional.interpolate(cut_theirs, size=(4, 8))
    np.testing.assert_array_equal(cut[..., ::8, ::8], small.numpy())  # `every` of a flow
