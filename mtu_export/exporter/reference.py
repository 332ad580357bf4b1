"""The loop of the live-router pipeline in PyTorch, for one seeded request.

Parts are exported one at a time. Each leaves a :class:`Contribution` of arrays to the loop, so that
no two parts are in memory together and an interrupted export can resume from files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtu_export import checkpoint
from mtu_export.bundle import denoising, sampler, source_tokenizer
from mtu_export.bundle.manifest import Golden, Loop, ScheduleRecord
from mtu_export.checkpoint.layout import PipelineLayout, tokenizer_folder
from mtu_export.exporter import golden_inputs
from mtu_export.exporter.schedule import Baked
from mtu_export.graph import capture
from mtu_export.graph.capture import Graph
from mtu_export.spec import Arrays, Plan, Session, Task

PROMPT = "make the red circle blue"
PROMPTS = (PROMPT, "", "make the small green square yellow, and remove the shadow")
"""The prompt of the golden request, and those of a text encoder's goldens."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one component adds to the golden loop of a task; which field depends on the component.

    - ``text``: a text encoder's outputs, by prompt.
    - ``channels``: the VAE encoder's conditioning [1, Σc, h, w], with and without the image.
    - ``outputs``, ``latents``: the UNet's guided output (m of a schedule) and the latent x after
      it, of each pass, [1, C, h, w].
    - ``image``: the decoded picture [1, 3, H, W].
    """

    text: tuple[Arrays, ...] = ()
    channels: tuple[np.ndarray, ...] = ()
    outputs: tuple[np.ndarray, ...] = ()
    latents: tuple[np.ndarray, ...] = ()
    image: np.ndarray | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a file; inverse of :meth:`from_arrays`."""
        arrays = {
            f"text/{case}/{name}": value
            for case, outputs in enumerate(self.text)
            for name, value in outputs.items()
        }
        for name in ("channels", "outputs", "latents"):
            arrays |= {f"{name}/{i}": value for i, value in enumerate(getattr(self, name))}
        return arrays if self.image is None else {**arrays, "image": self.image}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Contribution:
        """Read what :meth:`to_arrays` wrote."""

        def numbered(prefix: str) -> tuple[np.ndarray, ...]:
            values = denoising.named(arrays, f"{prefix}/")
            return tuple(values[str(i)] for i in range(len(values)))

        cases = {name.split("/")[1] for name in arrays if name.startswith("text/")}
        return cls(
            text=tuple(denoising.named(arrays, f"text/{i}/") for i in range(len(cases))),
            channels=numbered("channels"),
            outputs=numbered("outputs"),
            latents=numbered("latents"),
            image=arrays.get("image"),
        )


