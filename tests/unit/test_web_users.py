"""Users in the console: a change of a role leaves what was granted, with what the form does not show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.acts import Role
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from appliance.settings import load
from tests.unit.test_web_access import Signed, _set_up
from web.app import create_app

BUT = Selector((Clause(host="rack01"),), (Clause(name="secret-*"),))


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as made:
        yield made


@pytest.fixture
def admin(appliance: Appliance) -> Signed:
    return _set_up(create_app(appliance), appliance, SetUpService(appliance).first_link(), "admin")


@pytest.mark.parametrize(
    ("grants", "typed"),
    [
        ((BUT,), "host rack01"),
        ((BUT, Selector((Clause(tag="gold"), Clause(name="web-*")))), "host rack01\r\ntag gold\r\nname web-*"),
        ((Selector((Clause(),), (Clause(tag="hr"),)),), ""),
        ((), ""),
    ],
)
def test_a_role_changes_and_grants_stay(
    admin: Signed, appliance: Appliance, grants: tuple[Selector, ...], typed: str
) -> None:
    users = UserService(appliance)
    user = users.add(SYSTEM, "tenant", Role.VIEWER, grants).user
    assert admin.send("POST", f"/users/{user.id}", role="operator", grants=typed).status_code == 302
    changed = users.get(SYSTEM, "tenant")
    assert (changed.role, changed.selectors) == (Role.OPERATOR, grants)


def test_what_grants_leave_out_is_shown_and_not_lost_by_the_way(admin: Signed, appliance: Appliance) -> None:
    users = UserService(appliance)
    user = users.add(SYSTEM, "tenant", Role.VIEWER, (BUT,)).user
    assert "host rack01, but not name secret-*" in admin.send("GET", "/users").text
    refused = admin.send("POST", f"/users/{user.id}", role="viewer", grants="host rack01\nhost rack02")
    assert refused.status_code >= 400
    assert "leaves machines out" in refused.text
    assert users.get(SYSTEM, "tenant").selectors == (BUT,)


def test_other_grants_take_the_place_of_plain_ones(admin: Signed, appliance: Appliance) -> None:
    users = UserService(appliance)
    user = users.add(SYSTEM, "tenant", Role.VIEWER, (Selector((Clause(host="rack01"),)),)).user
    admin.send("POST", f"/users/{user.id}", role="viewer", grants="host rack02")
    assert users.get(SYSTEM, "tenant").selectors == (Selector((Clause(host="rack02"),)),)
    admin.send("POST", f"/users/{user.id}", role="viewer", grants="")
    assert users.get(SYSTEM, "tenant").selectors == ()
