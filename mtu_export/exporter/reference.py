"""A task's flow in PyTorch, for one seeded request.

Parts are exported one at a time. Each leaves a :class:`Contribution` of arrays, so that parts need
not be in memory together and an interrupted export can resume from files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mtu_export.bundle import sampler, source_tokenizer
from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.exporter import golden_inputs, tokenizers
from mtu_export.graph import capture
from mtu_export.graph.capture import Graph
from mtu_export.spec import Arrays, Plan, Schedule, Session, Task, TensorSpec
from mtu_export.spec.flow import Call, Flow

PROMPT = "make the red circle blue"
PROMPTS = (PROMPT, "", "make the small green square yellow, and remove the shadow")
"""Of the golden request, and of the cases of a text encoder."""
EMPTY = 1
"""The case with the empty prompt."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one part adds to the reference of a task; which field depends on its calls.

    ``once`` are the outputs of its once calls by case and call; ``outputs`` the guided m of each
    pass and ``latents`` x after it, [1, C, h, w]; ``picture`` the result [1, 3, H, W].
    """

    once: Mapping[tuple[int, str], Arrays] = field(default_factory=dict)
    outputs: tuple[np.ndarray, ...] = ()
    latents: tuple[np.ndarray, ...] = ()
    picture: np.ndarray | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a file; inverse of :meth:`from_arrays`."""
        arrays = {
            f"once/{case}/{call}/{name}": value
            for (case, call), outputs in self.once.items()
            for name, value in outputs.items()
        }
        for key in ("outputs", "latents"):
            arrays |= {f"{key}/{i}": value for i, value in enumerate(getattr(self, key))}
        return arrays if self.picture is None else {**arrays, "picture": self.picture}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Contribution:
        """Read what :meth:`to_arrays` wrote."""
        once: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for path, value in arrays.items():
            if path.startswith("once/"):
                _, case, call, name = path.split("/", 3)
                once.setdefault((int(case), call), {})[name] = value

        def numbered(key: str) -> tuple[np.ndarray, ...]:
            count = sum(name.startswith(f"{key}/") for name in arrays)
            return tuple(arrays[f"{key}/{i}"] for i in range(count))

        return cls(
            once=once,
            outputs=numbered("outputs"),
            latents=numbered("latents"),
            picture=arrays.get("picture"),
        )


