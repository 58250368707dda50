"""Runs what takes too long for `make test`, with seeds, and says how it went.

python -m tests.soak [--what backups|schedule|replicas|permissions] [--store local|object|gcs] [--appliances 1|2]
    [--rounds N] [--seed S]
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults import killing, replicas, schedules
from tests.unit.api_site import site
from tests.unit.unchecked import Check, Rig

ROUNDS = {"backups": 200, "schedule": 300}
STORES: Mapping[str, Callable[[], schedules.MakeStore]] = {
    "gcs": schedules.gcs_store,
    "local": lambda: schedules.local_store,
    "object": schedules.object_store,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Kill backups of machines at random moments, or what writes to a repository; or take checks away.",
    )
    parser.add_argument(
        "--what", choices=("backups", "schedule", "replicas", "permissions"), default="backups",
        help="backups of machines and images, killed (default); or a schedule of backups, deletions, collections and"
        " checks of one repository, killed; or a repository in an object store of three servers that loses one; or"
        " every route of the console and the API without its check of who asks, one after the other",
    )  # fmt: skip
    parser.add_argument("--store", choices=sorted(STORES), default="local", help="of a schedule (default: local)")
    parser.add_argument("--appliances", type=int, choices=(1, 2), default=2, help="of a schedule (default: 2)")
    parser.add_argument("--rounds", type=int, help="how many (default: 200 backups, 300 rounds of a schedule)")
    parser.add_argument("--seed", type=int, help="what the choices are drawn from (default: drawn, and printed)")
    given = parser.parse_args()
    rounds = ROUNDS.get(given.what, 1) if given.rounds is None else given.rounds
    seed = secrets.randbelow(1 << 32) if given.seed is None else given.seed
    if given.what == "backups":
        return _backups(rounds, seed)
    if given.what == "replicas":
        return _replicas(rounds, seed)
    if given.what == "permissions":
        return _permissions()
    return _schedule(rounds, seed, given.store, given.appliances)


def _backups(rounds: int, seed: int) -> int:
    _say(f"kills at random moments in backups: {rounds} of them, seed {seed}")
    _say(str(killing.rounds(rounds, seed, say=_say)))
    return 0


def _schedule(rounds: int, seed: int, store: str, appliances: int) -> int:
    _say(f"a random schedule on one repository: {store} store, {appliances} appliance(s), {rounds} rounds, seed {seed}")
    make_store = STORES[store]()
    with tempfile.TemporaryDirectory(prefix="strongroom-soak-", dir="/var/tmp") as folder:
        _say(str(schedules.run(Path(folder), rounds, seed, make_store, appliances=appliances, say=_say)))
    return 0


def _replicas(rounds: int, seed: int) -> int:
    for number in range(rounds):
        _say(f"an object store that keeps everything twice loses a server: seed {seed + number}")
        with tempfile.TemporaryDirectory(prefix="strongroom-soak-", dir="/var/tmp") as folder:
            _say(replicas.run(Path(folder), seed + number, _say))
    return 0


def _permissions() -> int:
    """No seed: it takes all of them away."""
    logging.disable()  # what is refused is logged, and most of this is
    told: Counter[Check] = Counter()
    by_table: Counter[Check] = Counter()
    missed = []
    with tempfile.TemporaryDirectory(prefix="strongroom-soak-", dir="/var/tmp") as folder, site(Path(folder)) as made:
        rig = Rig.on(made)
        removals = rig.removals()
        _say(f"{len(removals)} checks of {len({each.route.name for each in removals})} routes, one after the other")
        if wrong := [each.route.name for each in removals if rig.told(each.route)] or rig.told_by_the_table():
            _say(f"told although nothing is gone: {wrong}")
            return 1
        for removal in removals:
            with rig.without(removal):
                by_http, table = rig.told(removal.route), rig.told_by_the_table()
            told[removal.check] += bool(by_http or table)
            by_table[removal.check] += bool(table and not by_http)
            if not by_http and not table:
                missed.append(str(removal))
            _say(f"{removal}: {by_http or (f'by the table alone: {table}' if table else 'NOBODY TELLS')}")
    for check in Check:
        number = sum(each.check is check for each in removals)
        _say(f"{check}: {told[check]} of {number} are told, {by_table[check]} of them by the table alone")
    return 1 if missed else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
