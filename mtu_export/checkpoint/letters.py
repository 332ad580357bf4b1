"""CLIP's letters: a printable one for every byte, of which its vocabularies are made."""

from __future__ import annotations


def bytes_as_letters() -> dict[int, str]:
    """A printable letter for every byte, in the order of CLIP's first 256 ids: "!" is 0.

    Bytes that print as themselves come first; the rest are letters from code point 256 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(rest)}
