"""What others wrote and the console shows: as it was published, with its licence, and little of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.unit.cli_runner import PROJECT
from web.assets import FOLDER

VENDORED = (FOLDER / "vendor", PROJECT / "tests" / "browser" / "vendor")
FIRST_LOAD_BYTES_MAX = 300_000


@pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: folder.parent.name)
def test_what_was_vendored_is_unchanged_and_licensed(folder: Path) -> None:
    listed = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        hashed, name = line.split("  ")
        listed[name.removeprefix("./")] = hashed
    found = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "SHA256SUMS"
    }
    assert found == listed
    packages = [folder] if (folder / "LICENSE").exists() else [each for each in folder.iterdir() if each.is_dir()]
    assert packages
    assert all(list(package.glob("LICENSE*")) for package in packages)


def test_the_first_load_weighs_little() -> None:
    """Uncompressed, as the server sends it: everything that a page's head asks for."""
    head = (PROJECT / "web" / "templates" / "parts" / "head.html").read_text()
    asked = re.findall(r"asset\('([^']+)'\)", head)
    assert len(asked) >= 4
    weight = sum((FOLDER / name).stat().st_size for name in asked)
    assert weight < FIRST_LOAD_BYTES_MAX - 100_000  # what is left is for the page itself, and a plot


def test_no_template_has_anything_inline() -> None:
    """The policy would refuse it in the browser: a handler, a style or a script without an address."""
    for template in (PROJECT / "web" / "templates").rglob("*.html"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text), template
        assert not re.search(r"\sstyle=|<style|<[^>%]*\son[a-z]+=|javascript:|\|\s*safe\b", text), template
