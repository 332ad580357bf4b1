"""Outputs on disk that appear whole or not at all: folders (``draft``) and files (``files``)."""

from mtu_export.storage.files import atomic_file

__all__ = ["atomic_file"]
