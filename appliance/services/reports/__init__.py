"""The monthly compliance report: gathered from the catalog, and as a page that stands alone."""

from appliance.services.reports.gathering import ReportService

__all__ = ["ReportService"]
