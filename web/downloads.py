"""Files out of restore points, on their way to whoever asked: the same for pages of the console and for the API.

The rule: a place is a volume and a path in it, told in the query and never a path of this machine. Names are bytes that
a guest chose: they go into addresses as they are, and are shown by `shown_name`. A download is carried piece by piece,
and whether whoever asked for it still may is asked meanwhile; one that cannot be whole is cut off, so that nobody takes
it for whole.
"""

from __future__ import annotations

import errno
import logging
import re
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from itertools import chain
from typing import Final, cast
from urllib.parse import parse_qs, quote

from flask import Response, g, request
from werkzeug.exceptions import ServiceUnavailable

from appliance.doing import about
from appliance.failures import failure_of
from appliance.services.access import Act, Actor, Doing
from appliance.services.accounts.lasting import may_still
from appliance.services.files.errors import NoLongerAllowed
from appliance.services.files.service import Chosen, Found, Piece, Taken
from appliance.services.files.tarring import plain, shown
from web.current import appliance, files, parts
from web.server import TooManyStreams

_log = logging.getLogger("strongroom.web")
MIME_TYPE: Final = "application/octet-stream"
CAUTION: Final = "Strongroom-Caution"
OFFSET_MAX: Final = 1 << 40
_ASK_S: Final = 10.0
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")
_PLAIN_CHARACTERS: Final = 120

Carried = Generator["Taken | bytes"]
"""First what it is, then its bytes."""


def download(
    chosen: Chosen, who: Actor, performing: AbstractContextManager[Doing], disk: str | None = None
) -> Response:
    """A file as it is, or a folder as a tar. `performing`: the act, which lasts as long as the answer does; what is
    wrong with it, or with what is asked for, is raised here. ServiceUnavailable: as many as may are carried."""
    carried = _cut_off(_carried(chosen, who, performing, disk), g.get("request_id", "?"))
    try:
        taken = cast(Taken, next(carried))
    except TooManyStreams:
        raise ServiceUnavailable from None
    if request.method == "HEAD":
        deque(carried, maxlen=0)  # nothing of it: with this the act is over
    response = Response(cast("Iterator[bytes]", carried), mimetype=MIME_TYPE)
    if taken.size_bytes is not None:
        response.content_length = taken.size_bytes
        response.last_modified = taken.entry.modified_utc
    if taken.caution:
        response.headers[CAUTION] = taken.caution
    plain_name, exact = names_of(taken.name)
    response.headers["Content-Disposition"] = f"attachment; filename=\"{plain_name}\"; filename*=UTF-8''{exact}"
    return response


def names_of(name: str) -> tuple[str, str]:
    """What a download is called: in ASCII without anything that means something, and as RFC 6266 has it (RFC 8187)."""
    readable = shown_name(name)
    return _UNSAFE.sub("_", readable)[-_PLAIN_CHARACTERS:].strip(" .") or "file", quote(readable, safe="")


def place_asked() -> str:
    """As it was asked for, by bytes: `request.args` has text alone. "": none."""
    query = parse_qs(request.query_string.decode("utf-8", "surrogateescape"), errors="surrogateescape")
    return query.get("place", [""])[0]


def place_inside(found: Found, name: str) -> str:
    return f"{found.volume.name}:/{'/'.join((*found.path, name))}"


def shown_name(name: str) -> str:
    return shown((name,))[1:]


def _carried(chosen: Chosen, who: Actor, performing: AbstractContextManager[Doing], disk: str | None) -> Carried:
    """First what it is, once it is known that it can be read; then all of it, unless only the head is asked for. The
    act is over when this is, or when whoever wanted it has gone. TooManyStreams; NoLongerAllowed."""
    place, here = place_asked(), appliance()
    with (
        parts().streams.one() as over,
        performing as doing,
        files().take(chosen.point, place, disk) as taken,
    ):
        if request.method == "HEAD":
            about(method="HEAD")
            yield taken
            return
        first = next(taken.pieces, None)
        yield taken
        asked_s = here.clock.monotonic_s()
        for data in _bytes(first, taken.pieces):
            if over.is_set():
                raise ConnectionResetError(errno.ECONNRESET, "the console has to end")
            if here.clock.monotonic_s() - asked_s >= _ASK_S:
                if not may_still(here, who, Act.FILE_READ, chosen.subject):
                    raise NoLongerAllowed
                asked_s = here.clock.monotonic_s()
            yield data
        if taken.tar is not None and taken.tar.left_out:
            doing.partly("what could not be read was left out")


def _bytes(first: Piece | None, rest: Iterator[Piece]) -> Iterator[bytes]:
    for piece in chain(() if first is None else (first,), rest):
        yield from plain(piece)


def _cut_off(carried: Carried, request_id: str) -> Carried:
    """What goes wrong once it has begun can be told to nobody but the log: the connection is broken."""
    with closing(carried):
        yield next(carried)
        try:
            yield from carried
        except Exception as err:
            if failure_of(err) is None:
                raise
            _log.warning("request %s: the download was cut off: %s", request_id, err)
            raise ConnectionResetError(errno.ECONNRESET, "the download was cut off") from err
