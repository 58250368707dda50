"""What removing, losing and damaging key slots does to who can open a repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from imaging.configuration import MachineKeyRefused, OnlyMachinesLeft
from imaging.errors import Damaged, LastSlot, NoSpace, WrongKey
from imaging.repository import Repository
from imaging.slots import MachineKey, Passphrase, RecoveryKey, Secret
from imaging.storage.contract import Store
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import CHEAP, MACHINE, ME, PASSPHRASE, back_up, content, read_disk

DATA = {"disk": content(1, 200_000)}


@dataclass(frozen=True, slots=True)
class Made:
    folder: Path
    recovery: RecoveryKey
    point: str

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def open(self, secret: Secret, store: Store | None = None) -> Repository:
        return Repository.open(store or LocalStore(self.store), secret, cache=self.folder / "cache", appliance=ME)

    def opens(self, secret: Secret) -> None:
        with self.open(secret) as repository:
            assert read_disk(repository, repository.point(self.point)) == DATA["disk"]

    def slots_of(self, kind: str) -> list[str]:
        with self.open(MACHINE) as repository:
            return [slot.id for slot in repository.slots() if slot.kind == kind]

    def objects_of(self, kind: str) -> list[Path]:
        return [self.store / folder / id for id in self.slots_of(kind) for folder in ("keys", "keys.copy")]

    def remove(self, kind: str) -> None:
        with self.open(MACHINE) as repository:
            for id in self.slots_of(kind):
                repository.remove_slot(id)

    def lose_keys(self) -> None:
        shutil.rmtree(self.store / "keys")
        shutil.rmtree(self.store / "keys.copy")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """With a passphrase, a recovery key and a machine key; index objects carry the recovery slot."""
    repository, recovery = Repository.create(
        LocalStore.make(tmp_path / "store"), passphrase=PASSPHRASE, machine_key=MACHINE.secret,
        cache=tmp_path / "cache", appliance=ME, cost=CHEAP,
    )  # fmt: skip
    with repository:
        return Made(tmp_path, recovery, back_up(repository, "web", DATA).id)


def test_a_removed_recovery_key_is_refused_with_the_way_out(made: Made) -> None:
    made.remove("recovery")
    with pytest.raises(WrongKey, match="recovery") as refused:
        made.open(made.recovery)
    assert "passphrase" in refused.value.hint
    made.opens(Passphrase(PASSPHRASE))


def test_a_removed_recovery_key_is_refused_beside_another_one(made: Made) -> None:
    another = RecoveryKey.new()
    with made.open(MACHINE) as repository:
        added = repository.add_slot(another, "second")
        (first,) = [slot.id for slot in repository.slots() if slot.kind == "recovery" and slot.id != added.id]
        repository.remove_slot(first)
    made.opens(another)
    with pytest.raises(WrongKey, match="opens with this recovery key"):
        made.open(made.recovery)


def test_when_every_slot_is_lost_the_recovery_key_opens_and_its_slot_is_put_back(made: Made) -> None:
    (lost,) = made.slots_of("recovery")
    made.lose_keys()
    made.opens(made.recovery)
    for folder in ("keys", "keys.copy"):
        assert [path.name for path in (made.store / folder).iterdir()] == [lost]
    # What the worst day does next: an appliance and a passphrase of its own. The key must go on opening.
    with made.open(made.recovery) as repository:
        repository.add_slot(MACHINE, "a new appliance")
        repository.add_slot(Passphrase("quite another"), "a new passphrase", CHEAP)
        assert sorted(slot.kind for slot in repository.slots()) == ["machine", "passphrase", "recovery"]
    made.opens(made.recovery)


def test_where_only_appliances_have_slots_left_the_recovery_key_opens(made: Made) -> None:
    for path in (*made.objects_of("recovery"), *made.objects_of("passphrase")):
        path.unlink()
    assert made.slots_of("recovery") == []
    made.opens(made.recovery)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:99] + b"?" + data[100:]]
)
def test_a_recovery_slot_damaged_twice_is_stood_in_for(made: Made, damage: Callable[[bytes], bytes]) -> None:
    paths = made.objects_of("recovery")
    for path in paths:
        path.chmod(0o600)
        path.write_bytes(damage(path.read_bytes()))
    before = [path.read_bytes() for path in paths]
    made.opens(made.recovery)
    assert [path.read_bytes() for path in paths] == before, "what is not understood stays as it is"


def test_a_full_store_opens_with_a_slot_that_cannot_be_put_back(made: Made) -> None:
    made.lose_keys()
    with FaultyStore(LocalStore(made.store)) as store:
        store.fail("create", prefix="keys", error=NoSpace("write", "keys"))
        with made.open(made.recovery, store) as repository:
            assert read_disk(repository, repository.point(made.point)) == DATA["disk"]


@pytest.mark.parametrize("secret", [Passphrase("wrong"), RecoveryKey(b"x" * 32)])
def test_a_wrong_secret_opens_nothing_that_is_carried(made: Made, secret: Passphrase | RecoveryKey) -> None:
    made.lose_keys()
    with pytest.raises((WrongKey, Damaged)) as refused:
        made.open(secret)
    assert refused.value.hint
    assert not (made.store / "keys").exists()


def test_the_last_slot_that_is_no_machine_key_stays(made: Made) -> None:
    made.remove("passphrase")
    (recovery,) = made.slots_of("recovery")
    with made.open(MACHINE) as repository:
        with pytest.raises(OnlyMachinesLeft, match=recovery) as refused:
            repository.remove_slot(recovery)
        assert isinstance(refused.value, LastSlot)
        assert "key add" in refused.value.hint
        repository.add_slot(Passphrase("in its place"), "", CHEAP)
        repository.remove_slot(recovery)
    made.opens(Passphrase("in its place"))


def test_machine_keys_are_removed_as_long_as_anything_else_opens(made: Made) -> None:
    with made.open(MACHINE) as repository:
        other = repository.add_slot(MachineKey(b"n" * 32), "another appliance")
        repository.remove_slot(other.id)
    made.remove("machine")
    with pytest.raises(MachineKeyRefused, match=str(made.store)) as refused:
        made.open(MACHINE)
    assert "machine.key" in refused.value.hint
    assert f"strongroom repository adopt {made.store}" in refused.value.hint
    made.opens(made.recovery)
