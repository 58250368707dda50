"""A guarded repository lets nothing go that two persons have not signed, or before its time; whatever is lost, changed
or played again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from imaging.envelope import ObjectType
from imaging.errors import Damaged, HoldNotFound, PointHeld, SlotNotFound, StoreUnavailable
from imaging.guard.acts import Act, ChangeGuard, LiftProtection, Permit, RemoveKey
from imaging.guard.asks import Asked, Authority, Confirmation
from imaging.guard.errors import (
    Guarded,
    GuardForged,
    GuardNoteUnreadable,
    GuardRolledBack,
    NotCovered,
    NothingToAsk,
    PassphraseWrong,
    PersonKeyLost,
    PersonUnknown,
    RequestNotReady,
    SamePerson,
)
from imaging.guard.requests import Standing
from imaging.guard.rules import Person
from imaging.points import DamagedPoint, Point
from imaging.slots import Passphrase
from imaging.storage.local import LocalStore
from tests.faults import guarded as scenes
from tests.faults.faulty_store import FaultyStore
from tests.faults.guarded import DELAY_S, PERSONS, words
from tests.faults.repositories import CHEAP, OTHER, back_up, content, draft, write_disks

pytestmark = pytest.mark.faults
YEAR_S = 365 * 86_400.0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = scenes.guarded(tmp_path_factory.mktemp("guarded"))
    with made.repository:
        made.turn_on(*PERSONS)
    return made.folder


@pytest.fixture
def scene(template: Path, tmp_path: Path) -> Iterator[scenes.Guarded]:
    """Six points on six days; the last two, and those of the last three days, are guaranteed."""
    made = scenes.copied(template, tmp_path / "copy")
    with made.repository:
        yield made


def test_past_the_guarantee_points_go_freely_and_no_other(scene: scenes.Guarded) -> None:
    *old, third, second, newest = scene.points
    for point in (newest, second, third):
        with pytest.raises(Guarded, match="not followed by 2 points and points of 3 other days"):
            scene.repository.delete_point(point, "admin")
    for point in old:
        assert scene.repository.delete_point(point, "admin")
    assert scene.repository.points() == [third, second, newest]
    with pytest.raises(NothingToAsk, match="goes freely"):
        scene.ask(scene.deletion(*old[:0]))


def test_a_flood_of_points_on_one_day_frees_none(scene: scenes.Guarded) -> None:
    last = scene.points[-1]
    for number in range(8):
        back_up(scene.repository, "web", {"disk": content(50 + number, 5_000)}, last.created_utc)
    for point in scene.points[-3:]:
        with pytest.raises(Guarded):
            scene.repository.delete_point(point, "admin")


@pytest.mark.parametrize("years", [1, -1])
def test_a_point_made_with_the_clock_a_year_off_counts_as_one_day(scene: scenes.Guarded, years: int) -> None:
    moment = scene.points[-1].created_utc + years * timedelta(days=365)
    for number in range(4):
        back_up(scene.repository, "web", {"disk": content(70 + number, 5_000)}, moment)
    for point in scene.points[-2:]:
        with pytest.raises(Guarded):
            scene.repository.delete_point(point, "admin")
    scene.repository.delete_point(scene.points[3], "admin")  # the one day more is one day more


def test_copies_of_anothers_points_free_none(scene: scenes.Guarded) -> None:
    """Who makes a repository of their own chooses the times in it; copies of one repository count among themselves."""
    own = scene.points[-1]

    def copies(of: str, days: range) -> list[Point]:
        note = f"copied from restore point {'ab' * 16} of repository {of}"
        made = []
        for day in days:
            with scene.repository.begin_run(own.series, host="host") as run:
                entries = write_disks(scene.repository, run, {"disk": content(day, 4096)})
                moment = own.created_utc + (1 + day) * scenes.DAY
                made.append(run.commit(replace(draft("web", entries, moment), notes=(note,))))
        return made

    before = scene.repository.guard.kept({point.name for point in scene.points}, scene.repository.guard.state().rules)
    theirs = copies("cd" * 16, range(20))
    others = copies("ef" * 16, range(20, 22))
    rules = scene.repository.guard.state().rules
    assert scene.repository.guard.kept({point.name for point in scene.points}, rules) == before
    assert own.name in before
    with pytest.raises(Guarded):
        scene.repository.delete_point(own, "")
    kept = scene.repository.guard.kept({point.name for point in (*theirs, *others)}, rules)
    assert 0 < len(kept & {point.name for point in theirs}) < len(theirs), "the old ones are followed by theirs"
    assert {point.name for point in others} <= kept


def test_a_note_that_cannot_be_read_lets_nothing_go(scene: scenes.Guarded) -> None:
    """A guard that got lost is not one that is off, as long as anybody knows of it."""
    note = scene.folder / "cache" / "guard"
    assert note.is_file()
    note.write_bytes(b"")
    with pytest.raises(GuardNoteUnreadable, match="nothing is deleted"):
        scene.repository.delete_point(scene.points[0], "")
    note.unlink()
    scene.repository.delete_point(scene.points[0], "")


def test_everything_guarded_goes_once_two_persons_signed_and_the_delay_is_over(scene: scenes.Guarded) -> None:
    repository = scene.repository
    newest = scene.points[-1]
    hold = repository.hold(newest, "protected", "admin")
    slot = repository.add_slot(Passphrase("another one"), "spare", CHEAP)
    acts: dict[str, Act] = {
        "lift": LiftProtection(hold.id, newest.name),
        "key": RemoveKey(slot.id),
        "delete": scene.deletion(*scene.points[-2:]),
    }
    for attempt in (
        lambda: repository.release(hold.id),
        lambda: repository.remove_slot(slot.id),
        lambda: repository.delete_point(newest, "admin"),
    ):
        with pytest.raises(Guarded) as refused:
            attempt()
        assert "--ask" in refused.value.hint
    ids = {name: scene.ready(act) for name, act in acts.items()}
    with pytest.raises(PointHeld):
        repository.delete_point(newest, "admin", ids["delete"])
    repository.release(hold.id, ids["lift"])
    with pytest.raises(HoldNotFound):
        repository.release(hold.id, ids["lift"])
    repository.remove_slot(slot.id, ids["key"])
    with pytest.raises(SlotNotFound):
        repository.remove_slot(slot.id, ids["key"])
    tombstone = repository.delete_point(newest, "admin", ids["delete"])
    assert repository.delete_point(newest, "admin", ids["delete"]) == tombstone
    repository.delete_point(scene.points[-2], "admin", ids["delete"])
    assert repository.points() == scene.points[:-2]
    assert repository._objects.read_json(ObjectType.TOMBSTONE, tombstone).text("request") == ids["delete"]


def test_a_hold_that_is_no_protection_is_let_go_of_freely(scene: scenes.Guarded) -> None:
    hold = scene.repository.hold(scene.points[-1], "restore", "a command")
    scene.repository.release(hold.id)
    assert scene.repository.holds() == []


def test_a_hold_that_cannot_be_read_may_be_a_protection(scene: scenes.Guarded) -> None:
    hold = scene.repository.hold(scene.points[-1], "restore", "a command")
    path = scene.folder / "store" / "holds" / hold.id
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Guarded, match="cannot be read"):
        scene.repository.release(hold.id)
    scene.repository.release(hold.id, scene.ready(LiftProtection(hold.id, None)))


def test_what_is_left_of_a_damaged_point_stays_too(scene: scenes.Guarded) -> None:
    victim = scene.points[0]
    path = scene.folder / "store" / victim.name
    path.write_bytes(path.read_bytes()[:-1])
    shutil.rmtree(scene.folder / "cache" / "objects")
    with scene.reopened("third", OTHER) as repository:
        (broken,) = repository.damaged_points()
        with pytest.raises(Guarded, match="damaged"):
            repository.delete_point(broken, "admin")
    request = scene.ready(scene.deletion_of_damaged(broken))
    scene.repository.delete_point(DamagedPoint(victim.name, Damaged(victim.name, "it is")), "admin", request)
    assert victim not in scene.repository.points()


def test_the_same_person_does_not_confirm(scene: scenes.Guarded) -> None:
    request = scene.ask(scene.deletion(scene.points[-1]), "alice")
    with pytest.raises(SamePerson):
        scene.confirm(request, "alice")
    with pytest.raises(PassphraseWrong):
        scene.repository.guard.confirm(request.id, "bob", words("alice"))
    with pytest.raises(PersonUnknown, match="alice, bob, carol"):
        scene.repository.guard.confirm(request.id, "mallory", words("mallory"))
    assert scene.repository.guard.request(request.id).standing is Standing.ASKED
    # Also not with an object that a program of their own puts there.
    guard = scene.repository.guard
    alice = guard.persons.signer(request_person(scene, "alice"), words("alice"))
    forge(scene, request.id, Confirmation.by(alice, request.ask))
    scene.clock.pass_s(2 * DELAY_S)
    assert guard.request(request.id).standing is Standing.ASKED
    with pytest.raises(RequestNotReady, match="another person's confirmation"):
        scene.repository.delete_point(scene.points[-1], "admin", request.id)


def request_person(scene: scenes.Guarded, name: str) -> Person:
    person = scene.repository.guard.state().rules.person(name)
    assert person is not None
    return person


def forge(scene: scenes.Guarded, request: str, confirmation: Confirmation) -> None:
    """Puts the confirmation there as somebody with the repository's keys could."""
    values = confirmation.as_json() | {"created_utc": "2026-03-01T12:00:00Z"}
    name = f"requests/{request}/confirmed/{confirmation.person}"
    scene.repository._objects.create_json(ObjectType.REQUEST, name, values)


