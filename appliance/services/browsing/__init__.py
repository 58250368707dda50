"""Reading for lists, pages and the overview: `BrowsingService`, and what it gives."""

from __future__ import annotations

from appliance.catalog.browsing import PointFilter, RunFilter
from appliance.services.browsing.fleet import Fleet, MachineFilter, MachineRow, Sort, Standing
from appliance.services.browsing.growth import Growth
from appliance.services.browsing.overview import Overview
from appliance.services.browsing.searching import Found
from appliance.services.browsing.service import BrowsingService, MachinePage
from appliance.services.browsing.timeline import Day, TimePoint

__all__ = [
    "BrowsingService",
    "Day",
    "Fleet",
    "Found",
    "Growth",
    "MachineFilter",
    "MachinePage",
    "MachineRow",
    "Overview",
    "PointFilter",
    "RunFilter",
    "Sort",
    "Standing",
    "TimePoint",
]
