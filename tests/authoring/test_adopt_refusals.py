"""What `adopt` refuses: maps that are none, and sources that do not fit, each by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtu_export.authoring.adopt import adopt, mapping
from mtu_export.spec import CheckpointError, PlanError
from mtu_export.testing.campaigns.mutations.values import ODD
from tests.support.foreign import BLOCK, FF, ZERO, example, put, stacked_state


@given(st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=4), st.text("ab."))
def test_a_match_gives_the_name_back(literals: list[str], text: str) -> None:
    holes = ["{x...}", "{y}", "{z:a|b.|}"]
    rule = "".join(a + b for a, b in zip(literals, holes, strict=False)) + "".join(literals[3:])
    parsed = mapping.pattern(rule)
    held = parsed.match(text)
    if held is not None:
        pieces = [t if isinstance(t, str) else held[t.name] for t in parsed.tokens]
        assert "".join(pieces) == text
    filled = parsed.match(
        "".join(t if isinstance(t, str) else "b."[: 1 + t.rest] for t in parsed.tokens)
    )
    assert filled is not None or "z" in parsed.names


def test_no_pattern_takes_long() -> None:
    rule = "".join(f"{{h{i}...}}a" for i in range(8)) + "b"
    assert mapping.pattern(rule).match("a" * 399 + "b") is not None
    assert mapping.pattern(rule).match("a" * 399 + "cb") is None
    assert mapping.pattern("{x...}").match("a" * 401) is None


# ------------------------------------------------------------------------------- a map's mistakes

RULE: dict[str, Any] = {"from": "{a...}.w", "to": "{a}"}
JOIN = {"axis": 0, "by": "a"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be an object, got"),
        ({}, "key 'rules' is missing"),
        ({"rules": []}, "rules: must have at least 1 item"),
        ({"rules": [RULE] * 513}, "rules: must have at most 512 items"),
        ({"rules": [RULE], "rename": 1}, "unknown key 'rename'; legal: config, values, rules"),
        ({"rules": [{**RULE, "swap": 0}]}, r"rules\[0\]: unknown key 'swap'; legal: from, to"),
        ({"rules": [{"from": "a"}]}, r"rules\[0\]: key 'to' is missing"),
        ({"rules": [{**RULE, "from": 3}]}, r"rules\[0\].from: must be a string of 1 to 400"),
        ({"rules": [{**RULE, "from": "a" * 401}]}, "a string of 1 to 400 characters"),
        ({"rules": [{**RULE, "from": "{a}{b}.w"}]}, "where the first of two holes ends"),
        ({"rules": [{**RULE, "from": "{a}.{a}"}]}, "two holes of one name"),
        ({"rules": [{**RULE, "from": "{a.w"}]}, "a brace without its other half"),
        ({"rules": [{**RULE, "from": "".join(f".{{h{i}}}" for i in range(9))}]}, "more than 8"),
        ({"rules": [{**RULE, "to": "{a.__class__}"}]}, "'a.__class__' names no hole"),
        ({"rules": [{**RULE, "to": "{a!r:9}"}]}, "names no hole"),
        ({"rules": [{**RULE, "to": "{b}"}]}, "nothing is called 'b'; legal: a"),
        ({"rules": [{**RULE, "transpose": [0, 2]}]}, "must name every axis once"),
        ({"rules": [{**RULE, "transpose": [True]}]}, "an integer from 0 to 7, got True"),
        ({"rules": [{**RULE, "swap_halves": -1}]}, "an integer from 0 to 7, got -1"),
        ({"rules": [{**RULE, "split": {"axis": 0, "as": "i"}}]}, r"lacks \{i\} of the split"),
        ({"rules": [{**RULE, "split": {"axis": 0, "as": "a"}}]}, "already a hole"),
        ({"rules": [{**RULE, "split": {"axis": 0}}]}, "split: key 'as' is missing"),
        (
            {"rules": [{**RULE, "split": {"axis": 0, "as": "i", "parts": 2, "sizes": [1]}}]},
            "parts or sizes, not both",
        ),
        ({"rules": [{**RULE, "stack": {"axis": 0, "by": "b"}}]}, "'b' is not a hole of"),
        ({"rules": [{**RULE, "stack": {"axis": 0, "by": "a"}}]}, "nothing is called 'a'"),
        (
            {"rules": [{**RULE, "stack": JOIN, "concat": JOIN}]},
            "stack or concat, not both",
        ),
        ({"rules": [{**RULE, "stack": {}}]}, "stack: key 'axis' is missing"),
        (
            {"rules": [{**RULE, "concat": {"axis": 0, "by": "a", "order": ["x", "x"]}}]},
            "order: must name each value once",
        ),
        ({"rules": [RULE], "values": {"a": ["x/y"]}}, "values.a: must be .* letters.*, got 'x/y'"),
        (
            {"rules": [RULE], "values": {"a b": ["x"]}},
            "must be a hole's name: letters.*, got 'a b'",
        ),
        ({"rules": [RULE], "drop": [1]}, r"drop\[0\]: must be a string"),
        ({"rules": [RULE], "fill": [{"to": "x", "value": 2}]}, "an integer from 0 to 1, got 2"),
    ],
)
def test_a_wrong_map_is_refused(document: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        mapping.parse(document)


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, list) else items:
        yield from places(value, (*place, key))


@pytest.mark.parametrize("place", list(places(example()))[1:], ids=str)
def test_an_odd_value_anywhere_is_legal_or_one_printable_line(place: tuple[Any, ...]) -> None:
    for value in ODD:
        document = node = copy.deepcopy(example())
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        try:
            mapping.parse(document)
        except PlanError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"rules": NaN}', "NaN is not a finite double"),
        ('{"rules": [], "rules": []}', "key 'rules' appears twice"),
        ("[" * 100_000, "cannot be read as JSON"),
        (None, "no map file"),
    ],
)
def test_a_file_that_is_no_map_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "map.json").write_text(text)
    with pytest.raises(PlanError, match=message):
        mapping.read(tmp_path / "map.json")
    with pytest.raises(PlanError):
        mapping.read(tmp_path)


# ------------------------------------------------------------- what fits no checkpoint of format 1


def refusal(folder: Path, state: Mapping[str, Tensor], document: dict[str, Any]) -> str:
    """The line with which a source is refused; nothing of it is left."""
    weights, table = put(folder, state, document)
    with pytest.raises(CheckpointError) as caught:
        adopt(weights, folder / "out", table)
    assert sorted(p.name for p in folder.iterdir()) == ["map.json", "w.safetensors"]
    (line,) = str(caught.value).splitlines()
    return line


W1 = next(rule for rule in example()["rules"] if rule["from"].endswith(".ff.w1"))
NORM = "unet.{b...}.ff.expert_norm.{leaf}"
REFUSED: dict[str, tuple[dict[str, Tensor | None], dict[str, Any], str]] = {
    "leftover": ({"vae.w": ZERO}, {}, "no rule takes 'vae.w'"),
    "unknown": ({"unet.extra.w": ZERO}, {}, "not in format 1: 'extra.w (from unet.extra.w)'"),
    "missing": ({f"{FF}.b2": None}, {}, f"nothing makes '{BLOCK}.ff.experts.0.out.bias'"),
    "twice": (
        {"unet.task_embedding.weight": torch.zeros(3, 24)},
        {},
        "'task_embedding.weight': made more than once: by",
    ),
    "idle rule": ({}, {"rules": [{"from": "x.{a}", "to": "{a}"}]}, "rules[0] takes no tensor: 'x."),
    "idle drop": (
        {},
        {"drop": ["ema_steps", "opt.{a...}"]},
        "drop[1] takes no tensor: 'opt.{a...}",
    ),
    "idle fill": ({}, {"fill": [{"to": "x", "value": 0}]}, "fill[0] fills nothing: 'x'"),
    "integers": (
        {},
        {"drop": [], "rules": [{"from": "ema_steps", "to": "x"}]},
        "dtype I64 is not",
    ),
    "shape": (
        {"unet.conv_out.bias": torch.zeros(5)},
        {},
        "'conv_out.bias' has shape [5], needs [4] (from 'unet.conv_out.bias')",
    ),
    "transposed": (
        {},
        {"rules": [{k: v for k, v in W1.items() if k != "transpose"}]},
        "are not an expert: format 1 has [2·hs, d] and [d, hs]",
    ),
    "three layers": (
        {f"{FF}.gate.4.weight": torch.zeros(4, 4), f"{FF}.gate.4.bias": torch.zeros(4)},
        {},
        "router depth: format 1's router has exactly two layers, fc1 and fc2; "
        f"'{FF}.gate.4.bias', '{FF}.gate.4.weight' would be left out of one",
    ),
    "a layer dropped": (
        {f"{FF}.gate.4.bias": torch.zeros(4)},
        {"drop": ["ema_steps", "{b...}.gate.4.bias"]},
        "router depth: format 1's router has exactly two layers",
    ),
    "fc3": (
        {f"{FF}.gate.4.bias": torch.zeros(4)},
        {"values": {**example()["values"], "layer": {"0": "fc1", "2": "fc2", "4": "fc3"}}},
        f"fc1 and fc2; not '{BLOCK}.ff.router.fc3.bias (from {FF}.gate.4.bias)'",
    ),
    "one layer": (
        {f"{FF}.gate.2.weight": None, f"{FF}.gate.2.bias": None},
        {},
        f"exactly two layers, fc1 and fc2; {BLOCK}.ff.router.fc2 is missing",
    ),
    "router input": (
        {f"{FF}.gate.0.weight": torch.zeros(20, 77)},
        {},
        "looks at the task embedding alone, task_embedding_dim 24",
    ),
    "expert norms left": (
        {f"{FF}.experts.0.norm.weight": ZERO},
        {"rules": [{"from": "unet.conv_out.{a}", "to": "conv_out.{a}"}]},
        "norms per expert do not exist in format 1",
    ),
    "expert norms mapped": (
        {f"{FF}.expert_norm.weight": torch.ones(4, 64)},
        {
            "rules": [
                {
                    "from": NORM,
                    "to": "{b}.ff.experts.{i}.ln.{leaf}",
                    "split": {"axis": 0, "as": "i"},
                }
            ]
        },
        "norms per expert do not exist in format 1",
    ),
    "a shared norm": (
        {f"unet.{BLOCK}.norm3.weight": ZERO},
        {},
        f"only task_norm 'stacked' has a shared norm3, as '{BLOCK}.norm3.weight'",
    ),
    "no shared norm": (
        {},
        {"config": {"task_norm": "stacked"}},
        "norm placement: task_norm 'stacked' needs the shared 'down_blocks.0",
    ),
    "values": (
        {"unet.conv_in.7.weight": ZERO},
        {},
        "rules[1] does not fit 'unet.conv_in.7.weight': values.task has no '7'; it has: 0, 1, 2",
    ),
    "stack lacks": ({"task_embed.edit": None}, {}, "stack by 'name' lacks 'edit'"),
    "stack has more": (
        {"task_embed.draw": torch.zeros(24)},
        {},
        "stack by 'name' needs an 'order'",
    ),
    "stack shapes": ({"task_embed.edit": torch.zeros(9)}, {}, "cannot stack on axis 0: [[24], [9]"),
    "stack dtypes": (
        {"task_embed.edit": torch.zeros(24).half()},
        {},
        "joined from tensors of several dtypes: F16, F32",
    ),
    "halves": (
        {f"{FF}.b1": torch.zeros(4, 127)},
        {},
        "axis 0 of [127] has no halves",
    ),
    "parts": (
        {},
        {
            "rules": [
                {
                    "from": "unet.conv_out.bias",
                    "to": "x.{i}",
                    "split": {"axis": 0, "as": "i", "parts": 3},
                }
            ]
        },
        "axis 0 of [4] has no 3 equal parts",
    ),
    "sizes": (
        {},
        {
            "rules": [
                {
                    "from": "unet.conv_out.bias",
                    "to": "x.{i}",
                    "split": {"axis": 0, "as": "i", "sizes": [1, 2]},
                }
            ]
        },
        "sizes [1, 2] do not add up to axis 0 of [4]",
    ),
    "axes": (
        {},
        {"rules": [{"from": "unet.conv_out.bias", "to": "x", "transpose": [1, 0]}]},
        "transpose names 2 axes, shape is [4]",
    ),
    "no axis": (
        {},
        {"rules": [{"from": "unet.conv_out.bias", "to": "x", "swap_halves": 2}]},
        "shape [4] has no axis 2",
    ),
    "experts": ({}, {"config": {"num_experts": 5}}, "experts.4.proj.weight'"),
    "NaN": (
        {"unet.conv_out.bias": torch.tensor([0, 0, float("nan"), 0])},
        {},
        "tensor 'conv_out.bias' (from 'unet.conv_out.bias') holds NaN or Inf",
    ),
    "Inf": (
        {f"{FF}.w2": torch.full((4, 64, 64), float("inf"), dtype=torch.float16)},
        {},
        f"experts.0.out.weight' (from '{FF}.w2') holds NaN or Inf",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, changes, message = REFUSED[case]
    state = {**stacked_state(), **{k: v for k, v in tensors.items() if v is not None}}
    state = {k: v for k, v in state.items() if k not in tensors or tensors[k] is not None}
    assert message in refusal(tmp_path, state, example(**changes))


def test_a_block_that_the_config_lacks_is_no_router_of_another_depth(tmp_path: Path) -> None:
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    line = refusal(tmp_path, dict(stacked_state()), example(config=blocks))
    assert "router depth" not in line
    assert "not in format 1: " in line
    assert "down_blocks.0.attentions.0" in line