def test_a_confirmation_serves_no_other_request(scene: scenes.Guarded) -> None:
    harmless = scene.confirm(scene.ask(scene.deletion(scene.points[-3])))
    other = scene.ask(scene.deletion(scene.points[-1]))
    assert harmless.authority is not None
    forge(scene, other.id, harmless.authority.confirmation)
    scene.clock.pass_s(2 * DELAY_S)
    assert scene.repository.guard.request(other.id).standing is Standing.ASKED
    with pytest.raises(RequestNotReady):
        scene.repository.delete_point(scene.points[-1], "admin", other.id)
    with pytest.raises(NotCovered):
        scene.repository.delete_point(scene.points[-1], "admin", harmless.id)
    with pytest.raises(NotCovered):
        scene.repository.remove_slot(scene.repository.slots()[0].id, harmless.id)


def test_a_request_of_another_repository_counts_for_nothing(scene: scenes.Guarded, tmp_path: Path) -> None:
    elsewhere = scenes.guarded(tmp_path / "elsewhere", 1)
    with elsewhere.repository:
        foreign = elsewhere.repository.guard
        rules = scene.repository.guard.state().rules
        foreign.change(foreign.next_state(rules))  # the same persons, by chance or not
        request = scene.confirm(scene.ask(RemoveKey("ab" * 16)))
        theirs = elsewhere.repository._objects
        assert request.authority is not None
        theirs.create_json(ObjectType.REQUEST, f"requests/{request.id}/asked", request.asked.as_json())
        found = foreign.request(request.id)
        assert (found.standing, found.flaw) == (Standing.VOID, "it was made for another repository")