class Reference:
    """The golden request of one task, as far as it has been run with the parts so far.

    ``schedule`` is its table, None for a flow without a loop.
    """

    def __init__(
        self, plan: Plan, task: Task, schedule: Schedule | None, steps: int | None
    ) -> None:
        self.plan, self.task, self.schedule, self.steps = plan, task, schedule, steps
        self.model, self.inputs = plan.model, plan.model.inputs(task)
        self.exported = plan.model.flow(task)
        self.flow = _with_encoders(self.exported, plan)
        self.is_complete = set(self.exported.parts) <= set(plan.parts)
        self.specs: dict[str, tuple[TensorSpec, ...]] = {}
        self._constants = plan.model.constants(task, plan.size)
        self._tokenizers: dict[str, source_tokenizer.Tokenizer] = {}
        self.outputs: tuple[np.ndarray, ...] = ()
        self.latents: tuple[np.ndarray, ...] = ()
        self.picture: np.ndarray | None = None
        prompts = (PROMPT if task.prompt is None else task.prompt, *PROMPTS[1:])
        self.cases = [self._evaluation(prompt, i) for i, prompt in enumerate(prompts)]

    @property
    def request(self) -> Request:
        """The golden request."""
        return self.cases[0].request

    def _evaluation(self, prompt: str, case: int) -> Evaluation:
        plan, shape = self.plan, self.plan.latent_shape
        pictures, tensors = golden_inputs.request(self.inputs, plan.size, plan.seed, case)
        noise = None
        if shape is not None and self.schedule is not None:
            noise = sampler.noise((1 + self.schedule.draws, *shape[1:]), plan.seed)
        request = Request(
            prompt=prompt,
            noise=noise,
            steps=self.steps or 1,
            strength=None if self.schedule is None else self.schedule.strength,
            pictures=pictures,
            tensors=tensors,
        )
        guidance = self.task.guidance
        return Evaluation(
            self.flow, self.inputs, self.specs, self._constants, guidance, request, self._ids
        )

    def _ids(self, tokenizer: str, prompt: str) -> np.ndarray:
        if tokenizer not in self._tokenizers:
            self._tokenizers[tokenizer] = tokenizers.read(self.plan, tokenizer)
        return self._tokenizers[tokenizer].encode(prompt)[0]

    def runs(self, part: str) -> bool:
        """Whether the task's own flow runs a part, rather than the encoding of a fixed prompt."""
        return part in self.exported.parts

    def add(self, contribution: Contribution) -> None:
        """Take what a part has contributed."""
        for (case, call), outputs in contribution.once.items():
            self.cases[case].outputs[call, True] = outputs
        self.outputs = contribution.outputs or self.outputs
        self.latents = contribution.latents or self.latents
        if contribution.picture is not None:
            self.picture = contribution.picture
        self._add_prompt_constants()

    # ----------------------------------------------------------------------------- golden cases

    def golden_inputs(self, call: Call, graph: Graph) -> tuple[Arrays, ...]:
        """The inputs of a part's golden cases, for its first call in the flow."""
        self.specs[call.part] = graph.inputs
        if call.when == "once":
            return tuple(case.call_inputs(call) for case in self.cases)
        if call.when in ("pass", "guided"):
            return golden_inputs.of_pass(
                graph.inputs,
                call.inputs,
                self.inputs,
                self._constants,
                self.plan.seed,
                [embeddings for case in self.cases if (embeddings := self._embeddings(case, call))],
            )
        return tuple(
            {spec.name: sampler.noise(spec.shape, self.plan.seed + i) for spec in graph.inputs}
            for i in range(golden_inputs.CASES)
        )

    def _embeddings(self, case: Evaluation, call: Call) -> dict[str, np.ndarray]:
        """The text inputs of a pass call for the prompt of a case; empty where not all are made."""
        text = self.model.text
        if text is None:
            return {}
        encoded = {name: value for name, value in text.inputs.items() if name in call.inputs}
        if not all(case.has(value) for value in encoded.values()):
            return {}
        return {name: case.value(value) for name, value in encoded.items()}

    # -------------------------------------------------------------------------------- constants

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The constants that the exported flow names, as far as they are made."""
        named = _constant_names(self.exported)
        return {name: value for name, value in self._constants.items() if name in named}

    def _add_prompt_constants(self) -> None:
        """Embeddings of the empty and of the fixed prompt, once their encoders have run."""
        text = self.model.text
        for name, value in {} if text is None else text.inputs.items():
            assert text is not None
            if all(case.has(value) for case in self.cases[:2]):
                empty = self.cases[EMPTY].value(value)
                self._constants[f"empty/{name}"] = empty * 0 if text.zero_empty else empty
                prompt = self.cases[0].value(value)
                self._constants[f"prompt/{self.task.name}/{name}"] = prompt

    # ------------------------------------------------------------------------------------- runs

    def run_once(self, part: str, graph: Graph) -> Contribution:
        """The once calls of a part; those that depend on the prompt in every case."""
        self.specs[part] = graph.inputs
        once: dict[tuple[int, str], Arrays] = {}
        for call in self.flow.of("once"):
            if call.part != part:
                continue
            prompted = call.id in self.flow.prompted
            for number, case in enumerate(self.cases if prompted else self.cases[:1]):
                case.run_once(call, session(graph))
                once[number, call.id] = case.outputs[call.id, True]
        return Contribution(once=once)

    def run_loop(self, graphs: Mapping[str, Graph]) -> Contribution:
        """The guided passes; empty where a part of the flow or an encoder is missing."""
        missing = _constant_names(self.exported) - set(self._constants)
        done = {call for call, _ in self.cases[0].outputs}
        if not self.is_complete or missing or self.schedule is None:
            return Contribution()
        if not {call.id for call in self.exported.of("once")} <= done:
            return Contribution()
        self.specs |= {name: graph.inputs for name, graph in graphs.items()}
        case = self.cases[0]
        denoise = case.denoiser({name: session(graph) for name, graph in graphs.items()})
        assert case.request.noise is not None
        passes = list(sampler.trajectory(self.schedule, case.request.noise, denoise, case.start()))
        return Contribution(
            outputs=tuple(m for m, _ in passes), latents=tuple(x for _, x in passes)
        )

    def run_end(self, graphs: Mapping[str, Graph]) -> Contribution:
        """The picture of the last latent, where the loop was run."""
        if not self.latents:
            return Contribution()
        self.specs |= {name: graph.inputs for name, graph in graphs.items()}
        picture = self.cases[0].picture(self.latents[-1], lambda name: session(graphs[name]))
        return Contribution(picture=picture)

    def golden(self) -> dict[str, np.ndarray]:
        """The tensors of ``loop/<task>/``; empty where the flow was not run to its end."""
        picture = self.picture
        if not self.flow.has_loop and self.is_complete:
            result = self.flow.picture
            picture = self.cases[0].outputs[result.call, True][result.name]
        if picture is None:
            return {}
        golden = {"picture": picture}
        for key in ("outputs", "latents"):
            golden |= {f"{key}/{i}": value for i, value in enumerate(getattr(self, key))}
        request = self.request
        if request.noise is not None:
            golden["noise"] = request.noise
        given = {**request.pictures, **request.tensors}
        return golden | {f"request/{name}": value for name, value in given.items()}


def _with_encoders(flow: Flow, plan: Plan) -> Flow:
    """A flow with the calls of the text encoders whose parts the checkpoint has.

    The flow of a task with a fixed prompt has none of them, as its embeddings are constants.
    """
    text, there = plan.model.text, {call.id for call in flow.calls}
    specs = {spec.name: spec for spec in plan.model.parts}
    calls = [
        call
        for call in (() if text is None else text.calls)
        if call.id not in there and (plan.checkpoint / specs[call.part].folder).is_dir()
    ]
    return flow.model_copy(update={"calls": (*calls, *flow.calls)})


def _constant_names(flow: Flow) -> set[str]:
    """Names of the constants that a flow needs."""
    names = {
        source.name for call in flow.calls for source in call.sources() if source.kind == "constant"
    }
    values = (value for call in flow.calls for value in call.inputs.values())
    return names | {value.empty for value in values if value.empty is not None}


def session(graph: Graph) -> Session:
    """A graph in PyTorch as a session."""

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(capture.run(graph, [inputs])[0])

    return run
