"""The audit for whoever reads it: lists, the check of the whole chain, exports.

The rule: what dead processes left is put into the chain before it is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from appliance.audit import AuditEntry, Flaw, Head, Result, Verdict, check, entry_json, head_of
from appliance.catalog.audit import Filter
from appliance.clock import format_utc
from appliance.errors import StrongroomError
from appliance.services.access.access import Access

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_FACILITY_LOG_AUDIT: Final = 13  # RFC 5424, 6.2.1
_WARNING, _NOTICE = 4, 5
_HOST_CHARACTERS_MAX: Final = 255


class AuditIsEmpty(StrongroomError):
    def __init__(self) -> None:
        super().__init__("the audit has no entry yet", hint="There is nothing that could be accepted.")


class AuditNotWhole(StrongroomError):
    def __init__(self) -> None:
        super().__init__(
            "the audit is not what was written",
            hint="If the catalog was lost or replaced, that is why: 'strongroom audit accept' goes by the new one. Else"
            " somebody changed it: compare it with an export that is kept elsewhere.",
        )


class AuditService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._access = Access(appliance)

    def newest(self, wanted: Filter | None = None, *, before: int | None = None, limit: int = 50
               ) -> tuple[AuditEntry, ...]:  # fmt: skip
        """Newest first. `before`: the number of the last entry of the page before."""
        self._access.sweep()
        return self._appliance.catalog.audit.newest(wanted or Filter(), before=before, limit=limit)

    def verify(self, known: Head | None = None) -> Verdict:
        """Look at every entry; with what this home knows of, and `known`, as the end may have been cut off.
        CatalogError, HomeUnusable."""
        self._access.sweep()
        heads = [head for head in (self._access.heads.read(), known) if head is not None]
        verdict = check(self._appliance.catalog.audit.entries(), heads)
        if len({head.hash for head in heads if known and head.number == known.number}) > 1:
            flaw = Flaw(heads[0].number, "the entry that this home knows of is another one than was given")
            return replace(verdict, flaws=(*verdict.flaws, flaw))
        return verdict

    def verify_since(self, since: Head) -> Verdict:
        """As `verify`, of the entries after this one, up to which somebody has looked at all; of all, if it is not
        there as it was then."""
        there = next(self._appliance.catalog.audit.entries(since.number - 1), None)
        if there is None or head_of(there) != since:
            return self.verify()
        self._access.sweep()
        heads = [head for head in (self._access.heads.read(),) if head is not None]
        return check(self._appliance.catalog.audit.entries(since.number), heads, since=since)

    def accept(self) -> Head:
        """From now on this home goes by the chain as it is. AuditIsEmpty."""
        self._access.sweep()
        head = self._appliance.catalog.audit.head()
        if head is None:
            raise AuditIsEmpty
        self._access.heads.replace(head)
        return head

    def known_head(self) -> Head | None:
        """HomeUnusable."""
        return self._access.heads.read()

    def export(self, after: int = 0) -> Iterator[AuditEntry]:
        """All beyond this number, in order."""
        self._access.sweep()
        return self._appliance.catalog.audit.entries(after)


def json_line(entry: AuditEntry) -> str:
    """One object, ASCII: what the hash is made of, and the hash."""
    return json.dumps(entry_json(entry), ensure_ascii=True, separators=(",", ":"))


def syslog_line(entry: AuditEntry, host: str) -> str:
    """As RFC 5424 has it, in ASCII; the message is the JSON line."""
    severity = _NOTICE if entry.result in (Result.OK, Result.PARTLY) else _WARNING
    name = "".join(character for character in host if 33 <= ord(character) <= 126)[:_HOST_CHARACTERS_MAX] or "-"
    moment = format_utc(entry.at_utc)
    return f"<{_FACILITY_LOG_AUDIT * 8 + severity}>1 {moment} {name} strongroom - audit - {json_line(entry)}"
