"""Every act that changes or reveals something, and the one table that says which role may do which. Pure.

The rule: what is not in the table may nobody do. An act is of machines, of the fleet (whatever is everybody's: hosts,
policies, the repository, accounts), or of one's own account. Who is granted some machines only does acts of machines,
on those, and none of the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Role(StrEnum):
    ADMIN = "admin"  # everything
    OPERATOR = "operator"  # backs up and recovers
    RESTORER = "restorer"  # files out of restore points of the machines granted to them, and nothing else
    VIEWER = "viewer"  # looks
    AUDITOR = "auditor"  # looks, also at accounts and at the audit


class Scope(StrEnum):
    MACHINE = "machine"
    FLEET = "fleet"
    SELF = "self"


class Act(StrEnum):
    # Looking
    OVERVIEW_SEE = "overview.see"  # also search, and what is live on pages
    MACHINE_SEE = "machine.see"
    POINT_SEE = "point.see"
    RUN_SEE = "run.see"
    RECOVERY_SEE = "recovery.see"
    POLICY_SEE = "policy.see"
    HOST_SEE = "host.see"
    REPOSITORY_SEE = "repository.see"
    REQUEST_SEE = "request.see"
    APPLIANCE_SEE = "appliance.see"
    SETTINGS_SEE = "settings.see"
    NOTICE_SEE = "notice.see"
    REPORT_SEE = "report.see"
    PLAN_SEE = "plan.see"
    METRICS_SEE = "metrics.see"
    USER_SEE = "user.see"  # also sessions and tokens
    AUDIT_SEE = "audit.see"
    ACCOUNT_SEE = "account.see"  # one's own, with its sessions

    # Backups
    RUN_START = "run.start"
    RUN_CANCEL = "run.cancel"
    RUN_RETRY = "run.retry"
    RUN_DISMISS = "run.dismiss"
    MACHINE_PAUSE = "machine.pause"
    MACHINE_RESUME = "machine.resume"
    MACHINE_FORGET_CHECKPOINTS = "machine.forget-checkpoints"

    # Restore points
    POINT_PROTECT = "point.protect"
    POINT_UNPROTECT = "point.unprotect"
    POINT_DELETE = "point.delete"
    POINT_PRUNE = "point.prune"

    # Recovery
    RECOVERY_START = "recovery.start"
    RECOVERY_MIGRATE = "recovery.migrate"
    RECOVERY_RESUME = "recovery.resume"
    RECOVERY_DISCARD = "recovery.discard"
    CONSOLE_OPEN = "console.open"
    RESTORE_START = "restore.start"
    RESTORE_OVERWRITE = "restore.overwrite"  # in place of what is there
    EXPORT_START = "export.start"  # whole disks, as NBD exports or mounted
    EXPORT_STOP = "export.stop"
    FILE_BROWSE = "file.browse"
    FILE_READ = "file.read"

    # Hosts and policies
    HOST_ADD = "host.add"
    HOST_TEST = "host.test"
    HOST_REMOVE = "host.remove"
    INVENTORY_REFRESH = "inventory.refresh"
    POLICY_SAVE = "policy.save"
    POLICY_REMOVE = "policy.remove"
    POLICY_PAUSE = "policy.pause"
    POLICY_RESUME = "policy.resume"

    # The repository
    REPOSITORY_INITIALISE = "repository.initialise"
    REPOSITORY_ADOPT = "repository.adopt"
    REPOSITORY_VERIFY = "repository.verify"
    REPOSITORY_COLLECT = "repository.collect"
    REPOSITORY_COPY = "repository.copy"
    REPOSITORY_REPAIR = "repository.repair"
    REPOSITORY_LOCK = "repository.lock"
    REPOSITORY_UNDO = "repository.undo"
    KEY_ADD = "key.add"
    KEY_REMOVE = "key.remove"
    HOLD_RELEASE = "hold.release"
    GUARD_ENROL = "guard.enrol"
    GUARD_PASSPHRASE = "guard.passphrase"  # noqa: S105
    GUARD_ON = "guard.on"
    GUARD_CHANGE = "guard.change"
    GUARD_OFF = "guard.off"
    REQUEST_ASK = "request.ask"
    REQUEST_CONFIRM = "request.confirm"
    REQUEST_REFUSE = "request.refuse"
    REQUEST_APPLY = "request.apply"

    # The appliance
    APPLIANCE_TAKE_OVER = "appliance.take-over"
    SETTINGS_SAVE = "settings.save"
    NOTICE_TEST = "notice.test"
    AUDIT_EXPORT = "audit.export"
    AUDIT_ACCEPT = "audit.accept"  # that the chain is another one than it was

    # Accounts
    USER_SAVE = "user.save"
    USER_DISABLE = "user.disable"
    USER_ENABLE = "user.enable"
    USER_RESET = "user.reset"
    USER_REMOVE = "user.remove"
    TOKEN_ADD = "token.add"  # noqa: S105
    TOKEN_REVOKE = "token.revoke"  # noqa: S105
    SESSION_START = "session.start"
    SESSION_END = "session.end"
    SESSION_REVOKE = "session.revoke"  # another's
    ACCOUNT_SET_UP = "account.set-up"
    ACCOUNT_CHANGE = "account.change"  # one's own passphrase, second factor, recovery codes
    ACCOUNT_REAUTHENTICATE = "account.reauthenticate"


@dataclass(frozen=True, slots=True)
class Traits:
    """`audited`: what becomes of it is written down; of the others refusals alone. `proven`: whoever does it in a
    session has just proven again who they are."""

    scope: Scope
    roles: frozenset[Role]
    audited: bool = True
    proven: bool = False


_ADMIN = frozenset({Role.ADMIN})
_WORKS = _ADMIN | {Role.OPERATOR}
_FILES = _WORKS | {Role.RESTORER}
_LOOKS = _WORKS | {Role.VIEWER, Role.AUDITOR}
_AUDITS = _ADMIN | {Role.AUDITOR}
_ALL = frozenset(Role)


def _look(scope: Scope, roles: frozenset[Role]) -> Traits:
    return Traits(scope, roles, audited=False)


def _do(scope: Scope, roles: frozenset[Role]) -> Traits:
    return Traits(scope, roles)


def _grave(scope: Scope, roles: frozenset[Role]) -> Traits:
    """What loses something, or opens a way to it."""
    return Traits(scope, roles, proven=True)


TRAITS: Final[Mapping[Act, Traits]] = MappingProxyType(
    {
        Act.OVERVIEW_SEE: _look(Scope.MACHINE, _ALL),
        Act.MACHINE_SEE: _look(Scope.MACHINE, _ALL),
        Act.POINT_SEE: _look(Scope.MACHINE, _ALL),
        Act.RUN_SEE: _look(Scope.MACHINE, _LOOKS),
        Act.RECOVERY_SEE: _look(Scope.MACHINE, _LOOKS),
        Act.POLICY_SEE: _look(Scope.FLEET, _LOOKS),
        Act.HOST_SEE: _look(Scope.FLEET, _LOOKS),
        Act.REPOSITORY_SEE: _look(Scope.FLEET, _LOOKS),
        Act.REQUEST_SEE: _look(Scope.FLEET, _LOOKS),
        Act.APPLIANCE_SEE: _look(Scope.FLEET, _LOOKS),
        Act.SETTINGS_SEE: _look(Scope.FLEET, _AUDITS),
        Act.NOTICE_SEE: _look(Scope.FLEET, _LOOKS),
        Act.REPORT_SEE: _look(Scope.MACHINE, _LOOKS),
        Act.PLAN_SEE: _look(Scope.MACHINE, _LOOKS),
        Act.METRICS_SEE: _look(Scope.FLEET, _LOOKS),
        Act.USER_SEE: _look(Scope.FLEET, _AUDITS),
        Act.AUDIT_SEE: _look(Scope.FLEET, _AUDITS),
        Act.ACCOUNT_SEE: _look(Scope.SELF, _ALL),
        Act.RUN_START: _do(Scope.MACHINE, _WORKS),
        Act.RUN_CANCEL: _do(Scope.MACHINE, _WORKS),
        Act.RUN_RETRY: _do(Scope.MACHINE, _WORKS),
        Act.RUN_DISMISS: _do(Scope.MACHINE, _WORKS),
        Act.MACHINE_PAUSE: _grave(Scope.MACHINE, _ADMIN),
        Act.MACHINE_RESUME: _do(Scope.MACHINE, _ADMIN),
        Act.MACHINE_FORGET_CHECKPOINTS: _do(Scope.MACHINE, _WORKS),
        Act.POINT_PROTECT: _do(Scope.MACHINE, _WORKS),
        Act.POINT_UNPROTECT: _grave(Scope.MACHINE, _ADMIN),
        Act.POINT_DELETE: _grave(Scope.MACHINE, _ADMIN),
        Act.POINT_PRUNE: _grave(Scope.FLEET, _ADMIN),
        Act.RECOVERY_START: _do(Scope.MACHINE, _WORKS),
        Act.RECOVERY_MIGRATE: _do(Scope.MACHINE, _WORKS),
        Act.RECOVERY_RESUME: _do(Scope.MACHINE, _WORKS),
        Act.RECOVERY_DISCARD: _grave(Scope.MACHINE, _WORKS),
        Act.CONSOLE_OPEN: _do(Scope.MACHINE, _WORKS),
        Act.RESTORE_START: _do(Scope.MACHINE, _WORKS),
        Act.RESTORE_OVERWRITE: _grave(Scope.MACHINE, _WORKS),
        Act.EXPORT_START: _do(Scope.MACHINE, _WORKS),
        Act.EXPORT_STOP: _do(Scope.MACHINE, _WORKS),
        Act.FILE_BROWSE: _do(Scope.MACHINE, _FILES),
        Act.FILE_READ: _do(Scope.MACHINE, _FILES),
        Act.HOST_ADD: _grave(Scope.FLEET, _ADMIN),
        Act.HOST_TEST: _do(Scope.FLEET, _WORKS),
        Act.HOST_REMOVE: _grave(Scope.FLEET, _ADMIN),
        Act.INVENTORY_REFRESH: _do(Scope.FLEET, _WORKS),
        Act.POLICY_SAVE: _grave(Scope.FLEET, _ADMIN),
        Act.POLICY_REMOVE: _grave(Scope.FLEET, _ADMIN),
        Act.POLICY_PAUSE: _grave(Scope.FLEET, _ADMIN),
        Act.POLICY_RESUME: _do(Scope.FLEET, _ADMIN),
        Act.REPOSITORY_INITIALISE: _grave(Scope.FLEET, _ADMIN),
        Act.REPOSITORY_ADOPT: _grave(Scope.FLEET, _ADMIN),
        Act.REPOSITORY_VERIFY: _do(Scope.FLEET, _WORKS),
        Act.REPOSITORY_COLLECT: _do(Scope.FLEET, _ADMIN),
        Act.REPOSITORY_COPY: _do(Scope.FLEET, _WORKS),
        Act.REPOSITORY_REPAIR: _do(Scope.FLEET, _ADMIN),
        Act.REPOSITORY_LOCK: _do(Scope.FLEET, _WORKS),
        Act.REPOSITORY_UNDO: _grave(Scope.FLEET, _ADMIN),
        Act.KEY_ADD: _grave(Scope.FLEET, _ADMIN),
        Act.KEY_REMOVE: _grave(Scope.FLEET, _ADMIN),
        Act.HOLD_RELEASE: _grave(Scope.FLEET, _ADMIN),
        Act.GUARD_ENROL: _grave(Scope.FLEET, _ADMIN),
        Act.GUARD_PASSPHRASE: _grave(Scope.FLEET, _ADMIN),
        Act.GUARD_ON: _grave(Scope.FLEET, _ADMIN),
        Act.GUARD_CHANGE: _grave(Scope.FLEET, _ADMIN),
        Act.GUARD_OFF: _grave(Scope.FLEET, _ADMIN),
        Act.REQUEST_ASK: _grave(Scope.FLEET, _ADMIN),
        Act.REQUEST_CONFIRM: _grave(Scope.FLEET, _ADMIN),
        Act.REQUEST_REFUSE: _do(Scope.FLEET, _LOOKS),  # to stop something is the safe side, and urgent
        Act.REQUEST_APPLY: _grave(Scope.FLEET, _ADMIN),
        Act.APPLIANCE_TAKE_OVER: _grave(Scope.FLEET, _ADMIN),
        Act.SETTINGS_SAVE: _grave(Scope.FLEET, _ADMIN),
        Act.NOTICE_TEST: _do(Scope.FLEET, _ADMIN),
        Act.AUDIT_EXPORT: _do(Scope.FLEET, _AUDITS),
        Act.AUDIT_ACCEPT: _grave(Scope.FLEET, _ADMIN),
        Act.USER_SAVE: _grave(Scope.FLEET, _ADMIN),
        Act.USER_DISABLE: _grave(Scope.FLEET, _ADMIN),
        Act.USER_ENABLE: _grave(Scope.FLEET, _ADMIN),
        Act.USER_RESET: _grave(Scope.FLEET, _ADMIN),
        Act.USER_REMOVE: _grave(Scope.FLEET, _ADMIN),
        Act.TOKEN_ADD: _grave(Scope.FLEET, _ADMIN),
        Act.TOKEN_REVOKE: _do(Scope.FLEET, _ADMIN),
        Act.SESSION_START: _do(Scope.SELF, _ALL),
        Act.SESSION_END: _do(Scope.SELF, _ALL),
        Act.SESSION_REVOKE: _do(Scope.FLEET, _ADMIN),
        Act.ACCOUNT_SET_UP: _do(Scope.SELF, _ALL),
        Act.ACCOUNT_CHANGE: _grave(Scope.SELF, _ALL),
        Act.ACCOUNT_REAUTHENTICATE: _do(Scope.SELF, _ALL),
    }
)


def role_may(role: Role, act: Act) -> bool:
    return role in TRAITS[act].roles
