"""Every part of a pipeline on every target: it lowers, says what it is, and runs as in PyTorch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import checkpoint, targets
from mtu_export.bundle import source_tokenizer
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from mtu_export.graph import capture, quantize, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.models.pipeline import stock
from mtu_export.spec import Arrays, FloatWeights, IntWeights
from mtu_export.spec.catalog import SCHEMES

pytestmark = pytest.mark.slow

PROMPTS = ("a photo of a cat", "remove the red circle", "make it look like winter", "", "a " * 90)
SD, XL, TINY = "atom_pipeline", "pipeline_sdxl", "taesd_pipeline"
ONNX = [
    ("onnx", scheme, architecture, part, floor)
    for architecture, part in (
        (SD, "text_encoder"),
        (XL, "text_encoder"),
        (XL, "text_encoder_2"),
        (SD, "vae_encoder"),
        (SD, "vae_decoder"),
        (TINY, "vae_encoder"),
        (TINY, "vae_decoder"),
    )
    for scheme, floor in (("fp32", 90), ("fp16", 50), ("int8", 35))
    if not (part.startswith("vae") and scheme == "int8")
]
COREML = [
    ("coreml", "fp16", SD, "text_encoder", 60),
    ("coreml", "int8", SD, "text_encoder", 45),
    ("coreml", "int8", XL, "text_encoder_2", 40),
    ("coreml", "fp16", SD, "vae_encoder", 55),
    ("coreml", "fp32", XL, "vae_encoder", 90),
    ("coreml", "fp16", SD, "vae_decoder", 55),
    ("coreml", "fp32", XL, "vae_decoder", 90),
    ("coreml", "fp32", TINY, "vae_encoder", 90),
    ("coreml", "fp32", TINY, "vae_decoder", 90),
    ("coreml", "fp16", TINY, "vae_encoder", 50),
    ("coreml", "int8", TINY, "vae_decoder", 50),
]
EXECUTORCH = [
    ("executorch", "fp32", SD, "text_encoder", 90),
    ("executorch", "int8", SD, "text_encoder", 45),
    ("executorch", "fp32", XL, "text_encoder_2", 90),
    ("executorch", "int8", XL, "text_encoder_2", 40),
    ("executorch", "fp32", SD, "vae_encoder", 90),
    ("executorch", "fp32", SD, "vae_decoder", 90),
    ("executorch", "fp32", TINY, "vae_encoder", 90),
    ("executorch", "int8", TINY, "vae_decoder", 90),
]
CORNERS = {
    (name, architecture == TINY, part): scheme
    for name, scheme, architecture, part, _ in (*ONNX, *COREML, *EXECUTORCH)
}
"""The last scheme of a part on a target, of the tiny VAE apart."""
MATRIX = [
    pytest.param(
        *record,
        id="-".join(record[:4]),
        marks=()
        if CORNERS[record[0], record[2] == TINY, record[3]] == record[1]
        else pytest.mark.exhaustive,
    )
    for record in (*ONNX, *COREML, *EXECUTORCH)
]
PATHS = {
    "onnx": "{0}/model.onnx",
    "coreml": "{1}.mlpackage",
    "executorch": "{0}_xnnpack_{2}.pte",
}
CORE_ML = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "vae_encoder": "VAEEncoder",
    "vae_decoder": "VAEDecoder",
}
ONNX_OUTPUTS = {
    (SD, "text_encoder"): ["last_hidden_state"],
    (XL, "text_encoder"): ["hidden_states.0"],
    (XL, "text_encoder_2"): ["hidden_states.0", "text_embeds"],
    (SD, "vae_encoder"): ["latent_sample"],
    (SD, "vae_decoder"): ["sample"],
    (TINY, "vae_encoder"): ["latent_sample"],
    (TINY, "vae_decoder"): ["sample"],
}


def graph_of(folder: Path, part: str, size: tuple[int, int]) -> tuple[Graph, list[Arrays]]:
    """The graph of a part and four inputs that look like real ones."""
    random = np.random.default_rng(0)
    if part.startswith("vae"):
        make = stock.vae_encoder_graph if part == "vae_encoder" else stock.vae_decoder_graph
        graph = make(stock.load_vae(folder), *size)
        (spec,) = graph.inputs
        reach = 1 if part == "vae_encoder" else 4
        values = (random.uniform(-reach, reach, spec.shape).astype(np.float32) for _ in range(4))
        return graph, [{spec.name: value} for value in values]
    module: Any = stock.load_text_encoder(folder, part)
    xl = (folder / "text_encoder_2").is_dir()
    graph = stock.text_encoder_graph(
        module, module.config, penultimate=xl, pooled=part == "text_encoder_2"
    )
    loaded = source_tokenizer.read(folder / part.replace("text_encoder", "tokenizer"))
    return graph, [{"input_ids": loaded.encode(prompt)[0]} for prompt in PROMPTS]


@pytest.mark.parametrize(("name", "scheme", "architecture", "part", "floor"), MATRIX)
def test_a_part_lowers_reads_and_runs(
    name: str,
    scheme: str,
    architecture: str,
    part: str,
    floor: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder: Path = request.getfixturevalue(architecture)
    target = targets.load(name)
    whole = options.resolve(target=name, model=folder, task="t2i", scheme=scheme)
    part_scheme = whole.spec(part).scheme(whole.scheme, SCHEMES, gains=target.info.float16_gains)
    whole = replace(whole, scheme=part_scheme)
    graph, cases = graph_of(folder, part, (whole.height, whole.width))
    expected = capture.run(graph, cases)
    rewrite.apply(graph.module, target.info.rewrites)
    quantize.quantize([graph.module], part_scheme)
    quantised = [p for p, m in graph.module.named_modules() if hasattr(m, "codes")]
    assert bool(quantised) == isinstance(part_scheme.weights, IntWeights)
    program = capture.capture(part, {"t2i": graph})
    lowered = target.lower(program, whole, tmp_path, {"name": "parts"})

    path, entry = tmp_path / lowered.path, lowered.entries["t2i"]
    relative = PATHS[name].format(part, CORE_ML[part], part_scheme.name)
    assert (tmp_path / relative).exists()
    structure = target.structure(path, entry)
    for specs, there in ((graph.inputs, structure.inputs), (graph.outputs, structure.outputs)):
        named = [replace(s, name=lowered.io_names.get(s.name, s.name)) for s in specs]
        assert named == list(there)
    if name == "onnx":
        assert [spec.name for spec in structure.outputs] == ONNX_OUTPUTS[architecture, part]
        config = json.loads((path / "config.json").read_text())
        assert config["architectures" if "text" in part else "_class_name"]
        if architecture == TINY:
            assert config["block_out_channels"] == config["decoder_block_out_channels"]
            index = checkpoint.read_json(tmp_path / "model_index.json")
            assert index["vae"] == ["diffusers", "AutoencoderTiny"]
    if isinstance(part_scheme.weights, FloatWeights):
        assert lowered.activations in ("float32", part_scheme.weights.dtype)
    if name == "coreml":
        assert (lowered.activations == "float32") == (part_scheme.name == "fp32")
    if name == "executorch":
        assert lowered.activations == {"int8": "dynamic_int8"}.get(part_scheme.name, "float32")
        allowed = {"aten_embedding_default", "aten_native_layer_norm_default"}
        if part.startswith("vae"):
            allowed = {"aten_native_group_norm_default", "aten_upsample_nearest2d_vec"}
            allowed |= {"dim_order_ops__to_dim_order_copy_default"}
        if part != "text_encoder_2":  # its pooling adds a few operators on [1, 77]
            assert set(lowered.notes["outside"]) <= allowed
    session = targets.runtime(target).open(path, entry)
    for case, want in zip(cases, expected, strict=True):
        inputs = {lowered.io_names.get(key, key): value for key, value in case.items()}
        got = session(inputs)
        for key, value in want.items():
            assert psnr(value, got[lowered.io_names.get(key, key)]) > floor, key


def test_the_onnx_files_of_sdxl_say_what_optimum_reads(pipeline_sdxl: Path, tmp_path: Path) -> None:
    """One layer in the config, and the first encoder's states under two names."""
    import onnx

    whole = options.resolve(target="onnx", model=pipeline_sdxl, task="t2i")
    for part in ("text_encoder", "text_encoder_2"):
        graph, _ = graph_of(pipeline_sdxl, part, (128, 128))
        program = capture.capture(part, {"t2i": graph})
        targets.load("onnx").lower(program, whole, tmp_path, {})
        config = json.loads((tmp_path / part / "config.json").read_text())
        assert config["num_hidden_layers"] == 1
        there = onnx.load(tmp_path / part / "model.onnx").graph.output
        extra = "last_hidden_state" if part == "text_encoder" else "text_embeds"
        assert [output.name for output in there] == ["hidden_states.0", extra]
    index = checkpoint.read_json(tmp_path / "model_index.json")
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["force_zeros_for_empty_prompt"] is True
    assert index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]
