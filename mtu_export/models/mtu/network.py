"""The MTU family: a diffusers UNet whose feed-forwards are experts, mixed by a task router.

Chavhan et al., "Upcycling Text-to-Image Diffusion Models for Multi-Task Capabilities", ICML 2025,
Eq. 1. Tensor names and shapes are those of checkpoint format 1.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.graph.capture import Graph
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu.experts import (
    ActiveTask,
    MTUFeedForward,
    PerTask,
    StackedNorm,
    dense_widths,
    shares,
    transformer_blocks,
)
from mtu_export.models.mtu.folding import FoldedBlock, fold_block
from mtu_export.models.mtu.layout import LAYOUT
from mtu_export.models.pipeline import unet_config
from mtu_export.models.pipeline.unet import as_checkpoint_error, dry_run, fill, unet_graph
from mtu_export.spec import (
    CheckpointError,
    MissingWeights,
    Specialised,
    Task,
    UnknownName,
)

STOCK_KEYS = tuple(inspect.signature(UNet2DConditionModel.__init__).parameters)[1:]
"""Keys of a stock UNet's config: its arguments, without ``self``."""
Headers = Mapping[str, checkpoint.Header]


class MTUUNet2DConditionModel(UNet2DConditionModel):
    """A ``UNet2DConditionModel`` upcycled to several tasks, with a live router.

    Takes the arguments of the stock UNet (``in_channels`` is the width of the noisy latent alone)
    and the keys of checkpoint format 1. ``expert_widths`` maps the path of a transformer block
    to its experts' widths; a missing block has ``num_experts`` shares of its dense width. The
    widths are read from the weights, never stored in the config.
    """

    LAYOUT = LAYOUT
    """Where its tensors come from; LoRAs are folded by it."""

    @property
    def value_factor(self) -> int | None:
        """The factor of the experts' value rows over the dense ones, None where it is unknown."""
        return mtu_config.rescale(self.config)

    def __init__(
        self,
        *,
        tasks: Sequence[Mapping[str, Any]] = (),
        num_experts: int = 4,
        task_embedding_dim: int = 768,
        router_hidden_dim: int = 768,
        task_norm: str = "replace",
        mtu_format: int = mtu_config.FORMAT,
        expert_widths: Mapping[str, Sequence[int]] | None = None,
        **stock: Any,
    ) -> None:
        own_config = {
            "mtu_format": mtu_format,
            "num_experts": num_experts,
            "task_embedding_dim": task_embedding_dim,
            "router_hidden_dim": router_hidden_dim,
            "tasks": [dict(task) for task in tasks],
            "task_norm": task_norm,
        }
        mtu_config.check_config({**stock, **own_config}, STOCK_KEYS)
        super().__init__(**stock)
        self.register_to_config(**own_config)
        self.tasks = mtu_config.tasks(own_config)
        self.active = ActiveTask()
        self.task_embedding = nn.Embedding(len(self.tasks), task_embedding_dim)
        self.conv_in = self._task_convs(self.conv_in)
        for path, block in transformer_blocks(self):
            self._upcycle_block(path, block, (expert_widths or {}).get(path))

    def _task_convs(self, stock: nn.Module) -> PerTask:
        assert isinstance(stock, nn.Conv2d)
        width, kernel, pad = stock.out_channels, stock.kernel_size, stock.padding
        convs = {
            task.name: nn.Conv2d(stock.in_channels + task.channels, width, kernel, padding=pad)  # type: ignore[arg-type]
            for task in self.tasks
        }
        return PerTask(self.active, convs)

    def _upcycle_block(self, path: str, block: Any, widths: Sequence[int] | None) -> None:
        config, norm = self.config, block.norm3
        dim, inner = dense_widths(path, block)
        if widths is None:
            widths = shares(inner, config["num_experts"], path)
        norms = {task.name: nn.LayerNorm(dim, norm.eps) for task in self.tasks}
        if config["task_norm"] == "stacked":
            block.norm3 = StackedNorm(self.active, norm, norms)
        else:
            block.norm3 = PerTask(self.active, norms)
        block.ff = MTUFeedForward(
            self.active, dim, widths, config["task_embedding_dim"], config["router_hidden_dim"]
        )

    def task(self, name: str | None) -> Task:
        """The task of this name; None means the only task of the model."""
        if name is None and len(self.tasks) == 1:
            return self.tasks[0]
        for task in self.tasks:
            if task.name == name:
                return task
        raise UnknownName("task", str(name), [task.name for task in self.tasks])

    @contextmanager
    def activate(self, task: Task) -> Iterator[None]:
        """Make ``task`` the active task inside the block, in this thread alone.

        The previous task is restored at the end.
        """
        with self.active.run(task.name, self.task_embedding.weight[task.index]):
            yield

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        task: str | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        **stock: Any,
    ) -> Any:
        """Predict the noise of ``sample`` [B, c_τ, h, w] for one task.

        ``encoder_hidden_states`` [B, tokens, d]; ``timestep`` is a number, [1] or [B]. The other
        arguments and the result are those of the stock UNet. Raises ``UnknownName`` and
        ``ValueError``.
        """
        active = self.task(task)
        channels = self.config["in_channels"] + active.channels
        if sample.shape[1] != channels:
            raise ValueError(
                f"task {active.name!r} takes {channels} channels, sample has {sample.shape[1]}"
            )
        with self.activate(active):
            return super().forward(
                sample,
                timestep,
                encoder_hidden_states,
                added_cond_kwargs=added_cond_kwargs,
                **stock,
            )

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """As in diffusers; the backward pass recomputes with the task of its forward pass."""
        from torch.utils.checkpoint import checkpoint as recompute

        def recompute_with_task(module: Any, *args: Any) -> Any:
            task = self.task(self.active.routing.task)

            def run(*inputs: Any) -> Any:
                with self.activate(task):
                    return module(*inputs)

            if gradient_checkpointing_func is not None:
                return gradient_checkpointing_func(run, *args)
            return recompute(run, *args, use_reentrant=False)

        super().enable_gradient_checkpointing(recompute_with_task)

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, but refuses unknown keys instead of ignoring them."""
        if isinstance(config, Mapping):
            mtu_config.check_config(config, STOCK_KEYS)
        loaded = super().from_config(cast(Any, config), return_unused_kwargs, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config, Mapping) and mtu_config.RESCALE in config:
            model.register_to_config(**{mtu_config.RESCALE: config[mtu_config.RESCALE]})
        return loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers, from a local folder or a hub id, but the weights must fit exactly.

        Raises ``CheckpointError`` for format, keys and pickles, and ``MissingWeights`` with the
        tensor's name.
        """
        if kwargs.get("variant") is not None:
            raise CheckpointError("checkpoint format 1 has no variants; leave variant out")
        folder = checkpoint.locate(pretrained_model_name_or_path, kwargs.get("revision"))
        unet_folder = folder / (kwargs.get("subfolder") or "")
        config = checkpoint.read_json(unet_folder / "config.json")
        config = unet_config.without_training_keys(config)
        config = {**unet_config.STOCK_DEFAULTS, **config}
        headers = checkpoint.headers(unet_folder)
        meta_model(config, headers)
        kwargs.setdefault("expert_widths", _expert_widths(headers))
        return super().from_pretrained(str(folder), **kwargs)


