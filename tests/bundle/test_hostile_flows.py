"""Flows from somewhere else, where one changed value is not enough: cycles, batches, tables."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import bundle
from mtu_export.bundle import runner
from mtu_export.spec import BundleError, PlanError
from tests.support import handmade

Json = dict[str, Any]
Change = Callable[[Json], object]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flows")
    folders = {name: handmade.write(root / name, name) for name in ("edit", "sr", "img2img")}
    return {**folders, "translate": handmade.write_translator(root / "translate")}


def opened(source: Path, folder: Path, change: Change) -> runner.Loop:
    """A changed copy of a bundle, opened."""
    shutil.copytree(source, folder)
    path = folder / bundle.MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")
    return runner.open_loop(bundle.read(folder))


def flow(manifest: Json) -> Json:
    return manifest["tasks"][0]["flow"]


def net(manifest: Json) -> Json:
    """The pass call."""
    (call,) = [call for call in flow(manifest)["calls"] if call["when"] == "pass"]
    return call


def part(manifest: Json, name: str) -> Json:
    (record,) = [record for record in manifest["parts"] if record["name"] == name]
    return record


def output(call: str, name: str) -> Json:
    return {"kind": "output", "call": call, "name": name}


# ------------------------------------------------------------------------------------------ order


def cycle(manifest: Json) -> None:
    """Text encoder and VAE encoder each take what the other makes."""
    first, second = flow(manifest)["calls"][:2]
    first["inputs"]["input_ids"]["sources"] = [output(second["id"], "latent_sample")]
    second["inputs"]["sample"]["sources"] = [output(first["id"], "last_hidden_state")]


def itself(manifest: Json) -> None:
    net(manifest)["inputs"]["timestep"]["sources"] = [output("unet", "out_sample")]


def swapped(manifest: Json) -> None:
    calls = flow(manifest)["calls"]
    calls[1], calls[2] = calls[2], calls[1]


def guided_call(manifest: Json, source: Json) -> None:
    calls = flow(manifest)["calls"]
    inputs = {"latent_sample": {"sources": [source]}}
    calls.insert(3, {"id": "side", "part": "vae_decoder", "when": "guided", "inputs": inputs})


def refined_by_the_net(manifest: Json) -> None:
    guided_call(manifest, output("unet", "out_sample"))
    flow(manifest)["refined"] = {"call": "side", "name": "sample"}


def started(source: Json) -> Change:
    return lambda manifest: flow(manifest).update(start=source)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("edit", cycle, r"calls\[0\].*'vae_encoder' is no earlier call"),
        ("edit", itself, "'unet' is no earlier call whose output a call 'pass' can take"),
        ("edit", swapped, r"calls\[2\]: a call 'once' follows one 'pass'|is no earlier call"),
        ("edit", lambda m: guided_call(m, {"kind": "guided"}), "refined and calls 'guided' come"),
        ("edit", refined_by_the_net, "'unet' is no earlier call whose output a call 'guided' can"),
        ("edit", lambda m: m["tasks"][0].update(strength=0.5), "start and the task's strength"),
        ("img2img", lambda m: m["tasks"][0].update(strength=None), "start and the task's strength"),
        ("img2img", started({"kind": "number", "name": "x"}), "start: 'number' is no latent"),
        (
            "img2img",
            started({"kind": "tokens", "tokenizer": "tokenizer"}),
            "start: 'tokens' is no latent",
        ),
        (
            "img2img",
            started({"kind": "picture", "name": "x"}),
            "start: the task has no picture 'x'",
        ),
        ("img2img", started({"kind": "tensor", "name": "x"}), "start: the task has no tensor 'x'"),
        ("img2img", started(output("unet", "out_sample")), "start: 'unet' is no"),
        ("img2img", started(output("vae_encoder", "x")), "vae_encoder has no output 'x'"),
        ("img2img", started({"kind": "column", "name": "timestep"}), "start: a call 'once' has no"),
        (
            "translate",
            lambda m: m["tasks"][0].update(guidance={"kind": "text", "text": 3.0}),
            "guidance needs a loop",
        ),
        (
            "translate",
            lambda m: flow(m)["calls"][0].update(when="end"),
            "picture: 'net' is no call 'once'",
        ),
        (
            "translate",
            lambda m: flow(m).update(prediction={"call": "net", "name": "translated"}),
            "prediction: 'net' is no call 'pass'",
        ),
        (
            "translate",
            lambda m: flow(m).update(start={"kind": "picture", "name": "image"}),
            "without prediction there is no loop, and all calls are 'once'",
        ),
    ],
)
def test_calls_out_of_order_are_refused_before_the_first_hash(
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Change,
    message: str,
) -> None:
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed"))
    with pytest.raises(BundleError, match=message) as caught:
        opened(bundles[name], tmp_path / "b", change)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------- batches


def with_batch(manifest: Json, batch: int, *names: str, result: int | None = None) -> None:
    """Another batch of some inputs of the denoiser, and of its output."""
    record = part(manifest, "unet")
    for tensor in record["inputs"]:
        if tensor["name"] in names:
            tensor["shape"][0] = batch
    record["outputs"][0]["shape"][0] = result or batch


ALL = ("sample", "encoder_hidden_states")


def prompt_for_all(manifest: Json) -> None:
    """One value for two branches that depends on the prompt, so on the negative one too."""
    with_batch(manifest, 2, "sample")
    del net(manifest)["inputs"]["encoder_hidden_states"]["empty"]


def empty_for_all(manifest: Json) -> None:
    with_batch(manifest, 2, "sample")


def image_for_all(manifest: Json) -> None:
    with_batch(manifest, 2, "encoder_hidden_states")


def narrow_prediction(manifest: Json) -> None:
    with_batch(manifest, 2, *ALL, result=1)


def unequal(manifest: Json) -> None:
    with_batch(manifest, 2, "sample")
    with_batch(manifest, 3, "encoder_hidden_states")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("edit", prompt_for_all, "'encoder_hidden_states' differs by branch and must have batch 2"),
        ("edit", empty_for_all, "'encoder_hidden_states' differs by branch and must have batch 2"),
        ("edit", image_for_all, "'sample' differs by branch and must have batch 2"),
        ("edit", narrow_prediction, "prediction has batch 1, its pass 2"),
        ("edit", unequal, "have one batch of 1 to 64, they have 1, 2, 3"),
        ("edit", lambda m: with_batch(m, 65, *ALL), "have one batch of 1 to 64, they have 1, 65"),
        (
            "edit",
            lambda m: part(m, "vae_decoder")["inputs"][0]["shape"].__setitem__(0, 2),
            "'latent_sample' has another batch than 1",
        ),
        (
            "edit",
            lambda m: part(m, "vae_encoder")["outputs"][0]["shape"].__setitem__(0, 2),
            "'latent_sample' of 'vae_encoder' has another batch",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    bundles: dict[str, Path], tmp_path: Path, name: str, change: Change, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        opened(bundles[name], tmp_path / "b", change)


def test_one_value_for_all_branches_is_legal(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A constant, the same for the prompt and without it: the test of the tests above."""

    def change(manifest: Json) -> None:
        with_batch(manifest, 2, "sample")
        name = "empty/encoder_hidden_states"
        value = {"sources": [{"kind": "constant", "name": name}]}
        net(manifest)["inputs"]["encoder_hidden_states"] = value

    loop = opened(bundles["edit"], tmp_path / "b", change)
    assert loop.task.name == "edit"


