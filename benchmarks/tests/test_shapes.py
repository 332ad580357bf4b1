"""The small world: what is drawn is what is said, and the checker reads it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.shapes import cases, checker, checks, fitting, guidance, world
from mtu_export.bundle import images as product
from mtu_export.spec import PlanError

WORLDS = list(world.WORLDS.values())
NAMES = list(world.WORLDS)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_are_those_of_pillow(shape: str) -> None:
    """Pillow draws the same polygon or circle at 16 times the size."""
    side, scale, radius = 32, 16, 9.0
    drawn = world.coverage(shape, torch.tensor([[15.3, 16.2]]), torch.tensor([radius]), side)[0]
    canvas = Image.new("L", (side * scale, side * scale))
    pen, x, y = ImageDraw.Draw(canvas), 15.3 * scale, 16.2 * scale
    corners = world.CORNERS_OF[shape]
    r = radius * scale
    if corners:
        pen.polygon([(x + a * r, y + b * r) for a, b in corners], fill=255)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    expected = np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) / 255
    assert np.abs(drawn.numpy() - expected).mean() < 0.01
    assert abs(drawn.sum() - expected.sum()) / expected.sum() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_checker_reads_true_pictures(name: str) -> None:
    some = world.WORLDS[name]
    scenes = [cases.case(some, "t2i", "test", i).after for i in range(120)]
    right = checker.right(checker.read(some, world.draw(some, scenes)), scenes)
    assert sum(right) >= 0.99 * len(right)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["colour", "shape", "size", "place", "background", "less"])
def test_the_checker_tells_every_change(name: str, change: str) -> None:
    some = world.WORLDS[name]
    scenes = [cases.case(some, "t2i", "test", i).after for i in range(40)]
    other = {
        "colour": some.colours,
        "shape": world.SHAPES,
        "size": world.SIZES,
        "place": tuple(some.places),
    }
    wrong = []
    for scene in scenes:
        if change == "background":
            names = [n for n in world.BACKGROUNDS if n != scene.background]
            wrong.append(replace(scene, background=names[0]))
        elif change == "less":
            wrong.append(replace(scene, things=scene.things[1:]))
        else:
            first = scene.things[0]
            names = [n for n in other[change] if n != getattr(first, change)]
            wrong.append(
                replace(scene, things=(replace(first, **{change: names[0]}), *scene.things[1:]))
            )
    readings = checker.read(some, world.draw(some, scenes))
    assert not any(checker.right(readings, wrong))


def test_noise_and_half_drawn_things_are_unclear() -> None:
    some = world.SMALL
    noise = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not any(reading.clear for reading in checker.read(some, noise))
    drawn = [cases.case(some, "t2i", "test", i).after for i in range(60)]
    scenes = [scene for scene in drawn if len(scene.things) == 1]
    pictures = world.draw(some, scenes)
    for picture, scene in zip(pictures, scenes, strict=True):
        _, down = some.places[scene.things[0].place]
        picture[:, int(down * some.side) :] = picture[:, :1, :1]
    assert not any(checker.right(checker.read(some, pictures), scenes))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(cases.TASKS), st.integers(0, 10**6))
def test_training_never_shows_a_fresh_combination(name: str, task: str, index: int) -> None:
    some = world.WORLDS[name]
    for split, expected in (("train", False), ("valid", False), ("test", True)):
        one = cases.case(some, task, split, index)
        scenes = [one.after, *([one.before] if one.before else [])]
        fresh = [world.is_fresh(some, thing) for scene in scenes for thing in scene.things]
        assert any(fresh) == expected
        assert one == cases.case(some, task, split, index)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6))
def test_an_edit_changes_one_thing(name: str, index: int) -> None:
    one = cases.case(world.WORLDS[name], "edit", "train", index)
    assert one.before is not None
    kept = [thing for thing in one.before.things if thing in one.after.things]
    assert len(kept) == len(one.before.things) - (one.verb != "add")
    assert one.prompt.split()[0] == one.verb


def test_the_changed_surroundings_hold_all_that_changes() -> None:
    some = world.SMALL
    for task in ("edit", "inpaint"):
        batch = [cases.case(some, task, "test", i) for i in range(100)]
        images = cases.inputs(some, batch)
        assert images is not None
        differs = (world.draw(some, [item.after for item in batch]) - images).abs().amax(1) > 0.02
        assert not bool((differs & ~checks.surroundings(some, batch)).any())


def test_doubling_is_the_product_s_fit() -> None:
    batch = [cases.case(world.SMALL, "sr", "test", i) for i in range(4)]
    small = cases.halved(
        world.SMALL, batch, world.draw(world.SMALL, [item.after for item in batch])
    )
    for one, wide in zip(small, cases.doubled(small), strict=True):
        fitted = product.fit(product.to_image(one[None].numpy()), 32, 32)
        assert np.abs(fitted - wide[None].numpy()).max() <= 1.5 / 127.5


def test_samples_come_by_index() -> None:
    samples = cases.Shapes(world.SMALL, {"t2i": 3, "edit": 2, "sr": 1, "inpaint": 2})
    assert [samples.task(i) for i in range(len(samples))] == [
        *(["t2i"] * 3),
        *(["edit"] * 2),
        "sr",
        *(["inpaint"] * 2),
    ]
    together = samples.batch([6, 0, 5])
    assert [sample.task for sample in together] == ["inpaint", "t2i", "sr"]
    assert torch.equal(together[0].image, samples[6].image)
    assert together[1].condition is None
    assert together[2].condition is not None


def test_intervals() -> None:
    values = torch.tensor([1.0] * 60 + [0.0] * 40)
    mean, low, high = checks.interval(values, share=True)
    assert mean == pytest.approx(0.6)
    assert (low, high) == pytest.approx((0.5020, 0.6906), abs=2e-4)  # Wilson, 60 of 100
    assert checks.interval(torch.zeros(100), share=True)[2] == pytest.approx(0.0370, abs=2e-4)


def test_paired_shares_are_never_certain() -> None:
    """Bonett and Price: of 100 pairs none differs; 3 are gained and 9 lost."""
    mean, low, high = checks.difference(torch.zeros(100), share=True)
    assert (mean, low, high) == pytest.approx((0, -0.0272, 0.0272), abs=1e-4)
    values = torch.tensor([1.0] * 3 + [-1.0] * 9 + [0.0] * 88)
    mean, low, high = checks.difference(values, share=True)
    assert mean == pytest.approx(-0.06)
    middle, half = -6 / 102, 1.959964 * ((14 / 102 - (6 / 102) ** 2) / 102) ** 0.5
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_documents_say_what_is_kept_from_training() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    for name, some in world.WORLDS.items():
        kept, every = world.fresh(some)
        assert f"{kept} of {every} (`{name}`)" in text


def test_guidance_of_equal_scores_is_the_middle_one() -> None:
    scores = [{"text": text, "score": score} for text, score in ((1, 0.5), (2, 1), (3, 1), (4, 1))]
    assert guidance.middle_best(scores)["text"] == 3
    assert guidance.middle_best(scores[:3])["text"] == 3
    assert guidance.middle_best(scores[:2])["text"] == 2


def test_a_part_that_is_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_EVERY_S", -1.0)  # a state after every step

    def fitted(work: Path, stop: int | None) -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 3)

        def loss(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (module(noise) - noise[:, :3]).square().mean()

        fitting.fit(module, loss, work, steps=8, rate=0.1, warmup=2)
        return module

    whole = fitted(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "part", 5)
    again = fitted(tmp_path / "part", None)
    assert torch.equal(whole.weight, again.weight)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="steps is 8 there and 9 here"):
        fitting.fit(again, lambda _: torch.zeros(()), tmp_path / "part", steps=9, rate=0.1)