@pytest.mark.parametrize("part", ["asked", "confirmed", "decision"])
def test_a_flipped_byte_carries_nothing_out(scene: scenes.Guarded, part: str) -> None:
    request = scene.ready(scene.deletion(*scene.points[-2:]))
    if part == "decision":
        scene.repository.delete_point(scene.points[-2], "admin", request)
    folder = scene.folder / "store" / "requests" / request
    (path,) = [each for each in folder.rglob("*") if each.is_file() and each.relative_to(folder).parts[0] == part]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises((Damaged, RequestNotReady)):
        scene.repository.delete_point(scene.points[-1], "admin", request)
    assert scene.points[-1] in scene.repository.points()
    asking = scene.repository.guard.asking()
    assert len(asking.requests) + len(asking.damaged) == 1
    problems = {each.name for each in scene.repository.verify().problems}
    assert problems == {str(path.relative_to(scene.folder / "store"))}


def test_the_clock_set_forward_shortens_no_delay(scene: scenes.Guarded) -> None:
    newest = scene.points[-1]
    request = scene.confirm(scene.ask(scene.deletion(newest)))
    scene.clock.pass_s(3600)
    scene.clock.now += timedelta(days=2)
    with pytest.raises(RequestNotReady, match="23 h 0 min are left"):
        scene.repository.delete_point(newest, "admin", request.id)
    scene.clock.now += timedelta(days=365)
    with pytest.raises(RequestNotReady, match="too old"):
        scene.repository.delete_point(newest, "admin", request.id)
    scene.clock.now -= timedelta(days=2 * 365)
    with pytest.raises(RequestNotReady, match="are left"):
        scene.repository.delete_point(newest, "admin", request.id)
    scene.clock.seconds += 23 * 3600
    scene.repository.delete_point(newest, "admin", request.id)
    assert newest not in scene.repository.points()


