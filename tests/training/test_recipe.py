"""Configs: every key is checked, the defaults hold, what decides the numbers is known."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from mtu_export import training
from mtu_export.spec import PlanError
from mtu_export.training.recipe import Recipe, read

NEEDED = 'model = "some/model"\noutput = "out"\nsteps = 10\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_config_becomes_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    recipe = read(
        write(
            tmp_path,
            'model = "local"\noutput = "out"\nsteps = 10\ntasks = ["t2i", "mine.json"]\n'
            'log_with = ["csv", "tensorboard"]\nlearning_rate = 1\n[upcycle]\nexperts = 2\n',
        )
    )
    assert recipe.model == str(tmp_path / "local")
    assert recipe.output == tmp_path / "out"
    assert recipe.tasks == ("t2i", str(tmp_path / "mine.json"))
    assert recipe.upcycle is not None
    assert (recipe.upcycle.experts, recipe.upcycle.router_hidden_dim) == (2, 768)
    assert (recipe.train, recipe.steps, recipe.log_with) == ("mtu", 10, ("csv", "tensorboard"))
    assert read(write(tmp_path, NEEDED)).model == "some/model"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 10", "key 'model' is missing"),
        (NEEDED + "colour = 1", "unknown key 'colour'; legal: model, output, steps"),
        (NEEDED + "name = 'x'", "unknown key 'name'"),
        (NEEDED + "[upcycle]\nexpert = 1", r"\[upcycle\]: unknown key 'expert'; legal: experts"),
        (NEEDED + "tasks=['sr']\n[upcycle]\nexperts = 0", "upcycle.experts must be an integer"),
        (NEEDED + "[upcycle]\nexperts = 2", "upcycle makes experts for tasks; name the tasks"),
        (NEEDED + "upcycle = 4", "upcycle must be a table, got 4"),
        (NEEDED + "batch_size = 0", "batch_size must be an integer from 1 to 1000000, got 0"),
        (
            NEEDED + "batch_size = true",
            "batch_size must be an integer from 1 to 1000000, got True",
        ),
        (
            NEEDED + "batch_size = 2.0",
            "batch_size must be an integer from 1 to 1000000, got 2.0",
        ),
        (
            NEEDED + "learning_rate = 0",
            "learning_rate must be a number above 0, at most 1e.09, got 0",
        ),
        (
            NEEDED + "learning_rate = inf",
            "learning_rate must be a number above 0, at most 1e.09, got inf",
        ),
        (
            NEEDED + "learning_rate = '1'",
            "learning_rate must be a number above 0, at most 1e.09, got '1'",
        ),
        (NEEDED + "adam_beta2 = 1.0", "adam_beta2 must be a number from 0, below 1, got 1.0"),
        (NEEDED + "ema_decay = -1", "ema_decay must be a number from 0, below 1, got -1"),
        (NEEDED + "conditioning_dropout_prob = 0.4", "must be a number from 0 to 0.333333"),
        (NEEDED + "lr_scheduler = 'linear'", "lr_scheduler must be 'constant' or 'cosine'"),
        (NEEDED + "mixed_precision = 'fp16'", "mixed_precision must be 'no' or 'bf16'"),
        (NEEDED + "train = 'experts'", "train must be 'mtu' or 'all', got 'experts'"),
        (NEEDED + "log_with = ['wandb']", "log_with must be a list of 'csv' and 'tensorboard'"),
        (NEEDED + "log_with = 'csv'", "log_with must be a list of"),
        (NEEDED + "tasks = ['sr', 'sr']", "tasks must be a list of names, each once"),
        (NEEDED + "tasks = [1]", "tasks must be a list of names"),
        (NEEDED + "state = 1", "state must be a path, got 1"),
        (NEEDED + "data = 'a:b'\ndata_folder = 'c'", "two training sets; give one"),
        ("model = [", "cannot be read as TOML"),
    ],
)
def test_a_bad_config_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as refusal:
        read(write(tmp_path, text))
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).count("run.toml") == 1


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no config"):
        read(tmp_path / "none.toml")


def test_identity_is_what_decides_the_numbers(tmp_path: Path) -> None:
    first = Recipe(model="m", output=tmp_path, steps=5)
    same = replace(first, output=tmp_path / "x", log_every=3, steps=9, checkpointing_steps=2)
    assert same.identity() == first.identity()
    assert replace(same, output=tmp_path).state_folder() == first.state_folder()
    assert same.state_folder() != first.state_folder()
    assert first.state_folder().parent == Path.home() / ".cache" / "mtu-export" / "training"
    for key, value in {"seed": 1, "learning_rate": 1.0, "lr_scheduler": "cosine"}.items():
        assert replace(first, **{key: value}).state_folder() != first.state_folder()
    cosine = replace(first, lr_scheduler="cosine")
    assert replace(cosine, steps=9).identity() != cosine.identity()


def test_every_key_is_checked_and_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    keys = [
        (field.name, field) for field in fields(Recipe) if field.name not in ("name", "upcycle")
    ]
    keys += [(f"upcycle.{field.name}", field) for field in fields(training.Upcycling)]
    for name, field in keys:
        assert f"\n| `{name}` | " in text, name
        default = text.split(f"\n| `{name}` | ")[1].split(" | ")[0].strip("|` ")
        if isinstance(field.default, (bool, int, float, str)):
            assert tomllib.loads(f"x = {default.replace('`', '')}")["x"] == field.default, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NEEDED + f"learning_rate = {10**400}", "learning_rate must be a number above 0"),
        (NEEDED.replace("10", "2000000000"), "steps must be an integer from 1 to 1000000000"),
        (NEEDED.replace('"out"', '"~nobody-of-that-name/out"'), "output '~nobody-of-that-name"),
        (NEEDED.replace("some/model", "~nobody-of-that-name/m"), "model '~nobody-of-that-name"),
        (NEEDED.replace("some/model", "a" * 300), "model 'aaaa.*File name too long"),
        (NEEDED.replace('"out"', '"a\\u0000b"'), "output .*null"),
    ],
)
def test_numbers_and_paths_that_nothing_has(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read(write(tmp_path, text))


def test_seeds_have_63_bits(tmp_path: Path) -> None:
    assert read(write(tmp_path, NEEDED + f"seed = {2**63 - 1}")).seed == 2**63 - 1
