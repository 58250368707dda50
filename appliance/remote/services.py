"""The services of another appliance, as far as commands use them; what each returns is told where it is defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from appliance.catalog.errors import RecordMissing
from appliance.models import PointRecord, RecoveryRecord, RecoveryState, RunRecord, RunState
from appliance.planning.plans import Numbers, Plan
from appliance.policy.policies import Policy, read_policy
from appliance.policy.previews import Chosen, Preview
from appliance.policy.retention import Candidate, Rules
from appliance.policy.selectors import Clause, Kind, Machine
from appliance.policy.stored import MachinePause
from appliance.progress import SILENT, Progress
from appliance.remote.client import Client
from appliance.remote.errors import MigrationEnded, RemoteUnreachable
from appliance.reports.compliance import Report
from appliance.services.backup.watching import HowFar
from appliance.services.inventory import KnownMachines
from appliance.services.point_records import oldest_first
from appliance.services.policies import KnownPolicy, PolicyList
from appliance.services.policies.service import Losing
from appliance.services.queue.service import Asked, Seen
from appliance.services.runlogs import RunLog

_LOOK_S: Final = 1.0
_LOOKS_MISSED_MAX: Final = 600  # ten minutes at least: as long as an update may take
_KEPT: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_NOT_TOLD: Final = {"manifest_name": ""}
_SOCKETS: Final = {"socket": "", "host_socket": ""}


class RemoteQueue:
    """QueueService. Borrows the client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def ask_machine(
        self, name: str, host: str | None = None, *, full: bool = False, limit_bytes_s: int | None = None
    ) -> Asked:
        return self._asked({"machine": name, "host": host, "full": full, "limit_bytes_s": limit_bytes_s})

    def ask_image(self, path: Path, image_format: str, name: str, *, limit_bytes_s: int | None = None) -> Asked:
        image = {"path": str(path), "format": image_format, "name": name}
        return self._asked({"image": image, "limit_bytes_s": limit_bytes_s})

    def ask_restore(
        self, name: str, point: str, host: str, *, new_name: str | None = None, force: bool = False,
        storage: str | None = None, limit_bytes_s: int | None = None,
    ) -> Asked:  # fmt: skip
        """`force`: in place, and only then."""
        wanted = {"machine": name, "point": point, "host": host, "limit_bytes_s": limit_bytes_s}
        if force:
            return self._asked(wanted, "/restores/in-place")
        return self._asked(wanted | {"new_name": new_name, "storage": storage}, "/restores")

    def ask_restore_disk(
        self, name: str, point: str, disk: str | None, target: Path, image_format: str, *, force: bool = False,
        limit_bytes_s: int | None = None,
    ) -> Asked:  # fmt: skip
        """`target`: of the other appliance; what is there stays."""
        assert not force, "nothing is overwritten from elsewhere"
        wanted = {
            "machine": name, "point": point, "disk": disk, "target": str(target), "format": image_format,
            "limit_bytes_s": limit_bytes_s,
        }  # fmt: skip
        return self._asked(wanted, "/restores/disk")

    def log(self, id: str) -> RunLog:
        return self._client.read(RunLog, self._client.get(f"/runs/{_part(id)}/log"))

    def again(self, wanted: str) -> Asked:
        return self._read(self._client.post(f"/runs/{_part(wanted)}/retry"))

    def cancel(self, wanted: str, tell: Callable[[str], None] = lambda _: None) -> RunRecord:
        found = self._client.post(f"/runs/{_part(wanted)}/cancel")
        for sentence in found.get("left", ()):  # none: it is of a version that does not tell
            tell(str(sentence))
        return self._client.read(RunRecord, found)

    def runs(self, state: RunState | None = None, limit: int | None = None) -> tuple[RunRecord, ...]:
        query = {"state": None if state is None else state.value}
        return tuple(self._client.read(RunRecord, each) for each in self._client.items("/runs", query, limit))

    def run(self, wanted: str) -> Seen:
        found = self._client.get(f"/runs/{_part(wanted)}")
        far = found["progress"]
        return Seen(
            self._client.read(RunRecord, found),
            found["alive"],
            None if far is None else HowFar(far["label"], far["done_bytes"], far["total_bytes"]),
        )

    def _asked(self, document: Mapping[str, object], path: str = "/runs") -> Asked:
        return self._read(self._client.post(path, {k: v for k, v in document.items() if v is not None}))

    def _read(self, document: Any) -> Asked:
        return Asked(self._client.read(RunRecord, document), document["new"], document["worker"])


