"""Work that lowering does and no file needs, left out while a program is lowered.

Read in PyTorch 2.13 and ExecuTorch 1.5.1. The files are the same byte for byte; in another version
a shortcut whose place is not found is not taken.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mtu_export.spec.replacing import replaced

_PASSES_READ_IN = "1.5.1"
PASSES = {
    "Conv1dUnsqueezePass": ("convolution",),
    "ConvertToLinearPass": ("mm",),
    "ConvertToSDPAPass": ("softmax",),
    "ConvertToUpsampleBilinear2d": ("index", "upsample"),
    "DecomposeBatchNorm": ("batch_norm",),
    "DecomposeConcatenate": ("cat",),
    "FuseActivationPass": ("relu", "hardtanh"),
    "FuseBatchNormPass": ("batch_norm",),
    "InsertPadQDQPass": ("constant_pad_nd",),
    "PReLUReshapePass": ("prelu",),
    "PropagateCustomMetaPass": ("quantize",),
    "RemoveGetItemPass": ("max",),
    "RemoveRedundantCopyPass": ("_to_copy",),
}
"""Parts of operator names without which a pass of XNNPACK changes nothing but traces again."""


@contextmanager
def shortcuts() -> Iterator[None]:
    """Take all of them; also within one another."""
    from torch.fx import GraphModule

    with ExitStack() as stack:
        for each in (_shared_history(), _lazy_code(GraphModule), _needed_passes()):
            stack.enter_context(each)
        for printer in ("__str__", "print_readable"):  # called at each pass for a log that is off
            stack.enter_context(replaced(GraphModule, printer, lambda _: _no_listing))
        yield


def _no_listing(self: Any, *_args: Any, **_options: Any) -> str:
    return ""


@contextmanager
def _shared_history() -> Iterator[None]:
    """Let the nodes of a graph share their history of passes instead of copying it.

    Each pass gives every node a deep copy of its predecessor's history with one more entry, so time
    grows with the square of the number of passes: 20 over the graph, then 17 over each delegate.
    Entries never change once they are made.
    """
    from torch.fx.traceback import NodeSource

    def share(self: NodeSource, memo: dict[int, Any]) -> NodeSource:
        return self

    if hasattr(NodeSource, "__deepcopy__"):  # a later PyTorch defines it, or an outer call
        yield
        return
    NodeSource.__deepcopy__ = share  # pyright: ignore
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # pyright: ignore


@contextmanager
def _lazy_code(graph_module: Any) -> Iterator[None]:
    """Write and compile the Python code of a graph when it is called or shown, not at each change.

    Every pass compiles its graph up to five times; passes and tracers interpret graphs, and call
    few. PyTorch has the same for its own compiler, ``torch.fx._lazy_graph_module``.
    """
    from torch.fx.graph import _PyTreeCodeGen

    compiled: Any = vars(graph_module)["recompile"]
    if getattr(compiled, "is_lazy", False):
        yield
        return

    def compile_now(module: Any) -> None:
        if getattr(type(module).forward, "is_deferred", False):
            compiled(module)

    def recompile(module: Any) -> None:
        codegen = module._graph._codegen
        if isinstance(codegen, _PyTreeCodeGen):
            module._in_spec = codegen.pytree_info.in_spec
            module._out_spec = codegen.pytree_info.out_spec

        def forward(self: Any, *arguments: Any, **named: Any) -> Any:
            compile_now(self)
            return type(self).forward(self, *arguments, **named)

        forward.is_deferred = True  # pyright: ignore
        type(module).forward = forward

    recompile.is_lazy = True  # pyright: ignore

    def code(module: Any) -> str:
        compile_now(module)
        return module._code

    with (
        replaced(graph_module, "recompile", lambda _: recompile),
        replaced(graph_module, "code", lambda _: property(code)),
    ):
        yield


@contextmanager
def _needed_passes() -> Iterator[None]:
    """Run on a delegate those of XNNPACK's passes that find an operator they look for."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    if importlib.metadata.version("executorch") != _PASSES_READ_IN:
        yield
        return

    def needed(manager: Any) -> type:
        class NeededPasses(manager):
            def transform(self) -> Any:
                passes = self.passes
                for each in passes:
                    if finds_operators(each.__name__, self.exported_program.graph):
                        self.passes = [each]
                        self._exported_program = super().transform()
                self.passes = passes
                return self.exported_program

        return NeededPasses

    with replaced(xnnpack_preprocess, "XNNPACKPassManager", needed):
        yield


def finds_operators(name: str, graph: Any) -> bool:
    """Whether a graph has an operator that the pass of this name looks for."""
    parts = PASSES.get(name)
    if parts is None:
        return True
    targets = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    return any(part in target for part in parts for target in targets)
