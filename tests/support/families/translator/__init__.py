"""A whole family in one file: a network that turns one picture into another in a single pass."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from mtu_export.checkpoint import read_json
from mtu_export.graph.capture import Graph
from mtu_export.spec import Guidance, PartSpec, Task, TensorSpec
from mtu_export.spec.flow import Call, Flow, Inputs, OutputName, Picture, PictureRequest, Value
from mtu_export.spec.model import PlainModel

CLASS = "PictureTranslator"
TASK = Task(name="translate", index=0, conditioning=(), guidance=Guidance(kind="none"), steps=1)


class Live:
    def __init__(self, folder: Path) -> None:
        self.module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1))
        self.module.load_state_dict(load_file(folder / "net/diffusion_pytorch_model.safetensors"))

    def graph(self, task: Task, size: tuple[int, int], batch: int, module: Any = None) -> Graph:
        given, made = (TensorSpec(name=n, shape=(1, 3, *size)) for n in ("picture", "translated"))
        return Graph(module=self.module.eval(), inputs=(given,), outputs=(made,))

    def specialise(self, tasks: Any) -> None:
        return None


class Translator(PlainModel):
    family, tasks, default_tasks = "translator", (TASK,), (TASK.name,)
    parts = (PartSpec(name="net", kind="network", folder="net"),)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        return height or 64, width or 64

    def flow(self, task: Task) -> Flow:
        value = Value(sources=(Picture(kind="picture", name="image"),))
        call = Call(id="net", part="net", when="once", inputs={"picture": value})
        return Flow(calls=(call,), picture=OutputName(call="net", name="translated"))

    def inputs(self, task: Task) -> Inputs:
        return Inputs(pictures={"image": PictureRequest(kind="picture")})

    def load(self, part: str) -> Live:
        return Live(self.folder)


class FAMILY:
    classes, open = (CLASS,), Translator

    @staticmethod
    def claims(folder: Path) -> bool:
        path = folder / "net" / "config.json"
        return path.is_file() and read_json(path).get("_class_name") == CLASS
