"""Files of Debian 13 packages, by apt and without installing anything.

``python debian.py libonnxruntime-dev`` prints the folder that holds the package's files. The
package comes from the mirror that this machine's own apt sources name, is checked by apt against
Debian's keys, and lies unpacked under ``~/.cache/mtu-export/debian`` from then on.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SUITE = "trixie"
SOURCES = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class DebianError(Exception):
    """One line: what is missing or failed, and what to do."""


def cache_folder() -> Path:
    """``~/.cache/mtu-export``, or below ``XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtu-export"


def mirror(sources: Path = SOURCES) -> str:
    """The address of Debian's archive in this machine's apt sources."""
    files = [*sources.glob("sources.list.d/*.sources"), *sources.glob("sources.list.d/*.list")]
    for path in [sources / "sources.list", *sorted(files)]:
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        for line in lines:
            for address in re.findall(r"(?:https?|file|mirror\+file):\S+", line.split("#")[0]):
                if address.rstrip("/").endswith("/debian"):
                    return address
    raise DebianError(f"no source in {sources} is Debian's archive (its address ends with /debian)")


def _apt(state: Path, *words: str, cwd: Path) -> str:
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "debian.sources",
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Retries": 2,
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    command = ["apt-get", "-q", *options, *words]
    done = subprocess.run(  # noqa: S603
        command, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise DebianError(f"apt-get {words[0]} of Debian {SUITE} failed: {lines[0]}")
    return done.stdout


def package(
    name: str, architecture: str = "amd64", only: str = "", *, dependencies: bool = False
) -> Path:
    """The folder of a package's files, or of its file ``only``; downloaded the first time.

    With ``dependencies`` the folder holds the files of all that it depends on, too.
    """
    kind = f"{architecture}_closure" if dependencies else architecture
    folder = cache_folder() / "debian" / SUITE / f"{name}_{kind}"
    if folder.is_dir():
        return folder
    for tool, owner in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise DebianError(f"{tool} is missing (package {owner}); it fetches Debian's {name}")
    if not KEYRING.is_file():
        raise DebianError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        state = Path(scratch)
        (state / "debian.sources").write_text(
            f"Types: deb\nURIs: {mirror()}\nSuites: {SUITE}\nComponents: main\n"
            f"Architectures: {architecture}\nSigned-By: {KEYRING}\n",
            "utf-8",
        )
        _apt(state, "update", cwd=state)
        if dependencies:
            words = ("install", "--download-only", "--yes", "--no-install-recommends")
            _apt(state, *words, f"{name}:{architecture}", cwd=state)
        else:
            _apt(state, "download", f"{name}:{architecture}", cwd=state)
        for archive in (*state.glob("*.deb"), *state.glob("cache/archives/*.deb")):
            _unpack(archive, state / "files", only)
        try:
            (state / "files").rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    return folder


def _unpack(archive: Path, folder: Path, only: str) -> None:
    folder.mkdir(exist_ok=True)
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as files:  # noqa: S603
        assert files.stdout is not None
        with tarfile.open(fileobj=files.stdout, mode="r|") as members:
            for member in members:
                if not only or member.name.removeprefix("./") == only:
                    members.extract(member, folder, filter="data")
    if files.returncode or (only and not (folder / only).is_file()):
        raise DebianError(f"{archive.name} cannot be unpacked, or has no {only or 'files'}")
    (folder / "PACKAGE").write_text(archive.stem + "\n", "utf-8")


def main() -> int:
    """Print the folder of one package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("package")
    parser.add_argument("--architecture", default="amd64")
    arguments = parser.parse_args()
    try:
        print(package(arguments.package, arguments.architecture))
    except (DebianError, subprocess.SubprocessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
