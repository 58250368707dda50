"""Files out of restore points: volumes, folders, and what is downloaded of them (`web.downloads`)."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from flask import Blueprint, Response, render_template, request, url_for

from appliance.services.access import Act
from appliance.services.files.service import Chosen, Found
from web import downloads
from web.acts import act
from web.current import files
from web.downloads import OFFSET_MAX, place_asked, place_inside, shown_name
from web.forms import whole
from web.guarding import actor, looking, performing

blueprint = Blueprint("files", __name__)
_LIMIT: Final = 200


@blueprint.get("/points/<id>/files")
@act(Act.FILE_BROWSE)
def page(id: str) -> str:
    """The volumes of all disks; with a place, a part of its folder."""
    place, offset = place_asked(), whole(request.args, "offset", 0, OFFSET_MAX) or 0
    chosen = files().chosen(id)
    with performing(Act.FILE_BROWSE, chosen.subject):
        if not place:
            return _volumes_page(chosen)
        return _folder_page(chosen, files().listing(chosen.point, place, offset, _LIMIT), offset)


def _volumes_page(chosen: Chosen) -> str:
    seen = files().volumes(chosen.point)
    cautions = dict.fromkeys(each.caution for each in seen if each.caution)
    volumes = [each.volume for each in seen]
    return render_template("files/page.html", volumes=volumes, cautions=cautions, **_common(chosen))


def _folder_page(chosen: Chosen, found: Found, offset: int) -> str:
    end = offset + len(found.listing.entries)
    return render_template(
        "files/folder.html", found=found, crumbs=_crumbs(found), offset=offset, inside=place_inside,
        after=end if end < found.listing.total else None, **_common(chosen),
    )  # fmt: skip


def _common(chosen: Chosen) -> dict[str, object]:
    return {
        "point": chosen.point, "machine": chosen.subject.machine, "at": address, "shown": shown_name,
        "title": f"Files of {chosen.subject.name}",
    }  # fmt: skip


@blueprint.get("/points/<id>/file")
@act(Act.FILE_READ)
def download(id: str) -> Response:
    """A file as it is, or a folder as a tar."""
    chosen = files().chosen(id)
    looking(Act.FILE_READ, chosen.subject)  # before it is told that as many as may are carried
    return downloads.download(chosen, actor(), performing(Act.FILE_READ, chosen.subject))


def address(endpoint: str, id: str, place: str, **others: int) -> str:
    """`url_for` cannot do it: not every name is text."""
    query = {"place": place, **others}
    return f"{url_for(endpoint, id=id)}?{urlencode(query, errors='surrogateescape')}"


def _crumbs(found: Found) -> list[tuple[str, str]]:
    """From the volume on: what is shown, and the place."""
    crumbs, place = [(found.volume.name, f"{found.volume.name}:/")], f"{found.volume.name}:"
    for name in found.path:
        place = f"{place}/{name}"
        crumbs.append((shown_name(name), place))
    return crumbs
