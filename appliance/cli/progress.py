"""Progress on a terminal: a bar with rate and time left. Elsewhere: a plain line now and then.

The rule: progress goes to standard error, so that results can be piped; calls may come from several threads.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import click

from appliance.cli.output import duration, is_terminal, safe, safe_lines, size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_PLAIN_EVERY_S = 10.0


def make_progress() -> PlainProgress | TerminalProgress:
    """The caller closes it, so that a stage that an error ended is not told as done."""
    return TerminalProgress() if is_terminal(sys.stderr) else PlainProgress()


class PlainProgress:
    """A line when a stage begins, every ten seconds, and when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._label = ""
        self._total_bytes: int | None = None
        self._done_bytes = 0
        self._started_s = self._said_s = 0.0

    def start(self, label: str, total_bytes: int | None) -> None:
        self.close()
        with self._lock:
            self._label, self._total_bytes, self._done_bytes = label, total_bytes, 0
            self._started_s = self._said_s = time.monotonic()
            of = f" ({size(total_bytes)})" if total_bytes is not None else ""
            click.echo(f"{safe(label)}{of}", err=True)

    def advance(self, count_bytes: int) -> None:
        with self._lock:
            self._done_bytes += count_bytes
            now_s = time.monotonic()
            if self._label and now_s - self._said_s >= _PLAIN_EVERY_S:
                self._said_s = now_s
                click.echo(self._line(now_s), err=True)

    def note(self, text: str) -> None:
        with self._lock:
            click.echo(safe_lines(text), err=True)

    def finish(self) -> None:
        with self._lock:
            if self._label:
                took_s = time.monotonic() - self._started_s
                done = size(self._done_bytes) if self._done_bytes else "done"
                rate = f", {size(round(self._done_bytes / took_s))}/s" if took_s > 0.1 and self._done_bytes else ""
                click.echo(f"{safe(self._label)}: {done} in {duration(took_s)}{rate}", err=True)
            self._label = ""

    def close(self) -> None:
        """A stage that is still open ended too early."""
        with self._lock:
            if self._label:
                click.echo(f"{safe(self._label)}: stopped after {size(self._done_bytes)}", err=True)
            self._label = ""

    def _line(self, now_s: float) -> str:
        rate = self._done_bytes / max(now_s - self._started_s, 0.001)
        line = f"{safe(self._label)}: {size(self._done_bytes)}"
        if self._total_bytes:
            line += f" of {size(self._total_bytes)} ({100 * self._done_bytes // self._total_bytes} %)"
        line += f", {size(round(rate))}/s"
        if self._total_bytes and rate > 0:
            line += f", {duration(max(self._total_bytes - self._done_bytes, 0) / rate)} left"
        return line


class TerminalProgress:
    """One bar per stage; finished ones stay on the screen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total_bytes: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self.finish()
        with self._lock:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True, highlight=False),
            )
            self._task = self._bar.add_task(safe(label), total=total_bytes)
            self._bar.start()

    def advance(self, count_bytes: int) -> None:
        with self._lock:
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task, count_bytes)

    def note(self, text: str) -> None:
        from rich.text import Text

        with self._lock:
            if self._bar is None:
                click.echo(safe_lines(text), err=True)
            else:
                self._bar.console.print(Text(safe_lines(text)))

    def finish(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
            self._bar = self._task = None

    def close(self) -> None:
        """The bar of a stage that ended too early stays where it was."""
        self.finish()