# ------------------------------------------------------------------------------------------ tables


def passes(manifest: Json) -> list[Json]:
    return [step for table in manifest["loop"]["schedules"] for step in table["passes"]]


def vector_for(count: int) -> Change:
    """A column of vectors for the text input, [1, 77, 8] in the denoiser."""

    def change(manifest: Json) -> None:
        for step in passes(manifest):
            step["columns"]["words"] = [0.5] * count
        value = {"sources": [{"kind": "column", "name": "words"}]}
        net(manifest)["inputs"]["encoder_hidden_states"] = value

    return change


def in_all_but_one(name: str) -> Change:
    def change(manifest: Json) -> None:
        for step in passes(manifest):
            step["columns"][name] = 1.0
        del passes(manifest)[-1]["columns"][name]
        net(manifest)["inputs"]["timestep"]["sources"][0]["name"] = name

    return change


def of_two_shapes(manifest: Json) -> None:
    vector_for(8)(manifest)
    passes(manifest)[3]["columns"]["words"] = [0.5] * 7


def a_number_and_a_vector(manifest: Json) -> None:
    vector_for(8)(manifest)
    passes(manifest)[3]["columns"]["words"] = 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_all_but_one("angle"), "loop: a pass has no column 'angle'"),
        (of_two_shapes, "column 'words' is not alike in every pass"),
        (a_number_and_a_vector, "column 'words' is not alike in every pass"),
        (vector_for(8), r"must be \[1, 77, 8\], it gets \[1, 8\]"),
        (lambda m: m["loop"]["schedules"].clear(), "task 'edit': its loop has no table"),
        (
            lambda m: m["loop"]["schedules"][0]["passes"].clear(),
            "passes: must have at least 1 item",
        ),
        (
            lambda m: m["loop"]["schedules"][0].update(passes=passes(m)[:1] * 10_001),
            "passes: must have at most 10,000 items",
        ),
        (lambda m: passes(m)[0]["m"].append(0), r"m: must have at most 4 items"),
        (lambda m: passes(m)[0]["x"].pop(), r"x: must have at least 4 items"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    bundles: dict[str, Path], tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        opened(bundles["edit"], tmp_path / "b", change)


def test_columns_that_no_input_takes_may_be_anything(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    def change(manifest: Json) -> None:
        passes(manifest)[0]["columns"]["other"] = [1.0, 2.0]

    loop = opened(bundles["edit"], tmp_path / "b", change)
    assert np.shape(loop.schedules[2, None].passes[0].columns["other"]) == (2,)


# -------------------------------------------------------------------------------- shapes and names


def joined_tokens(manifest: Json) -> None:
    value = flow(manifest)["calls"][0]["inputs"]["input_ids"]
    value["sources"].append({"kind": "constant", "name": "empty/encoder_hidden_states"})
    value["axis"] = 1


def number_joined(manifest: Json) -> None:
    """A number fills an input, so that nothing can be joined with it."""
    inputs = flow(manifest)["calls"][0]["inputs"]
    inputs["labels"]["sources"].append({"kind": "number", "name": "amount"})
    inputs["labels"]["axis"] = 1


def put(name: str, *sources: Json) -> Change:
    def change(manifest: Json) -> None:
        flow(manifest)["calls"][0]["inputs"][name]["sources"] = list(sources)

    return change


IMAGE = {"kind": "picture", "name": "image"}
HINT = {"kind": "picture", "name": "hint"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("edit", joined_tokens, "tokens are int32: neither joined with others nor scaled"),
        ("translate", number_joined, r"must be \[1, 2, 16, 24\], it gets \[1, 4, 16, 24\]"),
        ("translate", put("hint", IMAGE), r"'hint' must be \[1, 1, 16, 24\], it gets \[1, 3, 16"),
        ("translate", put("picture", {**IMAGE, "mean": 8}), r"it gets \[1, 3, 2, 3\]"),
        ("translate", put("picture", {**IMAGE, "mean": 16}), "is no multiple of 16"),
        ("translate", put("picture", {**IMAGE, "mean": 8, "every": 8}), "every and mean exclude"),
        ("translate", put("picture", {**IMAGE, "outside": "hint"}), "the task has no mask 'hint'"),
        ("translate", put("labels", {"kind": "constant", "name": "x"}), "'x' is missing"),
        (
            "translate",
            lambda m: m["tasks"][0]["inputs"]["tensors"]["labels"].update(shape=[2, 2, 16, 24]),
            r"'labels' must be \[1, 2, 16, 24\], it gets \[2, 2, 16, 24\]",
        ),
        (
            "translate",
            lambda m: part(m, "net")["outputs"][0].update(shape=[1, 1, 16, 24]),
            r"picture must be \[1, 3, 16, 24\], it is \[1, 1, 16, 24\]",
        ),
        (
            "img2img",
            lambda m: flow(m).update(start=IMAGE),
            r"start is \[1, 3, 16, 24\], not the latent's shape",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    bundles: dict[str, Path], tmp_path: Path, name: str, change: Change, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        opened(bundles[name], tmp_path / "b", change)


def test_a_part_that_was_not_exported_stops_its_tasks_alone(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Two tasks, one of which runs a part that is not there."""

    def change(manifest: Json) -> None:
        task = json.loads(json.dumps(manifest["tasks"][0]))
        task["name"] = "other"
        task["flow"]["calls"][-1]["part"] = "fine_decoder"
        manifest["tasks"].append(task)
        for record in manifest["parts"][:-1]:
            record["entries"]["other"] = "model.onnx"

    with pytest.raises(PlanError, match="name a --task; this bundle has: edit, other"):
        opened(bundles["edit"], tmp_path / "b", change)
    source = bundle.read(tmp_path / "b")
    assert runner.open_loop(source, "edit").task.name == "edit"
    with pytest.raises(BundleError, match="has no fine_decoder: task 'other' needs it"):
        runner.open_loop(source, "other")
