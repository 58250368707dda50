"""A repository with a guard of three persons, for tests: points of several days, and a clock that the test moves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from imaging.guard.acts import Act, DeletePoints, deletion_of
from imaging.guard.requests import Request
from imaging.guard.rules import Person, Rules
from imaging.points import DamagedPoint, doomed
from imaging.repository import Appliance, Point, Repository
from imaging.storage.contract import Store
from tests.faults.repositories import CHEAP, ME, ManualClock, back_up, content, make, reopen

PERSONS = ("alice", "bob", "carol")
DELAY_S = 24 * 3600
DAY = timedelta(days=1)
BEGAN = datetime(2026, 1, 1, 3, tzinfo=UTC)


def words(name: str) -> str:
    """A person's passphrase."""
    return f"{name} and nobody else"


@dataclass
class Guarded:
    folder: Path
    clock: ManualClock
    repository: Repository
    points: list[Point]

    def enrol(self, *names: str) -> tuple[Person, ...]:
        return tuple(self.repository.guard.enrol(name, words(name), CHEAP) for name in names)

    def turn_on(self, *names: str, keep_days: int | None = 3, keep_points: int = 2) -> Rules:
        rules = Rules(True, DELAY_S, keep_days, keep_points, self.enrol(*names))
        guard = self.repository.guard
        return guard.change(guard.next_state(rules)).rules

    def deletion(self, *points: Point) -> DeletePoints:
        return deletion_of(doomed(point) for point in points)

    def deletion_of_damaged(self, point: DamagedPoint) -> DeletePoints:
        return deletion_of([doomed(point)])

    def ask(self, act: Act, person: str = "alice") -> Request:
        return self.repository.guard.ask(act, person, words(person), "because")

    def confirm(self, request: Request, person: str = "bob") -> Request:
        return self.repository.guard.confirm(request.id, person, words(person))

    def ready(self, act: Act) -> str:
        """A request for this that is due."""
        request = self.confirm(self.ask(act))
        self.clock.pass_s(DELAY_S + 1)
        return request.id

    def reopened(self, cache: str = "cache", appliance: Appliance = ME, store: Store | None = None) -> Repository:
        return reopen(self.folder, cache, appliance, self.clock, store)


def guarded(folder: Path, days: int = 6, store: Store | None = None) -> Guarded:
    """A point a day of the machine "web", and no guard yet. The caller closes the repository."""
    clock = ManualClock()
    repository = make(folder, clock, store)
    points = [
        back_up(repository, "web", {"disk": content(number, 5_000)}, BEGAN + number * DAY) for number in range(days)
    ]
    return Guarded(folder, clock, repository, points)


def copied(template: Path, folder: Path) -> Guarded:
    """As it was made in `template`, in a folder of its own: much quicker than making it."""
    shutil.copytree(template, folder)
    clock = ManualClock()
    repository = reopen(folder, clock=clock)
    return Guarded(folder, clock, repository, repository.points())
