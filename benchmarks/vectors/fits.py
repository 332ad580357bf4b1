"""``fits.json``, ``fits.safetensors`` and raw pixels: pictures and masks brought to a size."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mtu_export.bundle import images

ORIENTATION = 0x0112
SIZE = (6, 8)


def pixels() -> dict[str, np.ndarray]:
    """Pictures by file name: RGBA of 8 bits [h, w, 4], grey of 16 bits [h, w]."""
    down, across = np.mgrid[0:19, 0:26]
    waves = [127.5 + 127.5 * np.sin(a * down + b * across) for a, b in ((0.5, 0.1), (0.2, 0.7))]
    opaque = np.stack([*waves, 9.0 * across, np.full_like(waves[0], 255)], -1)
    clear = opaque.copy()
    clear[..., 3] = np.clip(20.0 * (down - 4), 0, 255)
    deep = (down * 7919 + across * across * 4099) % 65_536
    return {
        "fits/opaque.rgba": opaque.astype(np.uint8),
        "fits/clear.rgba": clear.astype(np.uint8),
        "fits/deep.grey16": deep.astype("<u2"),
    }


def case(
    name: str, file: str, kind: str, to: tuple[int, int], orientation: int, **options: str
) -> dict[str, Any]:
    """One picture of a request and what becomes of it; ``levels`` is how far a reader may be."""
    exact = kind == "mask" or options.get("filter") == "nearest"
    return {
        "name": name,
        "file": f"fits/{file}",
        "orientation": orientation,
        "picture": {"kind": kind, **options},
        "height": to[0],
        "width": to[1],
        "levels": 0 if exact else 1,
    }


def cases() -> list[dict[str, Any]]:
    """EXIF 1 to 8, transparency, 16 bits, filters, ranges, masks, other shapes."""
    nearest = {"filter": "nearest", "range": "0..255"}
    listed = []
    for turn in range(1, 9):
        kind = "picture" if turn == 6 else "grey"
        listed.append(case(f"turned {turn}", "opaque.rgba", kind, SIZE, turn))
        listed.append(case(f"near {turn}", "opaque.rgba", "grey", SIZE, turn, **nearest))
    return [
        *listed,
        case("clear", "clear.rgba", "picture", SIZE, 1),
        case("clear, near", "clear.rgba", "picture", SIZE, 6, **nearest),
        case("clear mask", "clear.rgba", "mask", SIZE, 1),
        case("16 bits", "deep.grey16", "grey", SIZE, 1),
        case("16 bits, near", "deep.grey16", "grey", SIZE, 3, **nearest),
        case("0 to 1", "opaque.rgba", "grey", SIZE, 1, range="0..1"),
        case("0 to 255", "clear.rgba", "picture", SIZE, 1, range="0..255"),
        case("grey", "opaque.rgba", "grey", SIZE, 1),
        case("enlarged", "opaque.rgba", "grey", (23, 31), 1),
        case("enlarged, near", "opaque.rgba", "grey", (23, 31), 5, **nearest),
        case("on a border, near", "opaque.rgba", "grey", (6, 10), 1, **nearest),
        case("on a border upright, near", "opaque.rgba", "grey", (11, 7), 1, **nearest),
        case("tall", "opaque.rgba", "picture", (11, 3), 1),
        case("wide", "clear.rgba", "picture", (2, 13), 8),
        case("its own size", "opaque.rgba", "grey", (19, 26), 1),
        case("mask", "opaque.rgba", "mask", SIZE, 1),
        case("turned mask", "opaque.rgba", "mask", (9, 7), 6),
        case("large mask", "opaque.rgba", "mask", (19, 13), 1),
    ]


def fitted(case: dict[str, Any], array: np.ndarray) -> np.ndarray:
    """What mtu-export makes of a case."""
    image = Image.fromarray(array)
    image.getexif()[ORIENTATION] = case["orientation"]
    options = dict(case["picture"])
    kind, size = options.pop("kind"), (case["width"], case["height"])
    if kind == "mask":
        return images.fit_mask(image, *size)
    return images.fit(image, *size, **options, grey=kind == "grey")


def make() -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The cases, the expected arrays by name, and the files of raw pixels."""
    files, listed = pixels(), cases()
    for entry in listed:
        height, width = files[entry["file"]].shape[:2]
        entry |= {"file_height": height, "file_width": width}
    expected = {entry["name"]: fitted(entry, files[entry["file"]]) for entry in listed}
    return listed, expected, files
