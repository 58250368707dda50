"""Files out of restore points: volumes, folders, and what is downloaded of them.

The rule: a place is a volume and a path in it, told in the query and never a path of this machine. Names are bytes that
a guest chose: they go into addresses as they are, and onto pages by `shown`. A download is carried piece by piece; one
that cannot be whole is cut off, so that nobody takes it for whole.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final, cast
from urllib.parse import parse_qs, quote, urlencode

from flask import Blueprint, Response, render_template, request, url_for
from werkzeug.exceptions import ServiceUnavailable

from appliance.services.access import Act
from appliance.services.files.service import Chosen, Found, Taken, caution
from appliance.services.files.tarring import plain, shown
from web.acts import act
from web.current import files, parts
from web.forms import whole
from web.guarding import performing
from web.server import TooManyStreams

blueprint = Blueprint("files", __name__)
_LIMIT: Final = 200
_OFFSET_MAX: Final = 1 << 40
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")
_PLAIN_CHARACTERS: Final = 120


@blueprint.get("/points/<id>/files")
@act(Act.FILE_BROWSE)
def page(id: str) -> str:
    """The volumes of all disks; with a place, a part of its folder."""
    chosen = files().chosen(id)
    place, offset = _place(), whole(request.args, "offset", 0, _OFFSET_MAX) or 0
    with performing(Act.FILE_BROWSE, chosen.subject):
        if not place:
            return _volumes_page(chosen)
        return _folder_page(chosen, files().listing(chosen.point, place, offset, _LIMIT), offset)


def _volumes_page(chosen: Chosen) -> str:
    volumes, consistency = files().volumes(chosen.point), chosen.point.manifest.consistency
    cautions = [caution(volume, consistency) for volume in volumes if volume.readable]
    return render_template(
        "files/page.html", volumes=volumes, cautions=dict.fromkeys(filter(None, cautions)), **_common(chosen)
    )


def _folder_page(chosen: Chosen, found: Found, offset: int) -> str:
    end = offset + len(found.listing.entries)
    return render_template(
        "files/folder.html", found=found, crumbs=_crumbs(found), offset=offset, inside=_inside,
        after=end if end < found.listing.total else None, **_common(chosen),
    )  # fmt: skip


def _common(chosen: Chosen) -> dict[str, object]:
    return {
        "point": chosen.point, "machine": chosen.subject.machine, "at": address, "shown": _shown,
        "title": f"Files of {chosen.subject.name}",
    }  # fmt: skip


@blueprint.get("/points/<id>/file")
@act(Act.FILE_READ)
def download(id: str) -> Response:
    """A file as it is, or a folder as a tar."""
    chosen = files().chosen(id)
    try:
        carried = _carried(chosen, _place())
        taken = cast(Taken, next(carried))
    except TooManyStreams:
        raise ServiceUnavailable from None
    response = Response(cast("Iterator[bytes]", carried), mimetype="application/octet-stream")
    if taken.size_bytes is not None:
        response.content_length = taken.size_bytes
    plain_name, exact = names_of(taken.name)
    response.headers["Content-Disposition"] = f"attachment; filename=\"{plain_name}\"; filename*=UTF-8''{exact}"
    return response


def names_of(name: str) -> tuple[str, str]:
    """What a download is called: in ASCII without anything that means something, and as RFC 6266 has it (RFC 8187)."""
    readable = _shown(name)
    return _UNSAFE.sub("_", readable)[-_PLAIN_CHARACTERS:].strip(" .") or "file", quote(readable, safe="")


def address(endpoint: str, id: str, place: str, **others: int) -> str:
    """`url_for` cannot do it: not every name is text."""
    query = {"place": place, **others}
    return f"{url_for(endpoint, id=id)}?{urlencode(query, errors='surrogateescape')}"


def _carried(chosen: Chosen, place: str) -> Iterator[Taken | bytes]:
    """First what it is, once it is known that it can be read; then all of it. The act is over when this is, or when
    whoever wanted it has gone. TooManyStreams."""
    with (
        parts().streams.one() as over,
        performing(Act.FILE_READ, chosen.subject) as doing,
        files().take(chosen.point, place) as taken,
    ):
        first = next(taken.pieces, None)
        yield taken
        if first is not None:
            yield from plain(first)
        for piece in taken.pieces:
            for data in plain(piece):
                if over.is_set():
                    raise ConnectionResetError(errno.ECONNRESET, "the console has to end")
                yield data
        if taken.tar is not None and taken.tar.left_out:
            doing.partly("what could not be read was left out")


def _place() -> str:
    """As it was asked for, by bytes: `request.args` has text alone. "": none."""
    query = parse_qs(request.query_string.decode("utf-8", "surrogateescape"), errors="surrogateescape")
    return query.get("place", [""])[0]


def _shown(name: str) -> str:
    return shown((name,))[1:]


def _inside(found: Found, name: str) -> str:
    return f"{found.volume.name}:/{'/'.join((*found.path, name))}"


def _crumbs(found: Found) -> list[tuple[str, str]]:
    """From the volume on: what is shown, and the place."""
    crumbs, place = [(found.volume.name, f"{found.volume.name}:/")], f"{found.volume.name}:"
    for name in found.path:
        place = f"{place}/{name}"
        crumbs.append((_shown(name), place))
    return crumbs
