"""Every failure of the API in one form: problem+json (RFC 9457).

The rule: what we raised on purpose tells its sentence, its way out and its facts, and `type` names its kind for
programs; of anything else only an id is shown, which the log has too. What is told to whom is as on pages
(`web.errors.told`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from flask import Response, g, make_response, request
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException

from appliance.failures import Kind
from web.errors import STATUSES, told, words

MIME_TYPE: Final = "application/problem+json"
_RETRY_S: Final = 5
_KIND: Final = "urn:strongroom:error:"
_HINTS: Final = {
    401: "Give a token: 'Authorization: Bearer …'. 'strongroom token add' makes one.",
    404: "/api/v1/openapi.json tells what there is.",
    405: "The header Allow tells what can be done here.",
    413: "Send less at once.",
    415: "Send JSON, with 'Content-Type: application/json'.",
    429: "Wait as long as the header Retry-After says.",
    500: "The log of 'strongroom serve' has the details under this id.",
}


class FieldError(BaseModel):
    where: str = Field(description="The field: `select.include[0].name`.")
    reason: str


class Problem(BaseModel):
    """What went wrong, to what, and what to do about it (RFC 9457)."""

    type: str = Field(description="Of our own errors `urn:strongroom:error:NAME`; else `about:blank`.")
    title: str
    status: int
    detail: str = Field(description="A sentence for people; never to be parsed.")
    hint: str = Field(description="The way out, where there is one.")
    instance: str = Field(description="The id of this request, as the log has it.")
    facts: dict[str, object] = Field(description="What a program may want to know of the error.")
    errors: list[FieldError] = Field(description="Each field of the request that is not as it must be.")


class Unprocessable(HTTPException):
    """The request is well-formed, and says what cannot be."""

    code = 422
    description = "The request has values that cannot be used."

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__()
        self.errors = errors


def problem(
    status: int,
    detail: str,
    *,
    kind: str = "",
    hint: str = "",
    facts: Mapping[str, object] | None = None,
    errors: Sequence[FieldError] = (),
) -> Response:
    """`kind`: the name of an error of ours; "": the status says all."""
    body = Problem(
        type=_KIND + kind if kind else "about:blank",
        title=words(kind) if kind else HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        hint=hint,
        instance=f"urn:strongroom:request:{g.get('request_id', '')}",
        facts={name: _plain(value) for name, value in (facts or {}).items()},
        errors=list(errors),
    )
    return Response(body.model_dump_json(), status, mimetype=MIME_TYPE)


def invalid(error: ValidationError) -> Response:
    """What the schemas refuse. What was given is not shown again: it may be a secret."""
    errors = [
        FieldError(where=_path(item["loc"]), reason=item["msg"])
        for item in error.errors(include_url=False, include_input=False)
    ]
    return problem(422, str(Unprocessable.description), errors=errors)


def of_http(error: HTTPException) -> Response:
    if error.response is not None or error.code is None or error.code < 400:
        return make_response(error.get_response())
    status = error.code
    errors = error.errors if isinstance(error, Unprocessable) else ()
    response = problem(status, _sentence(error), hint=_HINTS.get(status, ""), errors=errors)
    for name, value in error.get_headers(request.environ):
        if name not in ("Content-Type", "Content-Length"):  # Allow, Retry-After, WWW-Authenticate
            response.headers[name] = value
    return response


def of_any(error: Exception) -> Response:
    """What is no HTTPException."""
    failure = told(error)
    if failure is None:
        return problem(500, "Something went wrong here.", hint=_HINTS[500])
    status = STATUSES[failure.kind]
    response = problem(status, failure.sentence, kind=failure.name, hint=failure.hint, facts=failure.facts)
    if failure.kind in (Kind.AWAY, Kind.THROTTLED):
        response.headers["Retry-After"] = str(failure.facts.get("retry_after_s", _RETRY_S))
    return response


def of_page(status: int, _title: str, sentence: str, hint: str) -> Response:
    """What goes wrong before it is known which view it is, as `web.errors` tells it."""
    return problem(status, sentence or HTTPStatus(status).phrase, hint=_HINTS.get(status, hint))


def _sentence(error: HTTPException) -> str:
    return error.description or HTTPStatus(error.code or 500).phrase


def _path(parts: Sequence[int | str]) -> str:
    """("include", 0, "name") → "include[0].name"."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "body"


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)
