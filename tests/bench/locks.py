"""What Object Lock costs in requests and time: `python -m tests.bench.locks [OBJECTS]`, on a real server on loopback.

The first sweep asks about every lock, the second about none; then all are renewed, deleted by an intruder, and brought
back. Objects are small, but for those that are brought back at the end: packs of 16 MiB.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from imaging.packs import pack_name
from imaging.storage.s3 import Limits
from tests.faults.locked import LockedRig, rig
from tests.faults.repositories import back_up
from tests.faults.schedules import Silent
from tests.lab.s3_server import running

_OBJECTS: Final = 5000
_PACKS: Final = 16
_PACK_BYTES: Final = 16 << 20
_CONNECTIONS: Final = 16

T = TypeVar("T")


def main(arguments: list[str]) -> int:
    count = int(arguments[0]) if arguments else _OBJECTS
    server = running()
    with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as folder:
        locked = replace(rig(Path(folder), server, days=30, extra_days=7), limits=Limits(_CONNECTIONS), page=1000)
        print(f"{datetime.now(UTC):%Y-%m-%d}: {count} objects, {_CONNECTIONS} connections")
        with locked.make() as repository:
            back_up(repository, "web", {"disk": secrets.token_bytes(1 << 20)})
            names = [pack_name(secrets.token_bytes(32)) for _ in range(count)]
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                list(pool.map(lambda name: repository.store.put(name, [name.encode()]), names))
            _measured("listing versions", count, lambda: len(list(locked.versions.list())))
            longer = locked.with_days(60)

            def sweep(rig: LockedRig) -> object:
                done = repository.sweep_locks(
                    rig.versions, Silent(), dry_run=False, ask_all=False, connections=_CONNECTIONS
                )
                return f"{done.asked} asked, {done.extended} renewed"

            _measured("first sweep: every lock is asked for", count, lambda: sweep(locked))
            _measured("next sweep: nothing is due", count, lambda: sweep(locked))
            _measured("a sweep that renews all", count, lambda: sweep(longer))
            _bring_back(locked)
    return 0


def _bring_back(locked: LockedRig) -> None:
    content = secrets.token_bytes(_PACK_BYTES)
    names = [pack_name(secrets.token_bytes(32)) for _ in range(_PACKS)]
    for name in names:
        locked.store.put(name, [content])
    versions = [version for version in locked.versions.list("packs/") if version.name in names]
    locked.store.delete_many(names)

    def back() -> object:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(locked.versions.bring_back, versions))
        return f"{_PACKS} packs of 16 MiB"

    _measured("bringing back", _PACKS, back)


def _measured(label: str, count: int, act: Callable[[], object]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    what = act()
    took, spent = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"{label:40} {took:7.2f} s  {count / took:8.0f}/s  {1e3 * spent / count:6.2f} ms CPU each  ({what})", flush=True
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
