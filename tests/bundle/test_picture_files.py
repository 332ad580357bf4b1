"""Pictures are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtu_export.bundle import images
from mtu_export.spec import ParityError, PlanError, ResourceError
from tests.bundle.test_pictures import photo


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.webp", "new/b.png"])
def test_what_is_written_can_be_read(tmp_path: Path, name: str) -> None:
    fitted = images.fit(photo(48, 32), 48, 32)
    images.save(fitted, tmp_path / name)
    read_back = images.fit(images.read(tmp_path / name), 48, 32)
    assert np.abs(read_back - fitted).max() <= (0 if name.lower().endswith("png") else 0.15)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_values_beyond_are_clipped_and_rounded() -> None:
    array = np.array([-9, -1, 0.2 / 127.5, 1, 9], np.float32).reshape(1, 1, 1, 5).repeat(3, 1)
    assert np.asarray(images.to_image(array))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("name", ["a", "a.gif", "a.png.txt", ".png"])
def test_other_suffixes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match=r"legal suffixes: \.png, \.jpg, \.jpeg, \.webp"):
        images.save(np.zeros((1, 3, 4, 4), np.float32), tmp_path / name)


def test_a_refused_picture_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    bad = np.zeros((1, 3, 4, 4), np.float32)
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(ParityError, match="NaN"):
        images.save(bad, path)
    for shape in ((3, 4, 4), (1, 1, 4, 4), (1, 3, 0, 4)):
        with pytest.raises(PlanError, match="an image is"):
            images.save(np.zeros(shape, np.float32), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self: Image.Image, target: Path, *arguments: object, **named: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ResourceError, match="No space left"):
        images.save(np.zeros((1, 3, 4, 4), np.float32), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name in ("file/a.png", "folder.png", "x" * 300 + ".png"):
        with pytest.raises(ResourceError, match="cannot write"):
            images.save(np.zeros((1, 3, 4, 4), np.float32), tmp_path / name)