def test_a_request_goes_stale_whatever_the_clock_says(scene: scenes.Guarded) -> None:
    request = scene.ready(scene.deletion(scene.points[-1]))
    scene.clock.seconds += 16 * 86_400
    assert scene.repository.guard.request(request).standing is Standing.EXPIRED
    with pytest.raises(RequestNotReady, match="too old"):
        scene.repository.delete_point(scene.points[-1], "admin", request)


def test_an_appliance_that_sees_it_for_the_first_time_begins_to_count(scene: scenes.Guarded) -> None:
    request = scene.ready(scene.deletion(scene.points[-1]))
    with scene.reopened("elsewhere", OTHER) as other:
        with pytest.raises(RequestNotReady, match="24 h 0 min are left"):
            other.delete_point(scene.points[-1], "admin", request)
        scene.clock.pass_s(DELAY_S / 2)
        assert other.guard.request(request).remaining_s == pytest.approx(DELAY_S / 2)
    with scene.reopened("elsewhere", OTHER) as again:
        scene.clock.pass_s(DELAY_S / 2)
        again.delete_point(scene.points[-1], "admin", request)


def test_a_refused_request_is_over(scene: scenes.Guarded) -> None:
    request = scene.ready(scene.deletion(scene.points[-1]))
    scene.repository.guard.refuse(request, "nobody told me")
    with pytest.raises(RequestNotReady, match="was refused: nobody told me"):
        scene.repository.delete_point(scene.points[-1], "admin", request)
    with pytest.raises(RequestNotReady, match="refused"):
        scene.repository.guard.confirm(request, "carol", words("carol"))
    started = scene.ready(scene.deletion(scene.points[-2], scene.points[-3]))
    scene.repository.delete_point(scene.points[-2], "admin", started)
    with pytest.raises(RequestNotReady, match="too late"):
        scene.repository.guard.refuse(started, "stop")


def test_who_is_no_person_any_more_has_signed_for_nothing(scene: scenes.Guarded) -> None:
    asked_by_alice = scene.confirm(scene.ask(scene.deletion(scene.points[-1]), "alice"), "bob")
    confirmed_by_alice = scene.confirm(scene.ask(scene.deletion(scene.points[-2]), "bob"), "alice")
    rules = scene.repository.guard.state().rules
    change = scene.repository.guard.next_state(replace(rules, persons=rules.persons[1:]))
    scene.repository.guard.change(change, scene.ready(change))
    assert scene.repository.guard.request(asked_by_alice.id).standing is Standing.VOID
    assert scene.repository.guard.request(confirmed_by_alice.id).standing is Standing.ASKED
    for point, request in ((scene.points[-1], asked_by_alice), (scene.points[-2], confirmed_by_alice)):
        with pytest.raises(RequestNotReady):
            scene.repository.delete_point(point, "admin", request.id)
    with pytest.raises(PersonUnknown):
        scene.ask(scene.deletion(scene.points[-1]), "alice")


