"""Objects that are known to be there, against a server that shows none.

The rule: a listing without any object is not believed while an object that this process wrote or read is still there
where it should show one. Whatever else a listing leaves out, nobody can tell who asks for nothing but listings.
"""

from __future__ import annotations

from collections.abc import Sequence


class Witnesses:
    """One name for each folder at the first level: the last that was seen. Thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def saw(self, name: str) -> None:
        self._last[name.partition("/")[0]] = name

    def lost(self, name: str) -> None:
        folder = name.partition("/")[0]
        if self._last.get(folder) == name:
            self._last.pop(folder, None)

    def below(self, prefix: str) -> Sequence[str]:
        return [name for name in tuple(self._last.values()) if name.startswith(prefix)]