def _signature() -> inspect.Signature:
    """Arguments of the MTU and the stock UNet, where diffusers looks for legal config keys."""
    mtu = inspect.signature(MTUUNet2DConditionModel.__init__).parameters
    stock = inspect.signature(UNet2DConditionModel.__init__).parameters
    kinds = inspect.Parameter
    mtu_arguments = [p for p in mtu.values() if p.kind is not kinds.VAR_KEYWORD]
    stock_arguments = [p.replace(kind=kinds.KEYWORD_ONLY) for n, p in stock.items() if n != "self"]
    return inspect.Signature([*mtu_arguments, *stock_arguments])


MTUUNet2DConditionModel.__init__.__signature__ = _signature()  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------- Family protocol


def _expert_widths(headers: Headers) -> dict[str, tuple[int, ...]]:
    """Experts' widths hs_i by block path, from the shapes of their down projections."""
    widths_by_number: dict[str, dict[int, int]] = {}
    for name, header in headers.items():
        path, _, rest = name.partition(".ff.experts.")
        number, _, leaf = rest.partition(".")
        if leaf == "out.weight" and number.isdecimal() and len(header.shape) == 2:
            widths_by_number.setdefault(path, {})[int(number)] = header.shape[1]
    return {
        path: tuple(widths[number] for number in sorted(widths))
        for path, widths in widths_by_number.items()
    }


def meta_model(config: Mapping[str, Any], headers: Headers) -> MTUUNet2DConditionModel:
    """The model of a config on the meta device; refuses weights that do not fit it.

    A dry run refuses configs that describe no working UNet.
    """
    mtu_config.check_config(config, STOCK_KEYS)
    count, widths_by_block = config["num_experts"], _expert_widths(headers)
    for path, widths in widths_by_block.items():
        if len(widths) != count or not all(widths):
            raise MissingWeights(
                f"weights do not fit the config: {path} has experts of widths {list(widths)}, "
                f"num_experts is {count}"
            )
    with as_checkpoint_error(), torch.device("meta"):
        model = MTUUNet2DConditionModel.from_config(dict(config), expert_widths=widths_by_block)
    checkpoint.compare(headers, {k: tuple(v.shape) for k, v in model.state_dict().items()})
    side, first = 2 ** len(model.config["block_out_channels"]), model.tasks[0]
    channels = model.config["in_channels"] + first.channels
    with as_checkpoint_error():
        dry_run(
            unet_graph(
                model,
                model.config,
                channels=channels,
                batch=1,
                latent=(side, side),
                task=first.name,
            )
        )
    return model


