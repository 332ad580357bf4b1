"""``upcast_attention`` in a UNet's config: Core ML computes scores of attention in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export import exporter
from mtu_export.exporter import options

coremltools = pytest.importorskip("coremltools")


@pytest.mark.slow
@pytest.mark.parametrize("upcast", [True, False])
def test_scores_are_float32_where_the_config_says_so(
    make_tiny: Callable[..., Path], tmp_path: Path, upcast: bool
) -> None:
    from coremltools.proto import MIL_pb2

    shutil.copytree(make_tiny("atom", tasks=["t2i"]), tmp_path / "source")
    path = tmp_path / "source" / "unet" / "config.json"
    config = {**json.loads(path.read_text("utf-8")), "upcast_attention": upcast}
    path.write_text(json.dumps(config), "utf-8")
    bundle = exporter.export(
        options.resolve(
            target="coreml", model=tmp_path / "source", scheme="fp16", out=tmp_path / "bundle"
        )
    )
    assert all(verdict.passed for verdict in bundle.proof)
    spec = coremltools.utils.load_spec(str(next(bundle.folder.glob("*.mlpackage"))))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    types = {
        output.name: (operation, output.type.tensorType.dataType)
        for operation in block.operations
        for output in operation.outputs
    }
    softmaxes = [operation for operation, _ in types.values() if operation.type == "softmax"]
    assert len(softmaxes) == 2
    expected = MIL_pb2.FLOAT32 if upcast else MIL_pb2.FLOAT16
    for softmax in softmaxes:
        product, kind = types[softmax.inputs["x"].arguments[0].name]
        assert (product.type, kind) == ("matmul", expected)
        assert types[softmax.outputs[0].name][1] == expected
    manifest = (bundle.folder / "manifest.json").read_text("utf-8")
    assert ("upcast_attention: float32" in manifest) == upcast
