"""The root of every error that the appliance raises on purpose.

The rule: an error is one clear sentence that names the thing it is about, it carries its facts as fields, and it tells
the way out in `hint`. Command line, API and console print the sentence and the hint; a traceback is for --debug only.
Whether trying again can help is declared on the class, so that one place can decide to retry.
"""

from __future__ import annotations

from typing import ClassVar


class StrongroomError(Exception):
    """What went wrong, to what, and what to do about it.

    `facts` holds whatever a program may want to know of the error (names, sizes, reasons), JSON-able; the sentence is
    for people and never has to be parsed.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, sentence: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(sentence)
        self.hint = hint
        self.facts: dict[str, object] = facts

    @property
    def sentence(self) -> str:
        return str(self)
