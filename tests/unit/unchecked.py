"""Takes the check of one route away, and asks the tests of access whether they would have told.

The rule: it is the application of this process that is changed, by a view put in place of another; the product has no
switch for it. What tells are the tests' own functions, by HTTP; the table of acts is asked apart: it reads no answer.

    signed    the route is for everybody, signed in or not
    role      it is an act that every role may do
    machine   it is done as if every machine were theirs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import wraps
from typing import Any

from flask import g

from appliance.acts import Act, Role
from tests.unit import test_api_access, test_web_access
from tests.unit.api_site import Site
from tests.unit.tenants import OF_NO_MACHINE, Route, Tenants, routes_of, tenants
from tests.unit.test_web_access import Signed
from web.acts import PUBLIC, act, public


class Check(StrEnum):
    SIGNED = "signed"
    ROLE = "role"
    MACHINE = "machine"


@dataclass(frozen=True)
class Removal:
    route: Route
    check: Check

    def __str__(self) -> str:
        return f"{self.route.name} without its check of {self.check}"


_ORDER = "GPD"  # get; patch, post and put; delete


@dataclass
class Rig:
    """`people`, `tokens`: one of each role."""

    site: Site
    people: dict[Role, Signed]
    tokens: dict[Role, str]
    owner: Tenants

    @classmethod
    def on(cls, site: Site) -> Rig:
        """Of a site where nobody has an account."""
        people = test_web_access.one_of_each_role(site.app, site.appliance)
        return cls(site, people, test_api_access.one_of_each_role(site), tenants(site))

    def removals(self) -> list[Removal]:
        """Every check that there is; those of what changes something last, as it is then done. What every role may do
        has none of roles, what is no machine's none of machines."""
        found = []
        for route in sorted(routes_of(self.site.app), key=lambda each: _ORDER.find(each.method[0])):
            if route.act == PUBLIC:
                continue
            found.append(Removal(route, Check.SIGNED))
            if route.roles != frozenset(Role):
                found.append(Removal(route, Check.ROLE))
            if route.of_machines and route.name not in OF_NO_MACHINE:
                found.append(Removal(route, Check.MACHINE))
        return found

    def told(self, route: Route) -> str:
        """By which test of access, as the application is now; "": by none."""
        if route.of_machines and route.name not in OF_NO_MACHINE and (wrong := self.owner.reached(route)):
            return wrong
        if route.of_api:
            name = f"{route.method} {route.rule.removeprefix('/api/v1')}"
            return _failure(
                test_api_access.test_a_route_lets_in_who_may_do_its_act_and_nobody_else, self.site, self.tokens, name
            )
        return _failure(
            test_web_access.test_nobody_reaches_anything_that_is_not_public, self.site.app, route.name
        ) or ", ".join(test_web_access.wrong_for_roles(self.people, route.name))

    def told_by_the_table(self) -> str:
        """That an act is another one than was written down."""
        return _failure(test_api_access.test_the_table_has_every_route_with_its_act, self.site) or _failure(
            test_web_access.test_the_table_says_what_the_acts_say, self.site.app
        )

    @contextmanager
    def without(self, removal: Removal) -> Iterator[None]:
        views = self.site.app.view_functions
        endpoint = removal.route.endpoint
        view = views[endpoint]
        views[endpoint] = _unchecked(view, removal.check)
        try:
            yield
        finally:
            views[endpoint] = view


def _unchecked(view: Callable[..., Any], check: Check) -> Callable[..., Any]:
    @wraps(view)  # with what it states
    def unchecked(*arguments: Any, **named: Any) -> Any:
        if check is Check.MACHINE:
            g.actor = replace(g.actor, grants=())
        return view(*arguments, **named)

    if check is Check.SIGNED:
        return public(unchecked)
    return act(Act.OVERVIEW_SEE)(unchecked) if check is Check.ROLE else unchecked


def _failure(test: Callable[..., None], *arguments: object) -> str:
    try:
        test(*arguments)
    except AssertionError as err:
        return f"{test.__name__}: {str(err).splitlines()[0] if str(err) else 'it failed'}"
    return ""
