"""How results look: tables for people, JSON for scripts, and nothing that a hostile name could do to a terminal.

The rule: every text that somebody else chose (names of machines, disks, files, errors with such names) goes through
`safe` before it reaches a terminal; JSON is pure ASCII. Results go to standard output, everything else to standard
error. Sizes in JSON are bytes, moments ISO 8601 in UTC with a Z.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import click

from appliance.amounts import duration as duration
from appliance.amounts import size as size
from appliance.clock import format_utc

_NEVER = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, format (bidi), surrogates, separators
_PLAIN_WIDTH = 100_000


def safe(text: str) -> str:
    """The text with every character that could steer a terminal, or hide, written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) in _NEVER:
        return character.encode("unicode_escape").decode("ascii")
    return character


def safe_lines(text: str) -> str:
    """As `safe`, for texts of several lines."""
    return "\n".join(safe(line) for line in text.split("\n"))


def say(text: str = "") -> None:
    """A line of the result."""
    click.echo(safe_lines(text))


def tell(text: str) -> None:
    """A line about what goes on: standard error."""
    click.echo(safe_lines(text), err=True)


def warn(text: str) -> None:
    tell(f"warning: {text}")


def emit_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, default=_json_value))


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return format_utc(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON output")


def moment(value: datetime | None) -> str:
    return "-" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def table(
    headings: Sequence[str], lines: Iterable[Sequence[object]], *, right: Iterable[str] = (), empty: str = ""
) -> None:
    """Columns; those named in `right` are set to the right. `empty` is said instead of a table without lines."""
    cells = [["-" if cell is None or cell == "" else safe(str(cell)) for cell in line] for line in lines]
    if not cells:
        if empty:
            tell(empty)
        return
    numeric = set(right)
    if is_terminal(sys.stdout):
        _rich_table(headings, cells, numeric)
        return
    widths = [max(len(heading), *(len(line[i]) for line in cells)) for i, heading in enumerate(headings)]
    for line in [[heading.upper() for heading in headings], *cells]:
        padded = (
            cell.rjust(width) if heading in numeric else cell.ljust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def _rich_table(headings: Sequence[str], cells: list[list[str]], numeric: set[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading.upper(), justify="right" if heading in numeric else "left", overflow="fold")
    for line in cells:
        grid.add_row(*(Text(cell) for cell in line))
    Console(highlight=False).print(grid)


def facts(lines: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line."""
    shown = [(name, "-" if value is None or value == "" else safe(str(value))) for name, value in lines]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        click.echo(f"{name + ':':<{width}} {value}")


def confirm(question: str, yes: bool) -> None:
    """Ask before something is destroyed. Without a terminal nothing is asked, and --yes has to be given."""
    if yes:
        return
    if not is_terminal(sys.stdin):
        raise click.UsageError(f"{safe(question)} Give --yes, as there is no terminal to ask on.")
    if not click.confirm(safe(question), default=False, err=True):
        raise click.Abort


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is there; a stream that was closed before we started is None."""
    return stream is not None and stream.isatty()
