"""What every resource of the API is made with."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import AfterValidator, BaseModel, Field
from werkzeug.exceptions import HTTPException

from web.api import problems
from web.api.bodies import check_request
from web.api.callers import check_answer, check_caller
from web.guarding import API

PREFIX: Final = "/api/v1"
_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_STATUSES: Final = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503)


class Id(BaseModel):
    """In the path."""

    id: str = Field(pattern="^[0-9a-f]{4,32}$", description="An id, or a unique beginning of it: four digits at least.")


class Name(BaseModel):
    name: str = Field(min_length=1, max_length=64)


def _plain_name(text: str) -> str:
    """Of a machine, a network or a folder: libvirt and file systems would refuse the rest in words of their own."""
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


PlainName = Annotated[str, AfterValidator(_plain_name)]
PLACE: Final = "A storage pool or a folder; of whoever is no admin, one in the setting `restore.folders`."


def aware(moment: datetime) -> datetime:
    """Moments without a zone are nobody's."""
    if moment.tzinfo is None:
        raise ValueError("give the zone, as Z")
    return moment.astimezone(UTC)


def resource(name: str, about: str, *, open: bool = False) -> APIBlueprint:
    """A blueprint whose views answer errors as problem+json. `open`: it has public views."""
    responses: dict[str | int | HTTPStatus, Any] = {status: {"content": _PROBLEM} for status in _STATUSES}
    made = APIBlueprint(
        f"{API}{name}",
        __name__,
        url_prefix=PREFIX,
        abp_tags=[Tag(name=name, description=about)],
        abp_security=[] if open else [{"token": []}],
        abp_responses=responses,
        operation_id_callback=_operation,
    )
    made.before_request(check_caller)
    made.before_request(check_request)
    made.after_request(check_answer)
    made.register_error_handler(HTTPException, problems.of_http)
    made.register_error_handler(Exception, problems.of_any)
    return made


def _operation(*, name: str, path: str, method: str) -> str:
    """The view's name: they are chosen to tell one from another."""
    return name
