"""Whatever is sent to the API, by the rules of its document and against them, it answers as the document says: never
with a mistake of its own, never in a form that is not written down.

The same examples each time. Half of what is about one thing is about one that is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.acts import Role
from tests.unit.api_site import Site, site

pytestmark = pytest.mark.faults

_CHECKS: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("api")) as made:
        made.token_of(Role.VIEWER)
        assert made.post("/users", {"name": "alice", "role": "viewer"}).status_code == 201
        yield made


def known(api: Site, path: str) -> dict[str, str]:
    """What is there of that kind now, for the parts of the path."""
    if "{" not in path:
        return {}
    place = path.partition("{")[0].removeprefix("/api/v1").rstrip("/")
    kind = place.rpartition("/")[2]
    items = api.get(place)["items"]
    if kind == "tokens":  # not the one that asks
        items = [each for each in items if each["role"] != Role.ADMIN]
    if not items:
        return {}
    if kind == "pauses":
        return {"key": items[-1]["machine"]}
    return {name: str(items[-1][name]) for name in ("id", "key", "name") if name in items[-1]}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_every_answer_is_one_of_the_document(api: Site, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", api.app)
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert len(operations) > 40
    operations.sort(key=lambda each: each.method == "delete")  # then nothing is there any more
    statuses: Counter[int] = Counter()
    for operation in operations:
        _ask(api, operation, mode, statuses)
    assert statuses[200] > 20
    assert statuses[422] > 20
    assert not statuses[500]


def _examples(operation: APIOperation[Any, Any, Any, Any]) -> int:
    """As many as it has to vary: a document or a query, an id alone, or nothing but who asks."""
    if len(operation.query) or list(operation.body):
        return 8
    return 4 if len(operation.path_parameters) else 2


def _ask(api: Site, operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, statuses: Counter[int]) -> None:
    @settings(
        max_examples=_examples(operation), derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    def ask(case: Case[Any], real: bool) -> None:
        if real:
            there = known(api, operation.path)
            case.path_parameters = {
                **case.path_parameters,
                **{k: v for k, v in there.items() if k in case.path_parameters},
            }
        answer = case.call(headers={"Authorization": f"Bearer {api.token}"})
        statuses[answer.status_code] += 1
        assert answer.status_code != 500, f"{case.as_curl_command()}: {answer.text}"
        case.validate_response(answer, checks=_CHECKS)

    ask()
