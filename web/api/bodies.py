"""What a request may bring, before anything looks at it: sizes, depth, JSON that is JSON, and text that can be kept.

The rule: no view and no library sees what could make it fail in a way of its own. Text with NUL, which PostgreSQL
refuses, half characters, which nothing can write, and numbers that no column holds are refused here, wherever they are:
in the body, in the query or in the path.
"""

from __future__ import annotations

import math
from typing import Final

from flask import request
from pydantic_core import from_json
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from web.api.problems import FieldError, Unprocessable

BODY_BYTES_MAX: Final = 256 * 1024
_DEPTH_MAX: Final = 32
_INTEGER_MAX: Final = 1 << 63
_JSON: Final = ("application/json",)


def check_request() -> None:
    """To be called before every view. BadRequest, RequestEntityTooLarge, UnsupportedMediaType, Unprocessable."""
    request.max_content_length = BODY_BYTES_MAX
    errors = [
        FieldError(where=name, reason=reason)
        for name, value in [*request.args.items(multi=True), *(request.view_args or {}).items()]
        for reason in (*_text_reasons(name), *_text_reasons(str(value)))
    ]
    if errors:
        raise Unprocessable(errors)
    data = request.get_data(cache=True)
    if data:
        _check_body(data)


def _check_body(data: bytes) -> None:
    if request.mimetype not in _JSON:
        raise UnsupportedMediaType("A body is JSON: say so with 'Content-Type: application/json'.")
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as err:
        raise BadRequest(f"The body is no JSON: {err}.") from err
    if not isinstance(document, dict):
        raise BadRequest("The body is not a JSON object.")
    errors: list[FieldError] = []
    _check_value(document, "", 0, errors)
    if errors:
        raise Unprocessable(errors)


def _check_value(value: object, where: str, depth: int, errors: list[FieldError]) -> None:
    """The parser has a limit of its own to how deep it goes: this cannot run out of stack."""
    if isinstance(value, str):
        errors += [FieldError(where=where, reason=reason) for reason in _text_reasons(value)]
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not -_INTEGER_MAX <= value < _INTEGER_MAX:
            errors.append(FieldError(where=where, reason="the number does not fit into 64 bits"))
    elif isinstance(value, float):
        if not math.isfinite(value):
            errors.append(FieldError(where=where, reason="the number is too large"))
    elif depth >= _DEPTH_MAX:
        errors.append(FieldError(where=where, reason=f"it is nested more than {_DEPTH_MAX} deep"))
    elif isinstance(value, dict):
        for name, item in value.items():
            errors += [FieldError(where=where or "body", reason=f"a name: {reason}") for reason in _text_reasons(name)]
            _check_value(item, f"{where}.{name}" if where else name, depth + 1, errors)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_value(item, f"{where}[{number}]", depth + 1, errors)


def _text_reasons(text: str) -> tuple[str, ...]:
    if "\0" in text:
        return ("the text has a NUL character",)
    try:
        text.encode()
    except UnicodeEncodeError:
        return ("the text has half a character",)
    return ()
