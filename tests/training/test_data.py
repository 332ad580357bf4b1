"""Samples: the folder of pictures, sets by name, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtu_export.bundle import images
from mtu_export.models.mtu import config as mtu_config
from mtu_export.spec import CheckpointError, PlanError, Task
from mtu_export.training.batches import Encoder, Live, index_by_task
from mtu_export.training.data import Folder, Sample, Samples, fetch, load
from tests.training.world import World


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)


def folder(path: Path, *lines: Any) -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in lines)
    (path / "metadata.jsonl").write_text(text, "utf-8")
    return path


def test_a_folder_gives_what_run_would_see(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 50, 40)
    picture(tmp_path / "small.png", 25, 20, seed=1)
    Image.new("L", (100, 80), 255).save(tmp_path / "mask.png")
    line = {"file_name": "a.png", "task": "edit", "text": "make it so", "condition": "small.png"}
    samples = Folder(folder(tmp_path, line, {**line, "mask": "mask.png", "text": None}), 32, 48)
    assert isinstance(samples, Samples)
    assert (len(samples), samples.task(0)) == (2, "edit")
    first, second = fetch(samples, [0, 1])
    expected = images.fit(images.read(tmp_path / "a.png"), 48, 32)[0]
    assert np.array_equal(first.image.numpy(), expected)
    assert first.condition is not None
    small = images.fit(images.read(tmp_path / "small.png"), 48, 32)[0]
    assert np.array_equal(first.condition.numpy(), small)
    assert (first.prompt, first.mask, second.prompt) == ("make it so", None, "")
    assert second.mask is not None
    assert second.mask.shape == (1, 32, 48)
    assert bool((second.mask == 1).all())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[]", "line 1 is not an object"),
        ("", "line 1 is empty"),
        ({"task": "sr"}, "key 'file_name' is missing"),
        ({"file_name": "a.png"}, "key 'task' is missing"),
        ({"file_name": "a.png", "task": "sr", "caption": "x"}, "unknown key 'caption'"),
        ({"file_name": 1, "task": "sr"}, "file_name must be a string, got 1"),
        ({"file_name": "../a.png", "task": "sr"}, "lies outside the folder"),
        ({"file_name": "a.png", "task": "sr", "mask": "/etc/passwd"}, "lies outside"),
        ({"file_name": "a\0.png", "task": "sr"}, "file_name 'a.x00.png' is not a path"),
        ({"file_name": "\ud800.png", "task": "sr"}, "is not a path"),
        ({"file_name": "a.png", "task": "sr", "text": "\ud800"}, "text .* has a lone surrogate"),
    ],
)
def test_bad_metadata_is_refused_by_line(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Folder(folder(tmp_path, line), 32, 32)


def test_links_in_a_circle_are_refused_and_lines_end_at_newlines(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(PlanError, match=r"line 1: file_name 'loop' (is not a path|cannot be read)"):
        Folder(folder(tmp_path, {"file_name": "loop", "task": "sr"}), 32, 32)
    picture(tmp_path / "a.png", 8, 8)
    text = "one\u2028two\u0085three"
    line = json.dumps({"file_name": "a.png", "task": "sr", "text": text}, ensure_ascii=False)
    samples = Folder(folder(tmp_path, line), 32, 32)
    assert [line_of_file["text"] for line_of_file in samples.lines] == [text]


def test_pictures_of_another_shape_and_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"metadata\.jsonl cannot be read"):
        Folder(tmp_path, 32, 32)
    picture(tmp_path / "a.png", 40, 40)
    picture(tmp_path / "wide.png", 80, 40)
    line = {"file_name": "a.png", "task": "edit", "condition": "wide.png"}
    (tmp_path / "text.png").write_text("no picture", "utf-8")
    samples = Folder(folder(tmp_path, line, {"file_name": "text.png", "task": "edit"}), 32, 32)
    with pytest.raises(PlanError, match=r"line 1: condition 'wide\.png' has another shape"):
        samples[0]
    with pytest.raises(PlanError, match="is not an image; legal"):
        samples[1]
    with pytest.raises(PlanError, match=r"line 2: file_name 'no\.png' cannot be read: No such"):
        Folder(folder(tmp_path, line, {"file_name": "no.png", "task": "edit"}), 32, 32)


def test_the_fingerprint_of_a_folder_changes_with_words_and_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 40, 40)
    line = {"file_name": "a.png", "task": "sr"}
    fingerprints = [Folder(folder(tmp_path, line), 32, 32).fingerprint for _ in range(2)]
    fingerprints.append(Folder(folder(tmp_path, {**line, "text": "x"}), 32, 32).fingerprint)
    picture(tmp_path / "a.png", 41, 40, seed=1)
    fingerprints.append(Folder(folder(tmp_path, line), 32, 32).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from tests.training.world import World\n"
        "ready = World()\n"
        "def broken(): raise ValueError('no disk')\n"
        "def nothing(): return 3\n"
    )
    (tmp_path / "own_data_for_a_test.py").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    for name in ("own_data_for_a_test:ready", "own_data_for_a_test:World"):
        assert len(load(name)) == 30
    for reference, message in (
        ("nowhere", "must be package.module:name"),
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("own_data_for_a_test:missing", "AttributeError"),
        ("own_data_for_a_test:broken", "ValueError: no disk"),
        ("own_data_for_a_test:nothing", "gives int; samples need __len__, task, __getitem__"),
    ):
        with pytest.raises(PlanError, match=message):
            load(reference)


def test_tasks_without_samples(relight: str) -> None:
    def task(name: str) -> Task:
        guidance = {"kind": "none"}
        document = {"name": name, "conditioning": [], "guidance": guidance, "steps": 1}
        return mtu_config.task_from_json(document, 0, "task")

    indices, others = index_by_task(World(("t2i", "sr"), 3), [task("sr")])
    assert (indices, others) == ({"sr": [1, 3, 5]}, {"t2i": 3})
    with pytest.raises(PlanError, match="no sample of task 'edit'; it has: t2i, sr"):
        index_by_task(World(("t2i", "sr")), [task("edit")])


class Broken(World):
    """A world whose only sample is this one."""

    def __init__(self, sample: Any) -> None:
        super().__init__(("edit", "fill"), 1)
        self.sample = sample

    def __getitem__(self, index: int) -> Sample:
        return self.sample


def test_what_a_set_raises_is_one_line() -> None:
    class Raising(World):
        def task(self, index: int) -> str:
            return ["t2i"] if index == 2 else super().task(index)  # type: ignore[return-value]

        def __getitem__(self, index: int) -> Sample:
            raise KeyError("caption")

    class Batches(Raising):
        def batch(self, indices: list[int]) -> list[Sample]:
            raise FileNotFoundError(2, "No such file", "/data/7.png")

    with pytest.raises(PlanError, match=r"^data: sample 4: KeyError: 'caption'$"):
        fetch(Raising(), [4, 5])
    with pytest.raises(PlanError, match=r"^data: sample 4, 5: FileNotFoundError: .*/data/7\.png"):
        fetch(Batches(), [4, 5])
    with pytest.raises(PlanError, match=r"task of sample 2 must be a string, got \['t2i'\]"):
        index_by_task(Raising(), [])


GREY = torch.zeros(3, 32, 32)
GOOD: dict[str, Any] = {"task": "edit", "prompt": "", "image": GREY, "condition": GREY}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "sr"}, "the data gives 'sr' for it"),
        ({"prompt": None}, "the prompt is not a string"),
        ({"prompt": "make it \ud83d"}, "sample 0 .*: the prompt has half a character"),
        ({"condition": None}, "the task needs a condition image"),
        ({"image": GREY[:, :16]}, r"image must be a tensor \[3, 32, 32\], got \[3, 16, 32\]"),
        ({"image": GREY.numpy()}, r"image must be a tensor \[3, 32, 32\], got ndarray"),
        ({"image": GREY.byte()}, "image must be floating point, got torch.uint8"),
        ({"condition": GREY.to(torch.complex64)}, "condition must be floating point"),
        ({"image": GREY + 2}, r"sample 0 .*: image must be from -1 to 1, got 2 to 2"),
        ({"image": GREY * torch.nan}, "image must be from -1 to 1, got nan"),
        ({"condition": GREY[:, :0]}, r"condition must be a tensor \[3, 'any', 'any'\], got \[3, 0"),
        ({"condition": GREY[:1]}, r"condition must be a tensor \[3, 'any', 'any'\]"),
        ({"task": "fill"}, "the task needs a mask"),
        ({"task": "fill", "mask": GREY[:1] - 1}, "mask must be from 0 to 1, got -1 to -1"),
        ({"task": "fill", "mask": GREY[:1, ::2]}, r"mask must be a tensor \[1, 32, 32\]"),
    ],
)
def test_bad_samples_are_named(pipeline: Path, fields: dict[str, Any], message: str) -> None:

    tasks = {task.name: task for task in mtu_config.tasks(mtu_config.read_config(pipeline))}
    requested = tasks["fill" if fields.get("task") == "fill" else "edit"]
    encoder = Encoder(pipeline, torch.device("cpu"))
    world = Broken(Sample(**{**GOOD, **fields}))
    live = Live(world, {"edit": [0], "fill": [0]}, encoder, (32, 32))
    with pytest.raises(PlanError, match=message):
        live.batch(requested, [0])


def test_a_model_without_a_vae(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="has no vae/: training needs it"):
        Encoder(tiny, torch.device("cpu"))
