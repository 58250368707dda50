"""What is wrong with a policy, in words for whoever wrote it."""

from __future__ import annotations

from appliance.errors import StrongroomError


class PolicyInvalid(StrongroomError):
    """A value of a policy that cannot be used; `where` leads to it, as "select.include[2].name"."""

    exit_code = 2

    def __init__(self, where: str, what: str, *, hint: str = "") -> None:
        super().__init__(f"{where}: {what}", hint=hint or "Correct that value, then try again.", where=where)
        self.where = where
        self._what = what

    def within(self, outer: str) -> PolicyInvalid:
        """The same, of a policy that is itself in a document: `outer` leads to it."""
        return PolicyInvalid(f"{outer}.{self.where}", self._what, hint=self.hint)
