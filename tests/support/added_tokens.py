"""CLIP tokenizers with tokens that were added in training, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken
from transformers import CLIPTokenizer

from mtu_export.bundle import tokenizer
from mtu_export.testing import vocabulary


def write_added(folder: Path, layout: str) -> None:
    """A tokenizer with a start, an end and four added tokens, as a version of transformers has it.

    "5": as this one saves; "4": with ``added_tokens_decoder``, and "4 fast" ``tokenizer.json`` too;
    "3": as in the first Stable Diffusion repositories.
    """
    vocabulary.write(folder, start=862, end=863)
    reference = CLIPTokenizer.from_pretrained(folder)
    reference.add_tokens(["<cat-toy>", AddedToken("Wow", single_word=True, lstrip=True)])
    reference.add_special_tokens({"additional_special_tokens": ["<sks>"]})
    reference.add_tokens([AddedToken("red", normalized=False, rstrip=True)])
    tokens = reference.added_tokens_decoder.items()
    if layout in ("5", "4 fast"):
        reference.save_pretrained(folder / "5")
        for path in (folder / "5").iterdir():
            path.rename(folder / path.name)
        (folder / "5").rmdir()
    if layout == "5":
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
            (folder / name).unlink()
        return
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    added = {added_token.content: number for number, added_token in tokens if number > 863}
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    if layout.startswith("4"):
        names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        config["added_tokens_decoder"] = {
            str(number): {name: getattr(added_token, name) for name in names}
            for number, added_token in tokens
        }
        config["additional_special_tokens"] = ["<sks>"]
    else:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        start, end = ({"content": token, **flags} for token in (tokenizer.START, tokenizer.END))
        special = {"bos_token": start, "eos_token": end, "pad_token": tokenizer.END}
        special |= {"unk_token": end, "additional_special_tokens": ["<sks>"]}
        (folder / "special_tokens_map.json").write_text(json.dumps(special), "utf-8")
        config["bos_token"] = {"__type": "AddedToken", **start}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
