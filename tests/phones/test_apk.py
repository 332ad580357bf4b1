"""The sample as an APK without Gradle: its manifest and resources link, its classes become dex."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.phones import maven
from tests.support import tools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def apk() -> ModuleType:
    """The script."""
    return maven.script("tools/apk.py")


def test_the_sample_links_and_becomes_dex(apk: ModuleType, tmp_path: Path) -> None:
    for program, package in apk.PACKAGES.items():
        if shutil.which(program) is None:
            tools.missing(f"{program} is not installed (Debian: {package})")
    output = tmp_path / "sample.apk"
    content = apk.assemble(output)
    assert content["launches"] == ["io.mtuexport.sample.BundlesActivity"]
    assert content["permissions"] == [
        "android.permission.FOREGROUND_SERVICE",
        "android.permission.FOREGROUND_SERVICE_DATA_SYNC",
        "android.permission.FOREGROUND_SERVICE_MEDIA_PROCESSING",
        "android.permission.POST_NOTIFICATIONS",
    ]
    with zipfile.ZipFile(output) as archive:
        names = set(archive.namelist())
        dex = archive.read("classes.dex")
    assert {"AndroidManifest.xml", "resources.arsc", "classes.dex"} <= names
    assert dex[:4] == b"dex\n"
    for name in ("BundlesActivity", "RequestActivity", "BenchActivity", "WorkService"):
        assert f"Lio/mtuexport/sample/{name};".encode() in dex


def test_what_is_missing_is_one_line(
    apk: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(apk.ApkError, match=r"^aapt2 is missing; install it with: apt-get"):
        apk.assemble(tmp_path / "sample.apk")