class RemotePoints:
    """PointService."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def refresh(self) -> tuple[()]:
        """The other appliance does that."""
        return ()

    def list(self, name: str | None = None) -> tuple[PointRecord, ...]:
        keys = [None] if name is None else _keys(self._client, name)
        found = [each for key in keys for each in self._client.items("/points", {"machine": key})]
        return oldest_first(self._client.read(PointRecord, each) for each in found)

    def find(self, id: str) -> PointRecord:
        """Unlike `resolve`, what the catalog has of it."""
        return self._client.read(PointRecord, self._client.get(f"/points/{_part(id)}"))

    def remove(self, id: str) -> None:
        """As `delete`."""
        self._client.delete(f"/points/{_part(id)}")

    def keep(self, id: str, *, off: bool) -> PointRecord:
        """As `protect`, or `unprotect`."""
        path = f"/points/{_part(id)}/protection"
        return self._client.read(PointRecord, self._client.delete(path) if off else self._client.put(path))


class RemoteInventory:
    """InventoryService, for what was last seen."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def known(self, host: str | None = None) -> KnownMachines:
        return self._client.read(KnownMachines, self._client.get("/inventory", {"host": host}))


class RemoteRecoveries:
    """RecoveryService. `sleep`: between two looks at a migration."""

    def __init__(self, client: Client, sleep: Callable[[float], object]) -> None:
        self._client = client
        self._sleep = sleep

    def start(
        self,
        name: str,
        point: str,
        *,
        host: str | None = None,
        new_name: str | None = None,
        network: str | None = None,
        memory_bytes: int | None = None,
        vcpus: int | None = None,
        progress: Progress = SILENT,
    ) -> RecoveryRecord:
        wanted = {
            "machine": name, "point": point, "host": host, "new_name": new_name, "network": network,
            "memory_bytes": memory_bytes, "vcpus": vcpus,
        }  # fmt: skip
        return self._read(self._client.post("/recoveries", {k: v for k, v in wanted.items() if v is not None}))

    def list(self, *, ended: bool = False, everyones: bool = False) -> tuple[RecoveryRecord, ...]:
        found = self._client.items("/recoveries", {"active": "false" if ended else "true"})
        return tuple(reversed([self._read(each) for each in found]))

    def find(self, id: str) -> RecoveryRecord:
        return self._read(self._client.get(f"/recoveries/{_part(id)}"))

    def migrate(
        self,
        id: str,
        *,
        to: str | None = None,
        image_format: str = "qcow2",
        bandwidth_bytes_s: int | None = None,
        progress: Progress = SILENT,
    ) -> RecoveryRecord:
        """It goes on there, whatever happens here. The other appliance's settings say how fast. MigrationEnded."""
        if bandwidth_bytes_s is not None:
            progress.note(
                "how fast it goes is what the other appliance's settings say (recovery.migrate_bandwidth_bytes_s)"
            )
        wanted = {"format": image_format} | ({} if to is None else {"to": to})
        return self.watched(self._read(self._client.post(f"/recoveries/{_part(id)}/migrate", wanted)), progress)

    def watched(self, record: RecoveryRecord, progress: Progress) -> RecoveryRecord:
        """Until it moves no more. An appliance that does not answer is waited for, though not for ever. MigrationEnded,
        RemoteUnreachable."""
        missed = 0
        while record.state is RecoveryState.MIGRATING:
            self._sleep(_LOOK_S)
            try:
                record, missed = self.find(record.id), 0
            except RemoteUnreachable as err:
                missed += 1
                if missed > _LOOKS_MISSED_MAX:
                    raise
                if missed == 1:
                    progress.note(f"{err}; the disks move on as soon as that does: waiting for it")
        if record.state is not RecoveryState.MIGRATED:
            raise MigrationEnded(record.id, record.state.value, record.error)
        return record

    def discard(self, id: str) -> RecoveryRecord:
        return self._read(self._client.post(f"/recoveries/{_part(id)}/discard"))

    def _read(self, document: Any) -> RecoveryRecord:
        disks = [_SOCKETS | disk for disk in document["disks"]]
        return self._client.read(RecoveryRecord, _NOT_TOLD | document | {"disks": disks})


class RemotePlanning:
    """PlanningService."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def plan(
        self, *, months: int, rules: Rules | None = None, window_s: float | None = None,
        restore_bytes_s: float | None = None, exact: bool = False, progress: Progress = SILENT,
    ) -> Plan:  # fmt: skip
        return self._plan(months, rules or Rules(), window_s, restore_bytes_s, {"exact": str(exact).lower()})

    def plan_typed(
        self, numbers: Numbers, rules: Rules, *, months: int, window_s: float | None = None,
        restore_bytes_s: float | None = None,
    ) -> Plan:  # fmt: skip
        typed = {
            "machines": numbers.machines, "machine_bytes": numbers.size_bytes, "runs_a_day": numbers.runs_a_day,
            "change_percent": numbers.change_percent, "reduction": numbers.reduction,
            "read_bytes_s": round(numbers.read_bytes_s),
        }  # fmt: skip
        return self._plan(months, rules, window_s, restore_bytes_s, typed)

    def _plan(
        self,
        months: int,
        rules: Rules,
        window_s: float | None,
        restore_bytes_s: float | None,
        more: Mapping[str, object],
    ) -> Plan:
        query = {f"keep_{kind}": getattr(rules, kind) for kind in _KEPT} | {
            "months": months, "window_hours": None if window_s is None else window_s / 3600,
            "restore_bytes_s": None if restore_bytes_s is None else round(restore_bytes_s),
        }  # fmt: skip
        return self._client.read(Plan, self._client.get("/plan", {**query, **more}))


class RemoteReports:
    """ReportService; the other appliance knows which month is over, and its own zone."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def month(self, month: str | None, zone: str | None) -> Report:
        return self._client.read(Report, self._client.get("/report", {"month": month, "zone": zone}))


