"""Added tokens that stand for several, against diffusers' own expansion of a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

from mtu_export.bundle import source_tokenizer, tokenizer
from mtu_export.testing import vocabulary

TOKENS = ("<cat>", "<cat>_1", "<cat>_2", "<dog>", "hat", "hat_1")


@pytest.fixture(scope="module")
def inverted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPTokenizer]:
    """A tokenizer with a token of three vectors, one of one, and a word of two."""
    folder = tmp_path_factory.mktemp("inverted")
    vocabulary.write(folder / "stock", start=862, end=863)
    reference = CLIPTokenizer.from_pretrained(folder / "stock")
    reference.add_tokens(list(TOKENS))
    reference.save_pretrained(folder / "source")
    source_tokenizer.export(folder / "source", folder / "bundle")
    return folder / "bundle", reference


@pytest.mark.parametrize(
    "prompt",
    ["a <cat> sits", "<cat>", "a <dog> and a <cat>, a hat", "no token", "<cat> " * 40 + "end"],
)
def test_a_name_stands_for_its_vectors(prompt: str, inverted: tuple[Path, CLIPTokenizer]) -> None:
    folder, reference = inverted
    converted = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, reference)  # type: ignore[arg-type]
    assert isinstance(converted, str)
    expected = reference(
        converted, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    )
    ids, _ = tokenizer.load(folder).encode(prompt)
    assert ids.tolist() == expected.input_ids.tolist()


def test_what_is_cut_begins_with_the_name_that_does_not_fit(
    inverted: tuple[Path, CLIPTokenizer],
) -> None:
    folder, _ = inverted
    _, cut = tokenizer.load(folder).encode("<dog> " * 74 + "<cat> end")
    assert cut == "<cat> end"
