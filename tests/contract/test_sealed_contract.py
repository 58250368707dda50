"""Second factors are sealed in every engine's catalog, and whoever opens the repository has the key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from appliance import home
from appliance.bootstrap import Appliance
from appliance.catalog import tables
from appliance.catalog.errors import CatalogKeyMissing
from appliance.sealed import CatalogKey, NotOpened, of_user
from appliance.services import repositories
from appliance.services.accounts.errors import LinkUnusable, SignInRefused
from appliance.settings import Settings, load
from imaging.slots import RecoveryKey
from tests.contract.catalogs import downgrade
from tests.lab.postgres_server import running
from tests.unit.accounts import Accounts, Clock


@pytest.fixture(params=["sqlite", "postgresql"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    made = {"STRONGROOM_HOME": str(tmp_path / "home"), "STRONGROOM_PASSPHRASE": "unused"}
    if request.param == "postgresql":
        made["STRONGROOM_CATALOG_URL"] = running().fresh()
    return made


@pytest.fixture
def accounts(environment: dict[str, str]) -> Iterator[Accounts]:
    clock = Clock()
    with Appliance(load(environment), clock=clock) as appliance:
        yield Accounts(appliance, clock)


def sealed(appliance: Appliance) -> dict[str, tuple[str | None, str | None]]:
    """What the catalog has of each user's second factor: as it is, and sealed."""
    users = tables.users
    with appliance.catalog.database.read() as connection:
        return {
            row.name: (row.totp_secret, row.totp_sealed)
            for row in connection.execute(select(users.c.name, users.c.totp_secret, users.c.totp_sealed))
        }


def key_file(appliance: Appliance) -> Path:
    record = appliance.catalog.sealing.current()
    assert record is not None
    return appliance.settings.catalog_key_file(record.id)


def test_a_row_has_no_secret_and_opens_for_nobody_else(accounts: Accounts) -> None:
    link = accounts.setting_up.first_link()
    with accounts.appliance.catalog.database.read() as connection:
        offered = connection.execute(select(tables.setup_links)).one()
    assert (offered.totp_secret, accounts.setting_up.offer(link.secret).secret in str(offered)) == ("", False)
    accounts.use(link.secret, "alice")
    accounts.add("bob")
    rows = sealed(accounts.appliance)
    assert [plain for plain, _ in rows.values()] == [None, None]
    assert accounts.secrets["alice"] not in str(rows)
    assert key_file(accounts.appliance).stat().st_mode & 0o777 == 0o600
    assert accounts.secrets["alice"] not in repr(accounts.appliance.catalog_keys.current())
    # Whoever can write to the catalog gives alice the second factor that they have: bob's.
    users = tables.users
    with accounts.appliance.catalog.database.write() as connection:
        connection.execute(update(users).where(users.c.name == "alice").values(totp_sealed=rows["bob"][1]))
    accounts.secrets["alice"], own = accounts.secrets["bob"], accounts.secrets["alice"]
    with pytest.raises(SignInRefused):
        accounts.sign_in("alice")
    with accounts.appliance.catalog.database.write() as connection:
        connection.execute(update(users).where(users.c.name == "alice").values(totp_sealed=rows["alice"][1]))
    accounts.secrets["alice"] = own
    accounts.sign_in("alice")


def test_what_an_older_program_left_is_sealed_at_the_next_start(
    accounts: Accounts, environment: dict[str, str], tmp_path: Path
) -> None:
    accounts.add("alice")
    secret, database = accounts.secrets["alice"], accounts.appliance.catalog.database
    link = accounts.users.reset(accounts.local, "alice").link
    offered = accounts.setting_up.offer(link.secret).secret
    with database.write() as connection:
        connection.execute(update(tables.users).values(totp_secret=secret))
        connection.execute(update(tables.setup_links).values(totp_secret=offered))
        downgrade(connection, "0015")
    key_file_before = set((tmp_path / "home" / "keys").iterdir())
    for _ in range(2):
        with Appliance(load(environment), clock=accounts.clock) as again:
            (row,) = sealed(again).values()
            assert (row[0], again.catalog.sealing.is_owed()) == (None, False)
    assert len(set((tmp_path / "home" / "keys").iterdir()) - key_file_before) == 1
    for file in (tmp_path / "home").glob("catalog.sqlite*"):
        assert secret.encode() not in file.read_bytes(), "nothing is left between rows either"
    accounts.sign_in("alice")
    assert accounts.setting_up.offer(link.secret).secret == offered


