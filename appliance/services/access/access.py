"""Acts: whether somebody may do one, and what became of it, in the audit. Everything that is done goes through here.

The rule: an act that is refused is begun by nobody, and both that and what became of one that was begun are written
down: by the process itself, or, if it was killed or the catalog was away, by whoever writes next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from appliance.acts import TRAITS, Act
from appliance.audit import Draft, Result, head_of
from appliance.doing import NOTHING, Doing, Subject, going_on
from appliance.errors import StrongroomError
from appliance.home import HomeUnusable
from appliance.models import new_id
from appliance.policy.selectors import Machine
from appliance.services.access.actors import Actor
from appliance.services.access.decisions import is_fresh, refusal
from appliance.services.access.errors import AccessError
from appliance.services.access.heads import HeadFile
from appliance.services.access.places import asked_by, place_refusal
from appliance.services.access.spool import SOME, Held, Spool, remove

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)


class Access:
    """Borrows the appliance, whose catalog is opened when something is written down."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def may(self, actor: Actor, act: Act, subject: Subject | None = None) -> bool:
        """For what is shown: whether there is anything they may do it to, or to this one. Who has to prove again who
        they are may."""
        now = self._appliance.clock.now_utc()
        error = refusal(replace(actor, authenticated_utc=now), act, subject, now)
        return error is None

    def is_proven(self, actor: Actor) -> bool:
        """Whether they need not prove again who they are, whatever they do."""
        return actor.trusted or is_fresh(actor.authenticated_utc, self._appliance.clock.now_utc())

    def check(self, actor: Actor, act: Act, subject: Subject = NOTHING) -> None:
        """As `performing` does first: for what only looks. NotAllowed, ReauthenticationNeeded; both are audited."""
        error = refusal(actor, act, subject, self._appliance.clock.now_utc())
        if error is not None:
            self._refuse(actor, act, subject, error)

    def may_name(self, actor: Actor, act: Act, place: str | None) -> bool:
        """For what is shown: whether they may have disks written there, a storage pool or a path of this machine."""
        return place_refusal(actor, act, self._appliance.settings.restore.folders, place) is None

    def check_place(self, actor: Actor, act: Act, subject: Subject, place: str | None) -> None:
        """As the services do that are asked for it: for what only looks ahead. PlaceNotAllowed, which is audited."""
        error = place_refusal(actor, act, self._appliance.settings.restore.folders, place)
        if error is not None:
            self._refuse(actor, act, subject, error)

    @contextmanager
    def performing(
        self, actor: Actor, act: Act, subject: Subject = NOTHING, details: Mapping[str, object] | None = None
    ) -> Iterator[Doing]:
        """The body is the act. NotAllowed, ReauthenticationNeeded, before it; an error of the body is audited and goes
        on. `details`: plain JSON, no secrets; the same ones whoever does it and by whatever way."""
        self.check(actor, act, subject)
        doing = Doing(subject, dict(details or {}))
        if not TRAITS[act].audited:
            yield doing
            return
        draft = self._draft(actor, act, subject, doing.details)
        held = self._spool.begin(replace(draft, result=Result.INTERRUPTED))
        try:
            try:
                with going_on(doing), asked_by(actor, act):
                    yield doing
            except BaseException as err:
                doing.failed(_words(err))
                if isinstance(err, AccessError):  # what they may not is only known once it is looked at
                    doing.result = Result.REFUSED
                raise
            finally:
                self._finish(held, self._ended(draft, doing), dropped=doing.dropped)
        finally:
            held.close()

    def record(
        self,
        actor: Actor,
        act: Act,
        subject: Subject = NOTHING,
        details: Mapping[str, object] | None = None,
        *,
        result: Result = Result.OK,
        error: str = "",
    ) -> None:
        """What happened at once, and asks for no permission: a sign-in that failed, for instance."""
        doing = Doing(subject, dict(details or {}), result=result, error=error)
        self._note(self._ended(self._draft(actor, act, subject), doing))

    def record_all(self, actor: Actor, act: Act, done: Sequence[tuple[Subject, Mapping[str, object]]]) -> None:
        """As `record`, for what was done at one time to several, in one transaction. If the catalog is away, these are
        lost with what they tell of, and logged: they are the appliance's own, and in the catalog themselves."""
        drafts = [self._ended(self._draft(actor, act, subject), Doing(subject, dict(details)))
                  for subject, details in done]  # fmt: skip
        try:
            self._append(drafts)
        except (StrongroomError, OSError) as err:
            _log.warning("the audit lacks %d times %s: %s", len(drafts), act, err)

    def sweep(self) -> None:
        """Put into the chain what dead processes left, and what could not be written then. CatalogError."""
        while self._append([]):
            pass

    @property
    def heads(self) -> HeadFile:
        settings = self._appliance.settings
        return HeadFile(settings.audit_head_file, settings.run_directory / "audit.lock")

    @property
    def _spool(self) -> Spool:
        return Spool(self._appliance.settings.audit_directory)

    def _refuse(self, actor: Actor, act: Act, subject: Subject, error: AccessError) -> NoReturn:
        self._note(replace(self._draft(actor, act, subject), result=Result.REFUSED, error=str(error)))
        raise error

    def _draft(self, actor: Actor, act: Act, subject: Subject, details: Mapping[str, object] | None = None) -> Draft:
        now = self._appliance.clock.now_utc()
        return Draft(
            id=new_id(), at_utc=now, ended_utc=None, appliance="", act=act.value, result=Result.OK,
            error="", actor_kind=actor.kind.value, actor_id=actor.id, actor_name=actor.name,
            actor_role=actor.role.value if actor.role else "", via=actor.via.value, address=actor.address,
            subject_kind=subject.kind, subject_id=subject.id, subject_name=subject.name, machine=_key(subject.machine),
            details=dict(details or {}),
        )  # fmt: skip

    def _ended(self, draft: Draft, doing: Doing) -> Draft:
        subject = doing.subject
        return replace(
            draft, ended_utc=self._appliance.clock.now_utc(), result=doing.result, error=doing.error,
            subject_kind=subject.kind, subject_id=subject.id, subject_name=subject.name, machine=_key(subject.machine),
            details=doing.told or doing.details,
        )  # fmt: skip

    def _finish(self, held: Held, draft: Draft, *, dropped: bool) -> None:
        if dropped:
            held.remove()
            return
        held.write(draft)
        if self._write(draft):
            held.remove()

    def _note(self, draft: Draft) -> None:
        held = self._spool.begin(draft)
        try:
            if self._write(draft):
                held.remove()
        finally:
            held.close()

    def _write(self, draft: Draft) -> bool:
        """False: the catalog is away, and the act's file keeps it until the next one is written."""
        try:
            self._append([draft])
        except (StrongroomError, OSError) as err:
            _log.warning("the audit has to wait, and nothing of it is lost: %s", err)
            return False
        return True

    def _append(self, drafts: Sequence[Draft]) -> bool:
        """Some of what was left, and these. Whether there may be more that was left. CatalogError."""
        with self._spool.left() as (left, paths):
            if not left and not drafts:
                return False
            added = self._appliance.catalog.audit.append([*left, *drafts])
            more = remove(paths) and len(paths) == SOME
        if added:
            try:
                self.heads.advance(head_of(added[-1]))
            except (HomeUnusable, OSError) as err:
                _log.warning("%s", err)
        return more


def _key(machine: Machine | None) -> str | None:
    return None if machine is None else machine.key


def _words(err: BaseException) -> str:
    if isinstance(err, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        return "it was ended from outside"
    if isinstance(err, StrongroomError) or getattr(err, "hint", None) is not None:
        return str(err)
    return f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