def begun_by_alice_and_bob(scene: scenes.Guarded) -> str:
    """A request of which one of two points is deleted, and then bob is no person of the guard any more."""
    repository, guard = scene.repository, scene.repository.guard
    request = scene.ready(scene.deletion(*scene.points[-2:]))
    repository.delete_point(scene.points[-2], "admin", request)
    assert guard.request(request).standing is Standing.RELEASED
    rules = guard.state().rules
    change = guard.next_state(replace(rules, persons=tuple(each for each in rules.persons if each.name != "bob")))
    guard.change(change, scene.ready(change))
    return request


def test_a_release_ends_with_the_confirmation_that_it_was_given_on(scene: scenes.Guarded) -> None:
    """Otherwise whoever confirms what was begun would have it at once, with no time for anybody to refuse it."""
    newest, guard = scene.points[-1], scene.repository.guard
    request = begun_by_alice_and_bob(scene)
    carol = guard.persons.signer(request_person(scene, "carol"), words("carol"))
    for _ in range(2):
        found = guard.request(request)
        assert (found.standing, found.flaw) == (
            Standing.VOID,
            "the confirmation that it was released on counts no more",
        )
        for attempt in (
            lambda: guard.confirm(request, "carol", words("carol")),
            lambda: scene.repository.delete_point(newest, "admin", request),
        ):
            with pytest.raises(RequestNotReady, match="counts no more") as refused:
                attempt()
            assert refused.value.hint == "ask anew"
        if not (scene.folder / "store" / "requests" / request / "confirmed" / carol.person.id).exists():
            forge(scene, request, Confirmation.by(carol, found.ask))  # past the check above, as an older program
    anew = scene.confirm(scene.ask(scene.deletion(newest)), "carol")
    assert anew.remaining_s == DELAY_S
    with pytest.raises(RequestNotReady, match="24 h 0 min are left"):
        scene.repository.delete_point(newest, "admin", anew.id)
    assert newest in scene.repository.points()


def test_a_release_that_names_no_confirmation_is_gone_on_with_once_each_has_waited(scene: scenes.Guarded) -> None:
    """As programs wrote it that knew of no such thing."""
    newest = scene.points[-1]
    request = begun_by_alice_and_bob(scene)
    name = f"requests/{request}/decision"
    values = dict(scene.repository._objects.read_json(ObjectType.REQUEST, name).values)
    (scene.folder / "store" / name).unlink()
    assert values.pop("confirmed_by")
    scene.repository._objects.create_json(ObjectType.REQUEST, name, values)
    scene.confirm(scene.repository.guard.request(request), "carol")
    with pytest.raises(RequestNotReady, match="24 h 0 min are left"):
        scene.repository.delete_point(newest, "admin", request)
    scene.clock.pass_s(DELAY_S)
    scene.repository.delete_point(newest, "admin", request)
    assert newest not in scene.repository.points()


@pytest.mark.parametrize(
    "fault", ["create requests/", "get requests/", "list requests/", "get guard/", "exists guard/"]
)
@pytest.mark.parametrize("after", [False, True])
def test_in_a_store_that_fails_nothing_goes_before_it_is_written_that_it_may(
    scene: scenes.Guarded, fault: str, after: bool
) -> None:
    method, _, prefix = fault.partition(" ")
    request = scene.ready(scene.deletion(scene.points[-1]))
    with FaultyStore(LocalStore(scene.folder / "store")) as store, scene.reopened(store=store) as repository:
        error = StoreUnavailable(method, prefix, "Input/output error")
        store.fail(method, prefix=prefix, error=error, after=after and method != "list")
        with pytest.raises(StoreUnavailable):
            repository.delete_point(scene.points[-1], "admin", request)
        assert repository.points() == scene.points
        repository.delete_point(scene.points[-1], "admin", request)
        assert repository.points() == scene.points[:-1]


# The guard itself


def test_nobody_changes_the_guard_alone(scene: scenes.Guarded) -> None:
    guard = scene.repository.guard
    rules = guard.state().rules
    mallory = guard.enrol("mallory", words("mallory"), CHEAP)  # a key of one's own makes nobody a person of the guard
    for weaker in (
        replace(rules, on=False),
        replace(rules, delay_s=0),
        replace(rules, keep_days=1),
        replace(rules, persons=(*rules.persons, mallory)),
    ):
        with pytest.raises(Guarded):
            guard.change(guard.next_state(weaker))
    with pytest.raises(PersonUnknown):
        scene.ask(guard.next_state(replace(rules, on=False)), "mallory")
    assert guard.state().number == 1
    change = guard.next_state(replace(rules, on=False))
    request = scene.ready(change)
    assert guard.change(change, request).rules.on is False
    assert guard.request(request).standing is Standing.DONE
    scene.repository.delete_point(scene.points[-1], "admin")
    guard.change(guard.next_state(rules))  # on is easy


