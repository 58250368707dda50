"""The report as a page: one HTML file that stands alone, for a browser's printer, or for a console to hand out.

The rule: it holds no script and asks for nothing; every value is escaped, and what would steer or hide text is shown.
Its one style sheet is in the page; whoever serves the page under a strict policy allows just that, by `style_hash`.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from appliance.amounts import duration, size
from appliance.notices.wording import visible
from appliance.reports.compliance import Report

_PAGE = "compliance.html"
_BODY = "body.html"
_STYLE = "compliance.css"


@dataclass(frozen=True, slots=True)
class Page:
    """`style_hash`: for a Content-Security-Policy, as 'sha256-…'."""

    html: str
    style_hash: str


def page(report: Report) -> Page:
    style = _read(_STYLE)
    html = _environment().get_template(_PAGE).render(style=Markup(style), **_told(report))  # noqa: S704  (our own file)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return Page(html, f"sha256-{digest}")


def body(report: Report) -> Markup:
    """The report alone, for a page that has its own head and style."""
    return Markup(_environment().get_template(_BODY).render(**_told(report)))  # noqa: S704  (escaped where it is made)


def _told(report: Report) -> dict[str, object]:
    zone = ZoneInfo(report.zone)

    def moment(value: datetime | None) -> str:
        return "–" if value is None else value.astimezone(zone).strftime("%Y-%m-%d %H:%M")

    def span(seconds: float | None) -> str:
        return "–" if seconds is None else duration(seconds)

    return {"report": report, "moment": moment, "size": size, "duration": span}


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_shown,
    )  # fmt: skip


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _read(name: str) -> str:
    return (files("appliance.services.reports") / "templates" / name).read_text("utf-8")
