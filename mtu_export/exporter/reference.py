"""The loop of the live-router pipeline in PyTorch, for one seeded request.

Parts come by one after the other while they are exported; what each gives to the loop is kept as
arrays, so that no two of them are in memory together and a stopped export goes on from files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtu_export import checkpoint
from mtu_export.bundle import denoising, sampler, source_tokenizer
from mtu_export.checkpoint.layout import PipelineLayout, tokenizer_folder
from mtu_export.exporter import golden_inputs
from mtu_export.graph import capture
from mtu_export.graph.capture import Graph
from mtu_export.spec import Arrays, Plan, Schedule, Session, Task

PROMPT = "make the red circle blue"
PROMPTS = (PROMPT, "", "make the small green square yellow, and remove the shadow")
"""Of the golden request, and of the cases of a text encoder."""


class Reference:
    """Arrays by name: ``text/<encoder>/<case>/<output>``, ``channels``, ``latents/<pass>``, ..."""

    def __init__(
        self, plan: Plan, task: Task, scheduler: Any, tables: Mapping[int, Schedule]
    ) -> None:
        self.plan, self.task, self.steps = plan, task, min(tables)
        self.scheduler, self.tables = scheduler, tables
        self.schedule = tables[self.steps]
        layout = PipelineLayout.read(plan.checkpoint, plan.config)
        self.whole = set(layout.components(task)) <= set(plan.components)
        self.encoders, self.xl = layout.text_encoders, layout.is_sdxl
        self.scaling = layout.scaling_factor
        index = plan.checkpoint / "model_index.json"
        self.index = checkpoint.read_json(index) if index.is_file() else {}
        self.arrays: dict[str, np.ndarray] = {}
        self.request = self._request()

    def _request(self) -> denoising.Request:
        plan, task = self.plan, self.task
        size, shape = (plan.height, plan.width), (1, plan.config["out_channels"], *plan.latent_size)
        return denoising.Request(
            prompt=PROMPT if self.task.prompt is None else self.task.prompt,
            noise=denoising.noise(shape, plan.seed),
            steps=self.steps,
            image=golden_inputs.pictures(size, plan.seed)[0] if task.needs_image else None,
            mask=golden_inputs.mask(size) if task.needs_mask else None,
        )

    # ------------------------------------------------------------------------------- text

    @property
    def prompts(self) -> tuple[str, ...]:
        """What the text encoders are run on: the request's prompt, the empty one, another."""
        return (self.request.prompt, *PROMPTS[1:])

    def ids(self, encoder: str) -> list[Arrays]:
        """Inputs of a text encoder, one a prompt."""
        folder = self.plan.checkpoint / tokenizer_folder(encoder)
        words = source_tokenizer.read(folder)
        return [{"input_ids": words.encode(prompt)[0]} for prompt in self.prompts]

    def take_text(self, encoder: str, found: list[Arrays]) -> None:
        """Keep what a text encoder makes of the prompts."""
        for case, outputs in enumerate(found):
            self.arrays |= {f"text/{encoder}/{case}/{name}": v for name, v in outputs.items()}

    @property
    def text(self) -> dict[str, list[dict[str, str]]]:
        """Which outputs of text encoders are joined to which input of the UNet."""
        rows = [{"component": name, "output": "hidden_states"} for name in self.encoders]
        pooled = {"text_embeds": [{"component": "text_encoder_2", "output": "pooled"}]}
        return {"encoder_hidden_states": rows, **(pooled if self.xl else {})}

    def words(self, case: int) -> dict[str, np.ndarray]:
        """UNet inputs [1, ...] for one of the prompts; empty where an encoder is missing."""
        found = {}
        for name, rows in self.text.items():
            keys = [f"text/{row['component']}/{case}/{row['output']}" for row in rows]
            if not all(key in self.arrays for key in keys):
                return {}
            found[name] = np.concatenate([self.arrays[key] for key in keys], -1)
        return found

    @property
    def known(self) -> list[Arrays]:
        """Text inputs of the UNet, one a prompt, where the checkpoint's encoders can make them."""
        return [row for row in map(self.words, range(len(self.prompts))) if row]

    def constants(self) -> dict[str, np.ndarray]:
        """What a loop needs and no prompt changes, under the names of ``constants.safetensors``."""
        found: dict[str, np.ndarray] = {}
        given, empty = self.words(0), self.words(1)
        if given and self.task.guidance.kind != "none":
            # true where the index says nothing: so diffusers' SDXL pipelines have it
            zeros = self.xl and self.index.get("force_zeros_for_empty_prompt", True) is True
            found |= {f"empty/{n}": v * 0 if zeros else v for n, v in empty.items()}
        if given and self.task.prompt is not None:
            found |= {f"prompt/{self.task.name}/{name}": v for name, v in given.items()}
        if self.xl:
            size = [self.plan.height, self.plan.width]
            found["sizes/time_ids"] = np.array([[*size, 0, 0, *size]], np.float32)
        return found

    # ------------------------------------------------------------------------ image and loop

    def take_encoder(self, graph: Graph) -> None:
        """Keep the conditioning that the VAE encoder makes of the request's image."""

        def encode(image: np.ndarray) -> np.ndarray:
            (found,) = capture.run(graph, [{graph.inputs[0].name: image}])
            return found[graph.outputs[0].name]

        self._take_channels(encode)

    def _take_channels(self, encode: Any) -> None:
        full, without = denoising.conditioning(
            self.task, self.request, encode, self.scaling, self.plan.latent_size
        )
        self.arrays |= {"channels": full, "without": without}

    def take_unet(self, graph: Graph) -> None:
        """Run the guided passes with the live router; keep the latent after each."""
        if not self.whole:
            return
        if "channels" not in self.arrays:
            self._take_channels(None)
        channels = self.arrays["channels"], self.arrays["without"]
        sizes = denoising.named(self.constants(), "sizes/")
        empty = denoising.named(self.constants(), "empty/")
        words = ({**self.words(0), **sizes}, {**empty, **sizes})
        guidance = self.task.guidance
        denoise = denoising.denoiser(_session(graph), graph.inputs, guidance, words, channels)
        found = sampler.latents(self.schedule, self.request.noise, denoise)
        self.arrays |= {f"latents/{i}": x for i, x in enumerate(found)}

    def take_decoder(self, graph: Graph) -> None:
        """Keep the picture of the last latent."""
        if self.last is not None:
            self.arrays["image"] = denoising.decode(
                _session(graph), graph.inputs[0], self.last, self.scaling
            )

    @property
    def last(self) -> np.ndarray | None:
        """The latent after the last pass, where the loop was run."""
        return self.arrays.get(f"latents/{len(self.schedule.passes) - 1}")

    def golden(self) -> dict[str, np.ndarray]:
        """The tensors of ``loop/<task>/``; empty where the loop was not run to its end."""
        if "image" not in self.arrays:
            return {}
        given = {"noise": self.request.noise, "image": self.arrays["image"]}
        passes = range(len(self.schedule.passes))
        given |= {f"latents/{i}": self.arrays[f"latents/{i}"] for i in passes}
        for name, value in (("input", self.request.image), ("mask", self.request.mask)):
            if value is not None:
                given[name] = value
        return given

    def loop(self) -> dict[str, Any]:
        """The manifest's ``loop``: the tables, and the golden request where it was run."""
        found: dict[str, Any] = {
            "scheduler": type(self.scheduler).__name__,
            "prediction_type": self.scheduler.config.get("prediction_type", "epsilon"),
            "schedules": {str(steps): row.to_json() for steps, row in self.tables.items()},
        }
        if "image" in self.arrays:
            found["golden"] = {"prompt": self.request.prompt, "steps": self.steps}
        return found


def _session(graph: Graph) -> Session:
    """A graph in PyTorch as what a loop runs."""

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(capture.run(graph, [inputs])[0])

    return run