def test_of_two_changes_the_second_is_asked_for_anew(scene: scenes.Guarded) -> None:
    guard = scene.repository.guard
    rules = guard.state().rules
    first, second = (guard.next_state(replace(rules, keep_points=count)) for count in (5, 6))
    ids = [scene.confirm(scene.ask(change)).id for change in (first, second)]
    scene.clock.pass_s(DELAY_S)
    guard.change(first, ids[0])
    with pytest.raises(RequestNotReady, match="changed since"):
        guard.change(second, ids[1])
    assert guard.state().rules.keep_points == 5


def test_a_state_that_nobody_signed_is_not_believed(scene: scenes.Guarded) -> None:
    """By somebody with the repository's keys. They could delete as well; but here it shows."""
    repository = scene.repository
    rules = repository.guard.state().rules
    off = replace(rules, on=False)
    agreed = scene.confirm(scene.ask(ChangeGuard(2, replace(rules, keep_points=9))))
    assert agreed.authority is not None
    alice, bob = (repository.guard.persons.signer(request_person(scene, name), words(name)) for name in PERSONS[:2])
    alone = Asked.by(alice, agreed.ask)
    forged: list[Authority | None] = [
        None,
        agreed.authority,  # for something else
        Authority(alone, Confirmation.by(alice, agreed.ask)),
        Authority(replace(alone, signature=bob.sign(agreed.ask.to_ask())), Confirmation.by(bob, agreed.ask)),
    ]
    for authority in forged:
        values: dict[str, object] = {
            "authority": authority.as_json() if authority else None,
            "created_utc": "2026-03-01T12:00:00Z",
            "number": 2,
            "rules": off.as_json(),
        }
        repository._objects.create_json(ObjectType.GUARD, "guard/0000000002", values)
        for point in (scene.points[0], scene.points[-1]):
            with pytest.raises(GuardForged, match="state 2"):
                repository.delete_point(point, "admin")
        for folder in ("guard", "guard.copy"):
            (scene.folder / "store" / folder / "0000000002").unlink(missing_ok=True)
    (scene.folder / "cache" / "guard").unlink()
    assert repository.guard.state().number == 1


@pytest.mark.parametrize("folder", ["guard", "guard.copy"])
@pytest.mark.parametrize("harm", ["lost", "cut", "flipped"])
def test_a_state_is_read_from_either_copy_and_put_back(scene: scenes.Guarded, folder: str, harm: str) -> None:
    path = scene.folder / "store" / folder / "0000000001"
    data = path.read_bytes()
    if harm == "lost":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if harm == "cut" else bytes([*data[:60], data[60] ^ 1, *data[61:]]))
    assert {each.name for each in scene.repository.verify().problems} == {f"{folder}/0000000001"}
    with pytest.raises(Guarded):
        scene.repository.delete_point(scene.points[-1], "admin")
    assert path.read_bytes() == data
    assert scene.repository.verify().ok


def test_a_guard_that_cannot_be_read_lets_nothing_go(scene: scenes.Guarded) -> None:
    for folder in ("guard", "guard.copy"):
        path = scene.folder / "store" / folder / "0000000001"
        path.write_bytes(path.read_bytes()[:-1])
    with scene.reopened("elsewhere", OTHER) as repository, pytest.raises(Damaged, match="guard"):
        repository.delete_point(scene.points[0], "admin")
    for folder in ("guard", "guard.copy"):
        (scene.folder / "store" / folder / "0000000001").unlink()
    with pytest.raises(GuardRolledBack, match="newest now is none"):
        scene.repository.delete_point(scene.points[0], "admin")
    assert scene.repository.points() == scene.points


