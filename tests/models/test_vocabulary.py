"""CLIP's vocabulary out of an installed open-clip-torch, against that package's own tokenizer."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtu_export.bundle import source_tokenizer
from mtu_export.models.sources import vocabulary
from mtu_export.spec import CheckpointError

TEXTS = (
    "",
    "a photo of an astronaut riding a horse on mars",
    "Masterpiece, (best quality:1.2), 8k UHD -- don't, we'll, 1girl's",
    "naïve café, ÆSIR, straße, ½ × 2³",
    "日本の浮世絵, Москва, שלום, 👩‍🚀🏳️‍🌈",
    "tabs\tand\nlines   and  spaces",
    "word " * 100,
)
OWN = """
import json, sys
from open_clip.tokenizer import SimpleTokenizer
tokenizer = SimpleTokenizer(clean="lower")
ids = [tokenizer([text])[0].tolist() for text in json.load(sys.stdin)]
print(json.dumps([tokenizer.sot_token_id, tokenizer.eot_token_id, ids]))
"""


@pytest.fixture
def packed() -> Path:
    path = vocabulary.installed()
    if path is None:
        pytest.skip("open-clip-torch is not installed: pip install 'mtu-export[ldm]'")
    return path


@pytest.mark.slow
def test_ids_are_those_of_open_clip(packed: Path) -> None:
    """open_clip pads with 0 and cuts to 77, here as there."""
    command = [sys.executable, "-c", OWN]
    told = subprocess.run(
        command, input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    start, end, expected = json.loads(told.stdout.splitlines()[-1])
    folder, keeper = vocabulary.tokenizer(packed, vocabulary.END)
    with keeper:
        tokenizer = source_tokenizer.read(folder)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.length) == (start, end, 77)
    for text, theirs in zip(TEXTS, expected, strict=True):
        ids = tokenizer.encode(text)[0].flatten().tolist()
        stop = theirs.index(end) + 1
        assert ids[:stop] == theirs[:stop], text
        assert set(ids[stop:]) <= {end}


def test_another_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.gz"
    path.write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(CheckpointError, match="is not CLIP's list of merges"):
        vocabulary.tokenizer(path, vocabulary.END)
    path.write_bytes(b"not packed")
    with pytest.raises(CheckpointError, match="cannot be read"):
        vocabulary.tokenizer(path, vocabulary.END)
