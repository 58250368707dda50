"""Telling people what they have not asked for, as the daemon does, and showing what was told."""

from appliance.services.notices.service import NoticeService

__all__ = ["NoticeService"]
