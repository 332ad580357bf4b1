"""A run that is stopped and taken up again equals one that never was; several processes one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtu_export import training
from mtu_export.spec import (
    CheckpointError,
    Interrupted,
    PlanError,
    ResourceError,
    ToolchainMissing,
    extras,
)
from mtu_export.training import log, state, watch
from mtu_export.training.data import Sample
from tests.training.world import World, four, recipe, rows

ROOT = Path(__file__).parents[2]
CONFIG = """
output = "out"
state = "state"
data = "tests.training.world:four"
steps = {steps}
batch_size = 2
height = 32
width = 32
ema_decay = 0.9
router_learning_rate = 1e-4
lr_scheduler = "cosine"
lr_warmup_steps = 2
gradient_accumulation_steps = 1
checkpointing_steps = 2
log_every = 3
"""


def config(folder: Path, model: Path, steps: int = 9) -> Path:
    folder.mkdir(parents=True)
    path = folder / "run.toml"
    path.write_text(f'model = "{model}"' + CONFIG.format(steps=steps), "utf-8")
    return path


def child(path: Path, *before: str) -> subprocess.Popen[str]:
    command = [*(before or (sys.executable,)), "-m", "mtu_export", "train", str(path)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a background job of a shell inherits "ignore"; a user's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def here(path: Path) -> None:
    """A run in this process, as fast as a child: on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training.train(training.read(path))
    finally:
        torch.set_num_threads(threads)


