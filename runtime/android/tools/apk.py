"""Assembles the sample as an APK without Gradle: a smoke test of manifest, resources and dex.

    python apk.py [-o FILE]

It needs Debian's `aapt`, `zipalign`, `apksigner`, `maven` and a JDK, and takes `dx` and Android's
signatures from Maven. The APK holds no native library and comes from `dx`, not D8, so it is no app
to install: it shows that manifest and resources link, that every class becomes dex, and which
permissions the app asks for. The services' type `mediaProcessing` is left out, as the resources at
hand are those of Android 14. Gradle makes the app: `gradle :sample:assembleRelease`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

ANDROID = Path(__file__).resolve().parent.parent
SAMPLE = ANDROID / "sample"
NAME = "io.mtuexport.sample"
MODULES = ("core", "onnx", "executorch", "android", "sample")
RESOURCES = ("org.robolectric", "android-all", "14-robolectric-10818077")
"""Android's own resources, the newest that Debian's aapt2 reads."""
NEWER = "|mediaProcessing"
"""What the manifest names that they do not know: a type of services since Android 15."""
DX = ("com.jakewharton.android.repackaged", "dalvik-dx", "16.0.1")
PACKAGES = {
    "aapt2": "aapt",
    "zipalign": "zipalign",
    "apksigner": "apksigner",
    "mvn": "maven",
    "java": "openjdk-17-jdk-headless",
    "keytool": "openjdk-17-jdk-headless",
}
"""Debian's package of each program."""
LEAST_SDK, TARGET_SDK = "26", "34"
SPACE = {"m": "http://maven.apache.org/POM/4.0.0"}


class ApkError(Exception):
    """One line: what is missing or failed."""


def run(*command: str | Path, cwd: Path = ANDROID) -> str:
    """Standard output of a program."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, check=False)  # noqa: S603
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line] or lines or ["no message"]
        raise ApkError(f"{Path(words[0]).name} failed: {errors[0][:400]}")
    return done.stdout


def artefact(group: str, name: str, version: str) -> Path:
    """A jar of Maven's local repository, fetched where it is not there."""
    folder = Path.home() / ".m2" / "repository" / group.replace(".", "/") / name / version
    jar = folder / f"{name}-{version}.jar"
    if not jar.is_file():
        coordinates = f"{group}:{name}:{version}"
        run("mvn", "-B", "-q", "dependency:get", f"-Dartifact={coordinates}", "-Dtransitive=false")
    return jar


def version(name: str) -> str:
    """A version of the parent pom."""
    project = ElementTree.parse(ANDROID / "pom.xml").getroot()  # noqa: S314  our own file
    return project.findtext(f"m:properties/m:{name}.version", "", SPACE)


def libraries() -> list[Path]:
    """What the app needs at run time beside our own modules, without natives."""
    return [
        artefact("org.jetbrains.kotlin", "kotlin-stdlib", version("kotlin")),
        artefact("org.jetbrains.kotlinx", "kotlinx-coroutines-core-jvm", version("coroutines")),
        artefact("com.microsoft.onnxruntime", "onnxruntime", version("onnxruntime")),
    ]


def classes(folder: Path) -> list[Path]:
    """Jars with nothing but classes for Java 8, of our modules and of libraries."""
    jars = []
    for source in [*(ANDROID / name / "target" / "classes" for name in MODULES), *libraries()]:
        jar = folder / f"{len(jars)}.jar"
        with zipfile.ZipFile(jar, "w") as archive:
            for name, data in files(source):
                is_module = name.startswith("META-INF/") or name == "module-info.class"
                if name.endswith(".class") and not is_module:
                    archive.writestr(name, data)
        jars.append(jar)
    return jars


def files(source: Path) -> list[tuple[str, bytes]]:
    """Files of a folder or a jar, by their names in it."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        return [(path.relative_to(source).as_posix(), path.read_bytes()) for path in paths]
    with zipfile.ZipFile(source) as archive:
        return [(name, archive.read(name)) for name in sorted(archive.namelist())]


def link(folder: Path) -> Path:
    """Manifest and resources as an APK without classes."""
    manifest = folder / "AndroidManifest.xml"
    text = (SAMPLE / "src/main/AndroidManifest.xml").read_text("utf-8")
    text = text.replace("<manifest ", f'<manifest package="{NAME}" ', 1).replace(NEWER, "")
    manifest.write_text(text, "utf-8")
    resources, output = folder / "resources.zip", folder / "linked.apk"
    run("aapt2", "compile", "--dir", SAMPLE / "src/main/res", "-o", resources)
    framework = artefact(*RESOURCES)
    run(
        *("aapt2", "link", "-o", output, "-I", framework, "--manifest", manifest),
        *("--min-sdk-version", LEAST_SDK, "--target-sdk-version", TARGET_SDK),
        *("--version-code", "1", "--version-name", version_name(), resources),
    )
    return output


def version_name() -> str:
    """The version of the modules."""
    project = ElementTree.parse(ANDROID / "pom.xml").getroot()  # noqa: S314  our own file
    return project.findtext("m:version", "", SPACE)


def sign(apk: Path, folder: Path) -> None:
    """Sign with a key that is made for it and thrown away."""
    store = folder / "key.jks"
    run(
        *("keytool", "-genkeypair", "-keystore", store, "-storepass", "smoke-test", "-alias", "a"),
        *("-keyalg", "RSA", "-keysize", "2048", "-validity", "1", "-dname", "CN=smoke test"),
    )
    run("apksigner", "sign", "--ks", store, "--ks-pass", "pass:smoke-test", apk)
    run("apksigner", "verify", "--min-sdk-version", LEAST_SDK, apk)


def assemble(output: Path) -> dict[str, object]:
    """Assemble the APK; returns what is in it."""
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            raise ApkError(f"{program} is missing; install it with: apt-get install {package}")
    run("mvn", "-B", "-q", "-pl", "sample", "-am", "compile")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked = link(folder)
        dex = folder / "classes.dex"
        run(
            *("java", "-Xmx1g", "-cp", artefact(*DX), "com.android.dx.command.Main", "--dex"),
            *(f"--min-sdk-version={LEAST_SDK}", f"--output={dex}", *classes(folder)),
        )
        with zipfile.ZipFile(linked, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.write(dex, "classes.dex")
        output.parent.mkdir(parents=True, exist_ok=True)
        run("zipalign", "-f", "4", linked, output)
        sign(output, folder)
        listing = run("aapt2", "dump", "badging", output)
        size = dex.stat().st_size
    permissions = sorted(re.findall(r"uses-permission: name='([^']+)'", listing))
    return {
        "apk": output.stat().st_size,
        "dex": size,
        "permissions": permissions,
        "launches": re.findall(r"launchable-activity: name='([^']+)'", listing),
    }


def main() -> int:
    """Assemble and print what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = ANDROID.parents[1] / "build" / "sample-smoke-test.apk"
    parser.add_argument("-o", "--output", type=Path, default=default)
    output: Path = parser.parse_args().output
    try:
        content = assemble(output.absolute())
    except ApkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    for key, value in content.items():
        print(f"{key}: {value}")
    print(f"{output}: a smoke test, no app to install")
    return 0


if __name__ == "__main__":
    sys.exit(main())
