"""Work that ``torch.onnx`` repeats, done once or not at all; the graphs are the same.

Read in PyTorch 2.13 and onnxscript 0.7.2; in another version a shortcut whose place is not found is
not taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mtu_export.spec.replacing import replaced


@contextmanager
def shortcuts() -> Iterator[None]:
    """Keep the table of translations, and try a rewrite rule only where its last operator is."""
    try:
        from onnxscript.rewriter import RewriteRule
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(replaced(ONNXRegistry, "from_torchlib", _kept))
        stack.enter_context(replaced(RewriteRule, "try_rewrite", _filtered))
        yield


@functools.cache
def _kept(build: Any) -> staticmethod[..., Any]:
    """``from_torchlib``, which compiles 2,000 functions, once for each opset.

    Only ``custom_translation_table`` changes a table, and we pass none.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    @functools.cache
    def made(**options: Any) -> Any:
        return build.__func__(ONNXRegistry, **options)

    return staticmethod(lambda *_, **options: made(**options))


def _filtered(try_rewrite: Any) -> Callable[..., Any]:
    """``try_rewrite``, which compares operators last, after it has set up a match."""

    def tried(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if options.get("tracer") is None and _operator(rule) not in (None, node.op_type):
            return None
        return try_rewrite(rule, model, graph, node, **options)

    return tried


@functools.lru_cache(maxsize=1024)
def _operator(rule: Any) -> str | None:
    """The operator that a node needs so that a rule can match from it, or None: any."""
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    if type(rule._matcher) is not SimplePatternMatcher:
        return None
    identifier = rule._target_pattern.output_nodes[0].op_identifier()
    return None if identifier is None else identifier[1]