class Reference:
    """The golden loop of one task, run part by part while the components are exported.

    A component's :class:`Contribution` is added with :meth:`add`; the methods that need one that
    is missing return an empty result.
    """

    def __init__(self, plan: Plan, task: Task, baked: Baked) -> None:
        self.plan, self.task, self.steps = plan, task, baked.golden
        self.schedule = baked.tables[baked.golden]
        layout = PipelineLayout.read(plan.checkpoint, plan.config)
        self.is_complete = set(layout.components(task)) <= set(plan.components)
        self.encoders, self.is_sdxl = layout.text_encoders, layout.is_sdxl
        self.scaling = layout.scaling_factor
        index = plan.checkpoint / "model_index.json"
        self.index = checkpoint.read_json(index) if index.is_file() else {}
        self.contributions: dict[str, Contribution] = {}
        self.request = self._request()

    def _request(self) -> denoising.Request:
        plan, task = self.plan, self.task
        size, shape = (plan.height, plan.width), (1, plan.config["out_channels"], *plan.latent_size)
        return denoising.Request(
            prompt=PROMPT if self.task.prompt is None else self.task.prompt,
            noise=denoising.noise(shape, plan.seed, self.schedule.draws),
            steps=self.steps,
            image=golden_inputs.pictures(size, plan.seed)[0] if task.needs_image else None,
            mask=golden_inputs.mask(size) if task.needs_mask else None,
        )

    def add(self, component: str, contribution: Contribution) -> None:
        """Keep a component's contribution."""
        self.contributions[component] = contribution

    # ------------------------------------------------------------------------------- text

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts for the text encoders: the request's, the empty one and another."""
        return (self.request.prompt, *PROMPTS[1:])

    def ids(self, encoder: str) -> list[Arrays]:
        """Inputs of a text encoder, one for each prompt."""
        folder = self.plan.checkpoint / tokenizer_folder(encoder)
        loaded = source_tokenizer.read(folder)
        return [{"input_ids": loaded.encode(prompt)[0]} for prompt in self.prompts]

    @property
    def text_sources(self) -> dict[str, list[dict[str, str]]]:
        """The outputs of text encoders that are concatenated to each text input of the UNet."""
        hidden = [{"component": name, "output": "hidden_states"} for name in self.encoders]
        pooled = {"text_embeds": [{"component": "text_encoder_2", "output": "pooled"}]}
        return {"encoder_hidden_states": hidden, **(pooled if self.is_sdxl else {})}

    def text_embeddings(self, case: int) -> dict[str, np.ndarray]:
        """UNet inputs [1, ...] for one of the prompts; empty where an encoder is missing."""
        embeddings = {}
        for name, sources in self.text_sources.items():
            if not all(source["component"] in self.contributions for source in sources):
                return {}
            outputs = [
                self.contributions[source["component"]].text[case][source["output"]]
                for source in sources
            ]
            embeddings[name] = np.concatenate(outputs, -1)
        return embeddings

    @property
    def known_embeddings(self) -> list[Arrays]:
        """Text inputs of the UNet by prompt, where the checkpoint's encoders can make them."""
        cases = map(self.text_embeddings, range(len(self.prompts)))
        return [embeddings for embeddings in cases if embeddings]

    def constants(self) -> dict[str, np.ndarray]:
        """Inputs of the UNet that no user changes, by name in ``constants.safetensors``."""
        constants: dict[str, np.ndarray] = {}
        prompt, empty = self.text_embeddings(0), self.text_embeddings(1)
        if prompt and self.task.guidance.kind != "none":
            # true is the default of diffusers' SDXL pipelines
            zeros = self.is_sdxl and self.index.get("force_zeros_for_empty_prompt", True) is True
            constants |= {f"empty/{n}": v * 0 if zeros else v for n, v in empty.items()}
        if prompt and self.task.prompt is not None:
            constants |= {f"prompt/{self.task.name}/{name}": v for name, v in prompt.items()}
        if self.is_sdxl:
            size = [self.plan.height, self.plan.width]
            constants["sizes/time_ids"] = np.array([[*size, 0, 0, *size]], np.float32)
        return constants

    # ------------------------------------------------------------------------ image and loop

    def run_encoder(self, graph: Graph) -> Contribution:
        """The request's image as conditioning, through the VAE encoder."""

        def encode(image: np.ndarray) -> np.ndarray:
            (outputs,) = capture.run(graph, [{graph.inputs[0].name: image}])
            return outputs[graph.outputs[0].name]

        return Contribution(channels=self._channels(encode))

    def _channels(
        self, encode: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        size = self.plan.latent_size
        return denoising.conditioning(self.task, self.request, encode, self.scaling, size)

    def run_loop(self, graph: Graph) -> Contribution:
        """Run the guided passes with the live router; empty where a component is missing."""
        if not self.is_complete or not self.text_embeddings(0):
            return Contribution()
        encoded = self.contributions.get("vae_encoder", Contribution()).channels
        full, without = encoded or self._channels(_no_encoder)
        sizes = denoising.named(self.constants(), "sizes/")
        empty = denoising.named(self.constants(), "empty/")
        text_inputs = ({**self.text_embeddings(0), **sizes}, {**empty, **sizes})
        denoise = denoising.denoiser(
            _session(graph), graph.inputs, self.task.guidance, text_inputs, (full, without)
        )
        passes = list(sampler.trajectory(self.schedule, self.request.noise, denoise))
        return Contribution(
            outputs=tuple(m for m, _ in passes), latents=tuple(x for _, x in passes)
        )

    def run_decoder(self, graph: Graph) -> Contribution:
        """The picture of the last latent, where the loop was run."""
        latents = self.contributions.get("unet", Contribution()).latents
        if not latents:
            return Contribution()
        session = _session(graph)
        return Contribution(
            image=denoising.decode(session, graph.inputs[0], latents[-1], self.scaling)
        )

    def golden(self) -> dict[str, np.ndarray]:
        """The tensors of ``loop/<task>/``; empty where the loop was not run to its end."""
        image = self.contributions.get("vae_decoder", Contribution()).image
        if image is None:
            return {}
        loop = self.contributions["unet"].to_arrays()
        golden = {"noise": self.request.noise, "image": image, **loop}
        for name, value in (("input", self.request.image), ("mask", self.request.mask)):
            if value is not None:
                golden[name] = value
        return golden


def describe_loop(scheduler: Any, baked: Baked, references: Sequence[Reference]) -> Loop:
    """The manifest's ``loop``: the tables, and the golden request of a task that was run.

    Tasks that take any prompt come first: a task with a fixed prompt ignores the request's.
    """
    loop = Loop(
        scheduler=type(scheduler).__name__,
        prediction_type=scheduler.config.get("prediction_type", "epsilon"),
        schedules={str(steps): ScheduleRecord.of(table) for steps, table in baked.tables.items()},
    )
    optional: dict[str, Any] = {}  # keys that are left out of a manifest where they are empty
    if baked.skipped:
        optional["skipped"] = {str(steps): reason for steps, reason in baked.skipped.items()}
    complete = [reference for reference in references if reference.golden()]
    for reference in sorted(complete, key=lambda each: each.task.prompt is not None)[:1]:
        optional["golden"] = Golden(prompt=reference.request.prompt, steps=reference.steps)
    return loop.model_copy(update=optional)


def _no_encoder(image: np.ndarray) -> np.ndarray:
    raise AssertionError("a task that encodes its image has a VAE encoder among its components")


def _session(graph: Graph) -> Session:
    """A graph in PyTorch as a session."""

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(capture.run(graph, [inputs])[0])

    return run
