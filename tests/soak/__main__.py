"""Runs what takes too long for `make test`, with seeds, and says how it went.

python -m tests.soak [--what backups|schedule|replicas] [--store local|object|gcs] [--appliances 1|2] [--rounds N]
    [--seed S]
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults import killing, replicas, schedules

ROUNDS = {"backups": 200, "schedule": 300}
STORES: Mapping[str, Callable[[], schedules.MakeStore]] = {
    "gcs": schedules.gcs_store,
    "local": lambda: schedules.local_store,
    "object": schedules.object_store,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Kill backups of machines at random moments, or what writes to a repository.",
    )
    parser.add_argument(
        "--what", choices=("backups", "schedule", "replicas"), default="backups",
        help="backups of machines and images, killed (default); or a schedule of backups, deletions, collections and"
        " checks of one repository, killed; or a repository in an object store of three servers that loses one",
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


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
