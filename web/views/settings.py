"""Settings as they hold: shown, without secrets. They are changed in strongroom.toml, by whoever may write it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from flask import Blueprint, render_template

from appliance.services.access import Act
from appliance.services.notices import NoticeService
from web.acts import act
from web.current import appliance

blueprint = Blueprint("settings", __name__)


@blueprint.get("/settings")
@act(Act.SETTINGS_SEE)
def page() -> str:
    settings = appliance().settings
    sections = []
    for section in fields(settings):
        value = getattr(settings, section.name)
        if is_dataclass(value):
            shown = [(item.name, getattr(value, item.name), item.default, item.repr) for item in fields(value)]
            sections.append((section.name, shown))
    return render_template(
        "settings/page.html", sections=sections, file=settings.file, targets=NoticeService(appliance()).targets(),
        title="Settings",
    )  # fmt: skip
