"""How services tell what they are doing, without knowing whether anybody looks.

The rule: a service takes a `Progress` and calls nothing else to show itself; it never prints. Calls may come from any
thread.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def start(self, label: str, total_bytes: int | None) -> None:
        """A new stage begins (and an unfinished one ends); None: its size is not known."""

    def advance(self, count_bytes: int) -> None:
        """So many more bytes of the stage are done."""

    def note(self, text: str) -> None:
        """Something that a person should read, now."""

    def finish(self) -> None:
        """The stage is over; harmless when none is."""


class SilentProgress:
    """For calls that nobody watches."""

    def start(self, label: str, total_bytes: int | None) -> None: ...

    def advance(self, count_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


SILENT: Progress = SilentProgress()