class RemotePolicies:
    """PolicyService."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> PolicyList:
        return PolicyList(tuple(self._read(each) for each in self._client.get("/policies")["items"]), ())

    def get(self, name: str) -> KnownPolicy:
        return self._read(self._client.get(f"/policies/{_part(name)}"))

    def preview(self, policy: Policy) -> Preview:
        found = self._client.post("/policies/preview", policy.to_json())
        due = self._client.read(tuple[datetime, ...], found["due_utc"])
        return Preview(
            policy, _chosen(found["selected"]), _chosen(found["excluded"]), found["words"], due,
            policy.schedule.tzinfo, tuple(found["remarks"]),
        )  # fmt: skip

    def stored(self, name: str) -> Stored:
        found = self._client.get(f"/policies/{_part(name)}")
        return Stored(found["document"], int(found["version"]))

    def losing(self, name: str, policy: Policy | None) -> tuple[Losing, ...]:
        if policy is None:
            found = self._client.get(f"/policies/{_part(name)}/losing")
        else:
            found = self._client.post(f"/policies/{_part(name)}/losing", policy.to_json())
        return tuple(
            Losing(_machine(each["machine"]), self._client.read(tuple[Candidate, ...], each["points"]))
            for each in found["items"]
        )

    def add(self, policy: Policy) -> KnownPolicy:
        return self._read(self._client.post("/policies", policy.to_json()))

    def replace(self, name: str, policy: Policy, *, seen: int | None = None) -> KnownPolicy:
        return self._read(self._client.put(f"/policies/{_part(name)}", policy.to_json(), {"if_version": seen}))

    def remove(self, name: str, *, seen: int | None = None) -> None:
        self._client.delete(f"/policies/{_part(name)}", {"if_version": seen})

    def pause(self, name: str) -> KnownPolicy:
        return self._read(self._client.post(f"/policies/{_part(name)}/pause"))

    def resume(self, name: str) -> KnownPolicy:
        return self._read(self._client.post(f"/policies/{_part(name)}/resume"))

    def pauses(self) -> tuple[MachinePause, ...]:
        return tuple(self._client.read(MachinePause, each) for each in self._client.get("/pauses")["items"])

    def pause_machine(self, name: str, host: str | None = None) -> Machine:
        document = {"machine": name} | ({} if host is None else {"host": host})
        return _machine(self._client.post("/pauses", document))

    def resume_machine(self, name: str, host: str | None = None) -> bool:
        paused = self.pauses()
        self._client.delete(f"/pauses/{_part(name)}", {"host": host})
        return self.pauses() != paused

    def _read(self, found: Any) -> KnownPolicy:
        fields = self._client.read(_Fields, found)
        return KnownPolicy(
            read_policy(found["document"]), fields.version, fields.since_utc, fields.changed_utc, fields.paused_utc
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Of a policy, what a change of it begins with."""

    document: dict[str, object]
    version: int


@dataclass(frozen=True, slots=True)
class _Fields:
    """Of a policy, beside the policy."""

    version: int
    since_utc: datetime
    changed_utc: datetime
    paused_utc: datetime | None


def _keys(client: Client, name: str) -> list[str | None]:
    """Of the machines that have this name, UUID or key. RecordMissing."""
    bare = name.partition(":")[2] if name.partition(":")[0] in tuple(Kind) else name
    found = [
        each["key"]
        for each in client.items("/machines", {"text": bare})
        if name in (each["key"], each["machine"]["name"], each["machine"]["id"])
        or name == f"{each['machine']['kind']}:{each['machine']['name']}"
    ]
    if not found:
        raise RecordMissing("machine", name, hint="'vm list' and 'status' show those that are known there.")
    return list(found)


def _chosen(items: Any) -> tuple[Chosen, ...]:
    return tuple(
        Chosen(
            _machine(each["machine"]),
            Clause(**{name: text for name, text in each["clause"].items() if name != "all"}),
            tuple(each["others"]),
        )
        for each in items
    )


def _machine(found: Any) -> Machine:
    return Machine(Kind(found["kind"]), found["id"], found["name"], found["host"], frozenset(found["tags"]))


def _part(text: str) -> str:
    """Of a path."""
    return quote(text, safe="")
