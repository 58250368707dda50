"""Who waits before signing in, and which code counts, against a model that is a dictionary and a number."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyotp
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts import UserRecord
from appliance.acts import Role
from appliance.catalog import Catalog
from appliance.catalog.database import Database
from appliance.catalog.users import use_step
from appliance.services.accounts import throttle
from appliance.services.accounts.codes import STEP_S, read_code
from tests.unit.records import NOW

_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"  # always the same: of random ones, two steps may have one code
Step = tuple[float, str, str, bool, bool]
_FREE_MOST = {"pair": (5, 60.0), "name": (5, 60.0), "address": (20, 300.0)}


def with_catalog(body: Callable[[Catalog], None]) -> None:
    with TemporaryDirectory() as folder:
        catalog = Catalog.open(Database.at(Path(folder) / "catalog.sqlite"), Path(folder) / "lock", "a" * 32)
        try:
            body(catalog)
        finally:
            catalog.close()


# Seconds that pass, a name, a place, whether that is known for the name, whether the password is right.
_STEPS = st.tuples(
    st.sampled_from([0.0, 0.4, 1.0, 2.5, 61.0, 301.0, 86_401.0]) | st.just(0.0), st.sampled_from("ab"),
    st.sampled_from("pq"), st.booleans(), st.integers(0, 9).map(lambda number: number == 0),
)  # fmt: skip


@settings(max_examples=6, deadline=None)
@given(st.lists(_STEPS, min_size=20, max_size=30))
def test_who_waits_is_who_failed_too_often(steps: list[Step]) -> None:
    def body(catalog: Catalog) -> None:
        failed: dict[tuple[str, ...], tuple[int, float]] = {}
        now_s = 0.0

        def wait_s(key: tuple[str, ...]) -> float:
            count, last_s = failed.get(key, (0, 0.0))
            free, most_s = _FREE_MOST[key[0]]
            return last_s + min(most_s, 2.0 ** (count - free)) - now_s if count >= free else 0.0

        for passes_s, name, place, known, right in steps:
            now_s += passes_s
            now = NOW + timedelta(seconds=now_s)
            counted = [("pair", name, place), ("address", place), *([] if known else [("name", name)])]
            expected = max(0.0, *(wait_s(key) for key in counted))
            keys = throttle.keys(name, place, known=known)
            told = catalog.attempts.begin(keys.delays(), now)
            assert abs(told - expected) < 0.001
            assert told <= 300, "nobody is locked out for good"
            if told:
                continue
            failed = {key: value for key, value in failed.items() if now_s - value[1] <= 86_400}
            for key in counted:
                failed[key] = (failed.get(key, (0, 0.0))[0] + 1, now_s)
            if right:
                forget = [keys.pair] if keys.name is None else [keys.pair, keys.name]
                catalog.attempts.succeeded(forget=forget, less=[keys.address])
                for key in counted:
                    if key[0] == "address":
                        failed[key] = (failed[key][0] - 1, failed[key][1])
                    else:
                        del failed[key]

    with_catalog(body)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(-3, 3), st.booleans()), min_size=5, max_size=12))
def test_a_code_counts_once_in_its_time_and_none_before_one_that_was_used(tries: list[tuple[int, int, bool]]) -> None:
    def body(catalog: Catalog) -> None:
        used, now = -1, NOW
        catalog.users.add(UserRecord("u" * 32, "alice", Role.ADMIN, (), NOW))
        for passes_s, beside, spaced in tries:
            now += timedelta(seconds=passes_s)
            now_step = int(now.timestamp()) // STEP_S
            code = pyotp.TOTP(_SECRET).at(now, counter_offset=beside)
            proof = read_code(f" {code[:3]} {code[3:]} " if spaced else code, _SECRET, now)
            in_time = abs(beside) <= 1
            assert proof.step == (now_step + beside if in_time else None)
            assert read_code(code, None, now).step is None, "of nobody"
            if proof.step is None:
                continue
            with catalog.database.write() as connection:
                counts = use_step(connection, "u" * 32, proof.step, proof.now_step)
            assert counts is (proof.step > used)
            used = max(used, proof.step)

    with_catalog(body)