def wait_for_step(folder: Path, step: int, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and running.poll() is None:
        newest = state.newest(folder / "state")
        if newest is not None and int(newest.name[5:]) >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"no state of step {step}: {running.stderr.read() if running.stderr else ''}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_kill_and_ctrl_c_change_nothing(four_tasks: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    path = config(stopped, four_tasks)
    killed = child(path)
    wait_for_step(stopped, 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    asked = child(path)
    wait_for_step(stopped, 4, asked)
    asked.send_signal(signal.SIGINT)
    _, errors = asked.communicate(timeout=120)
    assert asked.returncode == 130
    last = errors.splitlines()[-1]
    assert last.startswith("error: interrupted; the state of step ")
    assert last.endswith("run the same command to continue")
    assert not (stopped / "out").exists()
    here(path)
    here(config(whole, four_tasks))
    assert rows(whole) == rows(stopped)
    assert [entry["step"] for entry in rows(whole)] == [s for s in "369" for _ in range(4)]
    one, other = weights(whole), weights(stopped)
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [
        load_file(h / "state" / "step-00000009" / "state.safetensors") for h in (whole, stopped)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_two_processes_equal_one(four_tasks: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    here(config(one, four_tasks, steps=3))
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    done = child(config(two, four_tasks, steps=3), *launch, "--main_process_port", "0")
    _, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    for first, second in zip(rows(one), rows(two), strict=True):
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-6)
    a, b = weights(one), weights(two)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-6


class Stopping(World):
    """A world that asks to stop while a sample is read, as Ctrl-C does."""

    def __init__(self, reads: int, times: int = 1) -> None:
        super().__init__(("t2i", "edit", "sr", "inpaint"))
        self.reads, self.times = reads, times

    def __getitem__(self, index: int) -> Sample:
        self.reads -= 1
        if self.reads == 0:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl-C as a terminal has it; a background job of a shell inherits "ignore"."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
def test_one_ctrl_c_ends_the_step_two_do_not(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, steps=3, batch_size=1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        Interrupted, match=r"no state is in .* yet; run the same command to continue"
    ):
        training.train(options, Stopping(2, times=2))
    with pytest.raises(Interrupted, match="the state of step 2 is in"):
        training.train(options, Stopping(5))
    assert signal.getsignal(signal.SIGINT) == before
    training.train(options, four())
    straight = recipe(four_tasks, tmp_path / "straight", steps=3, batch_size=1)
    training.train(straight, four())
    assert rows(tmp_path) == rows(tmp_path / "straight")
    one, other = weights(tmp_path), weights(tmp_path / "straight")
    assert all(torch.equal(one[name], other[name]) for name in one)
    longer = replace(options, steps=4)
    training.train(longer, four(), force=True)
    assert [entry["step"] for entry in rows(tmp_path)] == [s for s in "1234" for _ in range(4)]
    with pytest.raises(PlanError, match="is at step 4 already; steps is 3"):
        training.train(options, four(), force=True)


@pytest.mark.slow
def test_other_states_are_refused_by_key(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, steps=1, batch_size=1)
    training.train(options, four())
    for change, message in (
        ({"seed": 3}, "is of another run: seed is 0 there and 3 here"),
        ({"ema_decay": 0.5}, r"ema_decay is 0\.0 there and 0\.5 here"),
        ({"lr_scheduler": "cosine"}, "lr_scheduler is 'constant' there and 'cosine' here"),
    ):
        with pytest.raises(PlanError, match=message):
            training.train(replace(options, **change), four(), force=True)
    with pytest.raises(PlanError, match="samples of edit is 5 there and 6 here"):
        training.train(options, World(("t2i", "edit", "sr", "inpaint"), 6), force=True)
    (kept,) = (tmp_path / "state").glob("step-*")
    assert sorted(path.name for path in kept.iterdir()) == ["state.json", "state.safetensors"]
    file = kept / "state.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match="is damaged"):
        training.train(options, four(), force=True)
    file.write_bytes(whole)
    document = json.loads((kept / "state.json").read_text())
    (kept / "state.json").write_text(json.dumps({**document, "format": 9}))
    with pytest.raises(CheckpointError, match="is not a state of format 1"):
        training.train(options, four(), force=True)


class Marked(World):
    """A world with a fingerprint."""

    def __init__(self, prefix: str) -> None:
        super().__init__(("t2i", "edit", "sr", "inpaint"))
        self.fingerprint = prefix


@pytest.mark.slow
def test_a_state_is_of_its_data_and_parts(dense: Path, tmp_path: Path) -> None:
    model = tmp_path / "dense"
    shutil.copytree(dense, model)
    options = recipe(
        model,
        tmp_path,
        steps=1,
        batch_size=1,
        tasks=("t2i", "edit", "sr", "inpaint"),
        upcycle=training.Upcycling(experts=2, task_embedding_dim=8, router_hidden_dim=8),
    )
    training.train(options, Marked("a"))
    with pytest.raises(PlanError, match="fingerprint of the data is 'a' there and 'b' here"):
        training.train(options, Marked("b"), force=True)
    path = model / "scheduler" / "scheduler_config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "prediction_type": "v_prediction"}))
    with pytest.raises(PlanError, match="parts of the model is"):
        training.train(options, Marked("a"), force=True)
    shutil.rmtree(next((tmp_path / "state").glob("step-*")))
    training.train(options, Marked("a"), force=True)  # no step is there: its experts are made anew
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"


@pytest.mark.slow
def test_what_is_no_state_of_the_run_is_refused(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, steps=1, batch_size=1)
    training.train(options, four())
    (kept,) = (tmp_path / "state").glob("step-*")
    tensors, name = load_file(kept / "state.safetensors"), "weight/conv_in.t2i.weight"
    for bad in (tensors[name][:1], torch.zeros(1), tensors[name].half()):
        save_file({**tensors, name: bad.clone()}, kept / "state.safetensors")
        with pytest.raises(CheckpointError, match=r"weight/conv_in\.t2i\.weight is torch\.float"):
            training.train(options, four(), force=True)
    save_file(tensors, kept / "state.safetensors")
    document = json.loads((kept / "state.json").read_text())
    for key, value in (("step", "1"), ("step", -1), ("step", 2), ("seconds", None), ("sums", [])):
        changed = {**document, "progress": {**document["progress"], key: value}}
        (kept / "state.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=f"is damaged: {key}"):
            training.train(options, four(), force=True)


def test_runs_of_other_outputs_have_states_of_their_own(tmp_path: Path) -> None:
    one, other = (
        replace(recipe(tmp_path, tmp_path / name), state=None) for name in ("one", "other")
    )
    assert one.state_folder() != other.state_folder()
    assert one.state_folder() == replace(one, router_learning_rate=1e-3).state_folder()


def test_a_failing_set_leaves_the_state_of_the_step_before(
    four_tasks: Path, tmp_path: Path
) -> None:
    class Failing(Stopping):
        def __getitem__(self, index: int) -> Sample:
            self.reads -= 1
            if self.reads == 0:
                raise MemoryError
            return World.__getitem__(self, index)

    options = recipe(four_tasks, tmp_path, steps=3, batch_size=1)
    with pytest.raises(MemoryError):
        training.train(options, Failing(6))
    assert [path.name for path in (tmp_path / "state").glob("step-*")] == ["step-00000001"]


def test_an_unfinished_state_is_not_seen(tmp_path: Path) -> None:
    tensors = {"weight/a": torch.ones(2)}
    first = state.save(tmp_path, state.Progress(step=3), {"seed": 1}, tensors)
    (tmp_path / ".step-00000009.partial").mkdir()
    (tmp_path / "step-x").mkdir()
    assert state.newest(tmp_path) == first
    second = state.save(tmp_path, state.Progress(step=12, sums={"a": 0.1}), {"seed": 1}, tensors)
    assert state.newest(tmp_path) == second
    assert not first.exists()
    progress, tensors = state.read(second, {"seed": 1})
    assert (progress.step, progress.sums) == (12, {"a": 0.1})
    assert torch.equal(tensors["weight/a"], torch.ones(2))


def test_the_log_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join(log.HEAD) + "\n5,sr,1,1,1,1\n6,sr,2,1,1,1\n6,ed")
    log.Log(tmp_path, ("csv",), 5).write(10, {"sr": 0.25}, 1e-4, 12.345, 1.0)
    assert path.read_text().splitlines()[1:] == ["5,sr,1,1,1,1", "10,sr,0.25,0.0001,12.35,1.0"]
    path.write_bytes(path.read_bytes() + b"\xff\xfe, from another program")
    log.Log(tmp_path, ("csv",), 5)
    assert path.read_text().splitlines()[1:] == ["5,sr,1,1,1,1"]
    path.unlink()
    path.mkdir()
    with pytest.raises(PlanError, match=r"log\.csv is a folder"):
        log.Log(tmp_path, ("csv",), 5)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    log.Log(tmp_path, (), 0).write(1, {"sr": 0.25}, 1e-4, 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    board = log.Log(tmp_path, ("tensorboard",), 0)
    board.write(10, {"sr": 0.25, "edit": 0.5}, 1e-4, 12, 1.0)
    board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = {"loss/sr", "loss/edit", "lr", "samples_per_second"}
    assert set(events.Tags()["scalars"]) == tags
    assert [(event.step, event.value) for event in events.Scalars("loss/sr")] == [(10, 0.25)]
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(ToolchainMissing, match=r"pip install 'mtu-export\[train\]'"):
        log.check(("tensorboard",))


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watch.ctrl_c() as stop:
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_run_a_folder(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, steps=1, batch_size=1)
    (tmp_path / "state").mkdir()
    with (
        state.exclusive_lock(tmp_path / "state"),
        pytest.raises(PlanError, match="another run is using"),
    ):
        training.train(options, four())
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match=r"cannot make .*: Not a directory"):
        training.train(replace(options, state=tmp_path / "file" / "state"), four())
