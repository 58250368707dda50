"""Which act each command is, and how it becomes one: allowed, and in the audit, as when it is done by the console.

The rule: a command that is in none of the lists below does not run. The act begins when the command first opens the
appliance: what was wrong usage, or was not confirmed, was no act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.doing import Doing

Chooser = Callable[[Mapping[str, Any]], str]


def _unless(option: str, act: str, other: str) -> Chooser:
    return lambda given: other if given.get(option) else act


def _guarded(act: str) -> Chooser:
    return _unless("ask", act, "request.ask")


ACTS: Final[Mapping[str, str | Chooser]] = {
    "appliance take-over": "appliance.take-over",
    "audit accept": "audit.accept",
    "audit export": "audit.export",
    "backup": "run.start",
    "export serve": "export.start",
    "files get": "file.read",
    "files list": "file.browse",
    "host add": "host.add",
    "host forget-checkpoints": "machine.forget-checkpoints",
    "host remove": "host.remove",
    "host test": "host.test",
    "mount": "export.start",
    "notice test": "notice.test",
    "point delete": _guarded("point.delete"),
    "point protect": lambda given: _guarded("point.unprotect")(given) if given["off"] else "point.protect",
    "policy add": "policy.save",
    "policy edit": "policy.save",
    "policy import": "policy.save",
    "policy pause": _unless("machine", "policy.pause", "machine.pause"),
    "policy remove": "policy.remove",
    "policy resume": _unless("machine", "policy.resume", "machine.resume"),
    "prune": "point.prune",
    "recovery discard": "recovery.discard",
    "recovery migrate": "recovery.migrate",
    "recovery resume": "recovery.resume",
    "recovery start": "recovery.start",
    "repository collect": "repository.collect",
    "repository copy": "repository.copy",
    "repository guard change": "request.ask",
    "repository guard enrol": "guard.enrol",
    "repository guard off": "request.ask",
    "repository guard on": "guard.on",
    "repository guard passphrase": "guard.passphrase",
    "repository hold release": _guarded("hold.release"),
    "repository key add": "key.add",
    "repository key remove": _guarded("key.remove"),
    "repository lock": "repository.lock",
    "repository repair": "repository.repair",
    "repository verify": "repository.verify",
    "request apply": "request.apply",
    "request confirm": "request.confirm",
    "request refuse": "request.refuse",
    "restore": lambda given: "restore.overwrite" if given["force"] else "restore.start",
    "run cancel": "run.cancel",
    "run retry": "run.retry",
    "umount": "export.stop",
}
"""The act of a command, or how its options decide which it is."""

BY_SERVICE: Final = frozenset(
    {
        "init",
        "repository adopt",
        "token add",
        "token list",
        "token revoke",
        "user add",
        "user disable",
        "user edit",
        "user list",
        "user remove",
        "user renew-key",
        "user reset",
        "user setup-link",
    }
)
"""Whose service is told who does it, and asks and tells by itself."""

LOOKING: Final = frozenset(
    {
        "appliance list",
        "audit list",
        "audit verify",
        "host list",
        "metrics",
        "notice list",
        "notice targets",
        "plan",
        "point diff",
        "point list",
        "point show",
        "policy due",
        "policy export",
        "policy list",
        "policy preview",
        "policy show",
        "recovery list",
        "repository forecast",
        "repository guard show",
        "repository hold list",
        "repository info",
        "repository key list",
        "report",
        "request list",
        "request show",
        "run list",
        "run show",
        "vm list",
    }
)
"""Which change nothing that matters, on the machine whose admin may look at everything."""

MACHINERY: Final = frozenset({"serve", "supervise", "run execute"})
"""Which carry out what was asked for before, by whoever asked."""

_SOMETIMES: Final[Mapping[str, tuple[str, str]]] = {
    "repository undo": ("since", "repository.undo"),
    "status": ("dismiss", "run.dismiss"),
}
"""Looking, unless this option is given."""


class UnstatedCommand(Exception):
    """Our own mistake: a command of which nothing says which act it is."""

    def __init__(self, command: str) -> None:
        super().__init__(f"'strongroom {command}' states no act")


def act_of(command: str, given: Mapping[str, Any]) -> str | None:
    """None: it is none. UnstatedCommand."""
    if command in _SOMETIMES:
        option, act = _SOMETIMES[command]
        return act if given.get(option) is not None and not given.get("dry_run") else None
    if command in LOOKING or command in BY_SERVICE or command in MACHINERY:
        return None
    if command not in ACTS:
        raise UnstatedCommand(command)
    if given.get("dry_run"):
        return None
    stated = ACTS[command]
    return stated if isinstance(stated, str) else stated(given)


def stated() -> frozenset[str]:
    """All commands of which something is said."""
    return frozenset({*ACTS, *BY_SERVICE, *LOOKING, *MACHINERY, *_SOMETIMES})


class Acting:
    """One command, from its start to its end."""

    def __init__(self, context: click.Context) -> None:
        names = []
        step: click.Context | None = context
        while step is not None and step.parent is not None:
            names.append(step.info_name or "")
            step = step.parent
        self._act = act_of(" ".join(reversed(names)), context.params)
        self._stack = ExitStack()
        self._doing: Doing | None = None

    def opened(self, appliance: Appliance) -> None:
        """The command works with this one: the act begins."""
        if self._act is None or self._doing is not None:
            return
        from appliance.services.access import Access, Act, local_actor

        performing = Access(appliance).performing(local_actor(), Act(self._act))
        self._doing = self._stack.enter_context(performing)

    @contextmanager
    def until_its_end(self) -> Iterator[None]:
        ended: click.exceptions.Exit | click.ClickException | click.Abort | None = None
        with self._stack:
            try:
                yield
            except (click.exceptions.Exit, click.ClickException, click.Abort) as err:
                self._tell(err)
                ended = err
        if ended is not None:
            raise ended

    def _tell(self, err: click.exceptions.Exit | click.ClickException | click.Abort) -> None:
        """What ended it, in the audit's words. What was wrong usage or was not confirmed did nothing, unless a service
        had begun: 'prune --ask' deletes, and then asks for a passphrase."""
        if self._doing is None:
            return
        if not isinstance(err, click.exceptions.Exit):
            if self._doing.told:
                self._doing.partly("then it was ended")
            else:
                self._doing.drop()
        elif err.exit_code == 3:
            self._doing.partly("see its warnings")
        elif err.exit_code:
            self._doing.failed(f"it ended with exit code {err.exit_code}")