def load(folder: Folder) -> MTUUNet2DConditionModel:
    """Load a checkpoint's UNet in float32, memory-mapped where it is stored as float32."""
    config = mtu_config.read_config(folder)
    headers = checkpoint.headers(folder / "unet")
    return fill(meta_model(config, headers), headers)


def graph(
    unet: nn.Module, config: Mapping[str, Any], task: Task, latent: tuple[int, int], batch: int
) -> Graph:
    """The graph of one task, from the live or a specialised UNet; ``latent`` is height, width."""
    return unet_graph(
        unet,
        config,
        channels=config["in_channels"] + task.channels,
        batch=batch,
        latent=latent,
        **({"task": task.name} if isinstance(unet, MTUUNet2DConditionModel) else {}),
    )


def specialise(live: MTUUNet2DConditionModel, tasks: Sequence[Task]) -> dict[str, Specialised]:
    """Fold the live UNet for each task into a stock UNet, but for ``Specialised.deviations``.

    The results share all tensors except gains, folded biases, task norms and input convolutions.
    Consumes the live UNet block by block. Every fold is proved in float64; ``NotFoldable``
    names a block whose fold is not exact.
    """
    folds: dict[str, list[FoldedBlock]] = {}  # one per task
    for path, block in transformer_blocks(live):
        folds[path] = fold_block(path, block, tasks, live.task_embedding.weight)
    convs = [live.conv_in.of(task.name) for task in tasks]  # type: ignore[operator]
    del live.task_embedding, live.conv_in
    specialised = {}
    for index, (task, conv) in enumerate(zip(tasks, convs, strict=True)):
        blocks = {path: by_task[index] for path, by_task in folds.items()}
        for path, folded in blocks.items():
            block: Any = live.get_submodule(path)
            block.norm3, block.ff = folded.norm, folded.ff
        channels = live.config["in_channels"] + task.channels
        specialised[task.name] = _stock_unet(live, conv, channels, blocks)
    return specialised


def _stock_unet(
    live: MTUUNet2DConditionModel, conv: nn.Module, channels: int, blocks: Mapping[str, FoldedBlock]
) -> Specialised:
    """A stock UNet with copies of the folded modules, sharing their tensors."""
    with torch.device("meta"):
        stock = UNet2DConditionModel.from_config(mtu_config.stock_config(live.config, channels))
    assert isinstance(stock, UNet2DConditionModel)
    deviations: list[str] = []
    for path, block in transformer_blocks(stock):
        inner, folded = block.ff.net[2].in_features, blocks[path]
        width = folded.ff.get_submodule("net.2").in_features
        if isinstance(folded.norm, nn.Sequential):
            deviations.append(f"{path}.norm3 is two stacked norms")
        if inner != width:
            deviations.append(f"{path}.ff has width {width}, a stock one {inner}")
    tensors = (*live.parameters(), *live.buffers())
    shared = {id(tensor): tensor for tensor in tensors}  # deepcopy's memo: these are not copied
    for name, child in live.named_children():
        setattr(stock, name, copy.deepcopy(child, shared.copy()))
    stock.conv_in = conv  # type: ignore[assignment]
    errors = {path: folded.error for path, folded in blocks.items()}
    return Specialised(module=stock.eval(), errors=errors, deviations=tuple(deviations))


def expert_weights(config: Mapping[str, Any], headers: Headers) -> dict[str, Tensor]:
    """w of Eq. 1 [T, N] in float64 by block; refuses weights that do not fit the config."""
    weights = {}
    for path, _ in transformer_blocks(meta_model(config, headers)):
        leaves = (f"{path}.ff.router.fc{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias"))
        names = ("task_embedding.weight", *leaves)
        e, w1, b1, w2, b2 = (checkpoint.tensor(headers, name).double() for name in names)
        weights[path] = ((e @ w1.T + b1).relu() @ w2.T + b2).softmax(-1)
    return weights


def outline(config: Mapping[str, Any], headers: Headers, channels: int) -> nn.Module:
    """The UNet that ``specialise`` makes for ``channels`` input channels, on the meta device."""
    stacked, widths = config.get("task_norm") == "stacked", _expert_widths(headers)
    with as_checkpoint_error(), torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(mtu_config.stock_config(config, channels))
        for path, block in cast(Any, transformer_blocks(unet)):
            dim, inner = dense_widths(path, block)
            inner = sum(widths.get(path, [inner]))
            block.ff = FeedForward(dim, inner_dim=inner, activation_fn="geglu")
            block.norm3 = nn.Sequential(block.norm3, nn.LayerNorm(dim)) if stacked else block.norm3
    return unet