def test_a_store_that_shows_no_guard_has_one_all_the_same(tmp_path: Path) -> None:
    """An empty listing is the classic lie of an object store; on an appliance that never saw the guard."""
    made = scenes.guarded(tmp_path)
    with made.repository:
        made.turn_on(*PERSONS)
    with FaultyStore(Blind(tmp_path / "store")) as store:
        store.fail("exists", error=StoreUnavailable("look for", "the guard", "503"), nth=4, prefix="guard")
        with made.reopened("elsewhere", OTHER, store) as repository:
            with pytest.raises(Guarded):
                repository.delete_point(made.points[-1], "admin")
            with pytest.raises(StoreUnavailable):
                repository.delete_point(made.points[-1], "admin")


class Blind(LocalStore):
    """Lists nothing of the guard."""

    def list(self, prefix: str):  # type: ignore[no-untyped-def]
        return iter(()) if prefix.startswith("guard") else super().list(prefix)


def test_append_only_is_for_ever(tmp_path: Path) -> None:
    scene = scenes.guarded(tmp_path)
    with scene.repository:
        rules = scene.turn_on()
        assert rules.append_only
        guard = scene.repository.guard
        for act in (scene.deletion(scene.points[-1]), guard.next_state(replace(rules, on=False))):
            with pytest.raises(Guarded, match="does not let") as refused:
                guard.permit(act)
            assert "append-only" in refused.value.hint
            with pytest.raises(Guarded):
                guard.ask(act, "alice", "x", "")
        scene.repository.delete_point(scene.points[0], "admin")


def test_with_everything_guaranteed_nothing_goes_freely(tmp_path: Path) -> None:
    scene = scenes.guarded(tmp_path)
    with scene.repository:
        scene.turn_on(*PERSONS, keep_days=None)
        with pytest.raises(Guarded, match="without asking"):
            scene.repository.delete_point(scene.points[0], "admin")
        scene.repository.delete_point(scene.points[0], "admin", scene.ready(scene.deletion(scene.points[0])))


def test_a_guard_holds_for_every_appliance_and_without_any_cache(scene: scenes.Guarded) -> None:
    with scene.reopened("a new one", OTHER) as repository, pytest.raises(Guarded):
        repository.delete_point(scene.points[-1], "admin")


def test_a_permit_is_made_by_nobody_else(scene: scenes.Guarded) -> None:
    act = scene.deletion(scene.points[0])
    with pytest.raises(TypeError):
        Permit(act, None, object())
    permit = scene.repository.guard.permit(act)
    with pytest.raises(NotCovered):
        scene.repository._points.delete(scene.points[-1], "admin", permit)


# Persons


def test_a_key_is_kept_twice_and_its_passphrase_can_be_changed(scene: scenes.Guarded) -> None:
    person = request_person(scene, "alice")
    folder = scene.folder / "store" / "persons" / person.id
    one, other = sorted(folder.iterdir())
    one.write_bytes(one.read_bytes()[:-1])
    persons = scene.repository.guard.persons
    assert persons.signer(person, words("alice")).person == person
    persons.change_passphrase(person, words("alice"), "new words", CHEAP)
    with pytest.raises(PassphraseWrong):
        persons.signer(person, words("alice"))
    persons.signer(person, "new words")
    assert not other.exists()
    for path in folder.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(PersonKeyLost):
        persons.signer(person, "new words")


def test_parameters_of_a_passphrase_are_bounded_before_they_are_followed(scene: scenes.Guarded) -> None:
    person = request_person(scene, "bob")
    objects = scene.repository._objects
    for path in sorted((scene.folder / "store" / "persons" / person.id).iterdir()):
        name = f"persons/{person.id}/{path.name}"
        values = dict(objects.read_json(ObjectType.PERSON, name).values)
        values["kdf"] = values["kdf"] | {"memory_kib": 64 << 20}
        path.unlink()
        objects.create_json(ObjectType.PERSON, name, values)
    with pytest.raises(PersonKeyLost) as lost:
        scene.repository.guard.persons.signer(person, words("bob"))
    assert "memory_kib" in str(lost.value.__cause__)
