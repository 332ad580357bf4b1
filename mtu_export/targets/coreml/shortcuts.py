"""A check that coremltools repeats after each of its hundred passes; the packages are the same.

Read in coremltools 9.0; in another version a shortcut whose place is not found is not taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtu_export.spec.replacing import replaced


@contextmanager
def shortcuts() -> Iterator[None]:
    """Validate programs after the frontend, after dead code is removed, and when they are written.

    coremltools checks scopes in these places, with everything else.
    """
    from coremltools.converters.mil.mil import Program

    with replaced(Program, "validate", _with_scopes_alone):
        yield


def _with_scopes_alone(validate: Any) -> Any:
    def validate_or_skip(program: Any, check_essential_scope: bool | None = False) -> None:
        if check_essential_scope:
            validate(program, check_essential_scope=True)

    return validate_or_skip
