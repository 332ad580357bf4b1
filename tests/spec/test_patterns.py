"""Regular expressions of others: linear time, and the meaning that PEFT gives them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from mtu_export.graph import quantize
from mtu_export.models import lora
from mtu_export.models.lora import peft
from mtu_export.spec import CheckpointError, KeepFloat
from mtu_export.spec.catalog import SCHEMES
from mtu_export.spec.patterns import compile_pattern

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
EXPONENTIAL = ("(.|.)*x", "(.*)*x", "(a+b?)+c", "(.|.)*(.|.)*x", "((.|o)*)*x", "(a|b|.)*(.?)*x")


def _config(**patterns: dict[str, float]) -> peft.Config:
    fields = {"r": 4, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, **patterns}
    return peft._parse_config(fields, "file")


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Fail after so many seconds, also inside of a regular expression."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("key", EXPONENTIAL)
def test_an_exponential_pattern_of_a_lora_takes_no_time(key: str) -> None:
    with deadline(10):
        assert _config(rank_pattern={key: 3}).factor(LAYER, 4, "here") == 2


@pytest.mark.parametrize("key", EXPONENTIAL)
def test_an_exponential_pattern_of_keep_float_takes_no_time(key: str) -> None:
    module = torch.nn.Module()
    module.add_module("a" * 60, torch.nn.Linear(2, 2))
    scheme = replace(SCHEMES["int8"], overrides=(KeepFloat(pattern=key, why="asked for"),))
    with deadline(10):
        assert quantize.layers(module, scheme) == (["a" * 60], [])


KEYS = [
    "to_q",
    "attn1.to_q",
    r"attn1\.to_q",
    "^down_blocks.*to_q",
    "^to_q",
    "o_q",
    ".o_q",
    r"\.to_q",
    ".*to_q",
    "to_q|to_k",
    "a)|(down",
    "(to_q",
    "(q)|to_(q)",
    r"blocks\.\d+\.attn1\.to_q",
    r"transformer_blocks.[0-9]{1,2}.attn\d.to_[qkv]",
    "[^a-z]to_q",
    "(?i:TO_Q)",
    "to_q$",
    r"to_q\b",
    r"\bto_q",
    "to_",
    "to_q.*",
    LAYER,
    LAYER.replace(".", r"\."),
    "x" + LAYER,
    "(?P<layer>to_q)",
    "(?:attn1|attn2).to_(?:q|k)",
    "to_.{1}",
    "to_q{1}",
    "to_q??",
    "é",
]
NAMES = [LAYER, "to_q", "conv_in", "mid_block.attentions.0.proj_in", "proto_q", "x.to_k", "é", ""]


@pytest.mark.parametrize("key", KEYS)
def test_keys_match_as_in_peft(key: str) -> None:
    try:
        expected = {name for name in NAMES if name != key and get_pattern_key([key], name) == key}
    except re.error:
        with pytest.raises(CheckpointError):
            _config(rank_pattern={key: 3})
        return
    ((pattern, _),) = _config(rank_pattern={key: 3}).ranks
    assert {name for name in NAMES if name != key and pattern.match(name)} == expected
    assert key not in NAMES or pattern.match(key)


def test_the_first_key_that_matches_counts_as_in_peft() -> None:
    keys = {"conv": 2.0, "to_.": 3.0, "to_q": 5.0}
    assert get_pattern_key(list(keys), LAYER) == "to_."
    assert _config(alpha_pattern=keys).factor(LAYER, 4, "here") == 3 / 4


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("(?=a)a", "invalid perl operator"),
        (r"(a)\1", "invalid escape"),
        ("(?<!a)b", "invalid"),
        ("(", "missing )"),
        ("a{2000}", "invalid repetition size"),
        (".{1000}", "too large"),
        ("(((a{30}){30}){30})", "invalid repetition size"),
        ("x{,3}", "different meanings"),
        ("[[:alpha:]]", "different meanings"),
        ("x" * 301, "1 to 300 characters"),
        ("", "1 to 300 characters"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_cannot_be_linear_is_one_line(key: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        compile_pattern(key)
    with pytest.raises(CheckpointError) as refused:
        _config(rank_pattern={key: 3})
    assert "\n" not in str(refused.value)
    assert "rank_pattern" in str(refused.value)


def test_many_patterns_are_bounded_in_time_and_memory() -> None:
    hostile = {f"(a|b)*a(a|b|.){{{n % 20 + 20}}}{n}": 1.0 for n in range(4096)}
    with pytest.raises(CheckpointError, match="rank_pattern has too many"):
        _config(rank_pattern=hostile)
    plain = {f"{LAYER.replace('.0.', f'.{n}.')}": 4.0 for n in range(2500)}
    with deadline(30):
        assert _config(rank_pattern=plain).factor("conv_in", 4, "here") == 2


def test_a_file_with_such_a_pattern_is_read_at_once(tmp_path: Path) -> None:
    metadata = {
        peft.KEY: json.dumps({"r": 1, "lora_alpha": 1, "rank_pattern": {"unet.(.|.)*x": 4}})
    }
    tensors = {
        f"unet.{LAYER}.lora_A.weight": torch.ones(1, 2),
        f"unet.{LAYER}.lora_B.weight": torch.ones(2, 1),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with deadline(30):
        (layer,) = lora.read(tmp_path / "a.safetensors").layers
    assert layer.name == LAYER


def test_a_layer_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    name = "unet.\\ud800.lora_A.weight"
    header = f'{{"{name}": {{"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(CheckpointError):
        lora.read(path)
    config = _config(rank_pattern={"to_q": 3})
    with pytest.raises(CheckpointError, match="is not text"):
        config.factor("\ud800", 4, "here")


def test_keep_float_refuses_nothing_that_matches() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    scheme = SCHEMES["int8"]
    override = KeepFloat(pattern="[1-9]", why="asked for", required=True)
    taken, kept = quantize.layers(module, replace(scheme, overrides=(override,)))
    assert taken == ["0"]
    assert kept == [("1", "asked for")]
