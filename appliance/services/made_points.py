"""What making the restore points took, remembered: hundreds of thousands of rows take a second to read.

The rule: a series is read again as soon as its mark is another one (`catalog.points`), so what is told is as the
catalog has it now, and a night's new points cost reading the machines that have them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from appliance.planning.habits import Points

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class MadePoints:
    """Borrows the appliance. Safe to use from threads."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._lock = threading.Lock()
        self._known: Mapping[str, tuple[str, Points]] = {}

    def all(self) -> Mapping[str, Points]:
        """By series; of those that have any. CatalogError."""
        catalog = self._appliance.catalog
        with self._lock:
            # First the marks: what changes until the points are read is read once more the next time.
            marks = catalog.points.marks()
            known = {series: found for series, found in self._known.items() if marks.get(series) == found[0]}
            changed = marks.keys() - known.keys()
            if changed:
                read = catalog.history.made_points(changed if known else None)
                known.update((series, (marks[series], read.get(series, Points()))) for series in changed)
            self._known = known
            return {series: points for series, (_, points) in known.items() if len(points)}
