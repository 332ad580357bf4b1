"""README and docs: short, complete, and without dead links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from mtu_export.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "runtime" / "README.md",
    *sorted((ROOT / "runtime").glob("*/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The names that a Markdown renderer gives to the headings of a page."""
    titles = HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


def test_the_page_of_commands_has_every_flag_and_no_other() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name in commands if f"`{name}`" not in page] == []
    options = [option for command in commands.values() for option in command.params]
    flags = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    flags = {flag for flag in flags if flag.startswith("--")} - {"--no-rescale"}
    assert set(re.findall(r"--[a-z][a-z0-9-]*", page)) - {"--help"} == flags
