"""The bench app in Swift, as `make ios` has built it over the stub of Core ML.

    python swift_app.py TOOLCHAIN ROOT PROGRAM DOCUMENTS

ROOT is Debian's folder with Swift, or - where this machine's own Swift built the program.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path


def main(toolchain, root, program, documents):
    specification = importlib.util.spec_from_file_location("mtu_swift_toolchain", toolchain)
    assert specification is not None
    assert specification.loader is not None
    tools = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tools
    specification.loader.exec_module(tools)
    folders = (tools.CHECKOUT, Path(documents))
    swift = tools.Swift(None if root == "-" else Path(root), folders)
    code = swift.run([program, documents], {"MTU_BENCH": os.environ["MTU_BENCH"]}).returncode
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):  # ended as it was
        os.kill(os.getpid(), signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