def test_another_home_gets_the_key_from_the_repository(
    accounts: Accounts, environment: dict[str, str], tmp_path: Path
) -> None:
    """The first admin was set up before there was a repository; then the home is lost, or another one joins."""
    recovery: list[str] = []
    accounts.add("alice")
    repositories.init(accounts.appliance.settings, tmp_path / "repository", "a passphrase", recovery.append)
    settings: Settings = load({**environment, "STRONGROOM_HOME": str(tmp_path / "other")})
    if not settings.catalog.url:
        (tmp_path / "other").mkdir()
        accounts.appliance.close()
        shutil.copy(tmp_path / "home" / "catalog.sqlite", settings.catalog_file)
    with Appliance(settings, clock=accounts.clock) as bare:
        with pytest.raises(CatalogKeyMissing, match="no such file") as missing:
            Accounts(bare, accounts.clock).setting_up.new_link(None)
        assert "repository info" in missing.value.hint
        home.write_catalog_key(settings, "0" * 16, bytes(32))
        with pytest.raises(CatalogKeyMissing, match="those of other catalogs"):
            bare.catalog_keys.current()
    repositories.adopt(settings, tmp_path / "repository", RecoveryKey.parse(recovery[0]))
    with Appliance(load({**environment, "STRONGROOM_HOME": str(settings.home)}), clock=accounts.clock) as other:
        theirs = Accounts(
            other,
            accounts.clock,
        )
        theirs.secrets = accounts.secrets
        theirs.sign_in("alice")
        # The file of another catalog, under this one's name.
        good = key_file(other).read_bytes()
        home.write_catalog_key(settings, key_file(other).stem.removeprefix("catalog-"), bytes(32))
        with pytest.raises(CatalogKeyMissing, match="move it away"):
            theirs.sign_in("alice")
        key_file(other).unlink()
        other.catalog_keys.share_where_owed(lambda: other.repository)
        assert key_file(other).read_bytes() == good
        theirs.sign_in("alice")


def test_a_key_is_renewed_and_one_that_is_lost_costs_second_factors(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob")
    link = accounts.users.reset(accounts.local, "bob").link
    before = sealed(accounts.appliance)
    assert accounts.users.renew_key(accounts.local) == ()
    assert sealed(accounts.appliance)["alice"] != before["alice"]
    with pytest.raises(LinkUnusable):
        accounts.setting_up.offer(link.secret)
    accounts.sign_in("alice")
    key_file(accounts.appliance).unlink()
    with pytest.raises(CatalogKeyMissing) as missing:
        accounts.sign_in("alice")
    assert "renew-key" in missing.value.hint
    assert accounts.users.renew_key(accounts.local) == ("alice", "bob")
    with pytest.raises(SignInRefused):
        accounts.sign_in("alice")
    accounts.use(accounts.users.reset(accounts.local, "alice").link.secret, "alice")
    accounts.sign_in("alice")


def test_of_two_that_make_the_key_at_once_one_does(accounts: Accounts) -> None:
    from appliance.sealed import CatalogKeyRecord

    mine = CatalogKey.new()
    with accounts.appliance.catalog.database.write() as connection:
        connection.execute(
            insert(tables.catalog_keys).values(
                id=mine.id, created_utc=accounts.clock.now, repository=None, wrapped=None
            )
        )
    other = CatalogKey.new()
    held = accounts.appliance.catalog.sealing.found(CatalogKeyRecord(other.id, accounts.clock.now))
    assert held.id == mine.id
    with pytest.raises(NotOpened):
        other.open(of_user("a"), mine.seal(of_user("a"), "x"))
