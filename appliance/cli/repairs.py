"""`strongroom repository repair`: the index out of the packs, and lost data out of a copy."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import emit_json, say, size, tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, limit_option, pass_session

if TYPE_CHECKING:
    from imaging.healing import Healed
    from imaging.repairing import Repaired


@click.command()
@click.option(
    "--from", "home", metavar="HOME", type=click.Path(path_type=Path),
    help="Take what is lost out of the repository of this other home, which has copies of the points.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only tell what is damaged, and what the copy has of it.")
@limit_option
@json_option
@pass_session
def repair(session: Session, home: Path | None, dry_run: bool, as_json: bool) -> None:
    """Mend the repository: index objects out of the packs that they listed, and with --from, data out of a copy.

    Whatever cannot be read is set aside in the repository (aside/), and nothing is thrown away. Manifests, and the ends
    of their runs, are put back if this appliance still has them in its cache. With --from, data that
    is known to be damaged or missing is read from the copies of the points (or from what they are copies of), checked
    to be just what is missing, and stored anew; so is what still opens in damaged packs. It heals what 'repository
    verify --read-data' has found, so run that first, and afterwards; then 'repository collect' removes the damaged
    packs. Interrupted, it is gone on with by the next. Without a copy, the next full backup of a machine stores anew
    what it still holds. Ends with exit code 3 when something stays damaged.

    \b
    Examples:
      strongroom repository repair --dry-run
      strongroom repository repair
      strongroom repository repair --from /srv/second
    """
    from appliance.services.maintenance import MaintenanceService

    with ExitStack() as stack:
        other = None if home is None else stack.enter_context(session.appliance.of_home(home))
        service = MaintenanceService(session.appliance)
        if other is not None:
            service.check_other(other)
        broken: tuple[str, ...] = ()
        remembered: tuple[str, ...] = ()
        done: Repaired | None = None
        if dry_run:
            broken = service.broken_index(progress=session.progress)
            remembered = service.remembered(progress=session.progress)
        else:
            done = service.repair(progress=session.progress)
        healed = None
        if other is not None and not broken:
            healed = service.heal(other, dry_run=dry_run, progress=session.progress)
    if as_json:
        told: dict[str, object] = {"dry_run": dry_run}
        if done is None:
            told |= {"damaged_index_objects": list(broken), "put_back": list(remembered)}
        else:
            told |= _repaired_json(done)
        if home is not None:
            told["healed"] = None if healed is None else _healed_json(healed)
        emit_json(told)
    else:
        if done is None:
            _show_broken(broken, remembered, home)
        else:
            _show_repaired(done)
        if healed is not None:
            _show_healed(healed, dry_run)
    unreadable = () if done is None else done.unreadable
    for _, reason in unreadable:
        warn(reason)
    for still in () if healed is None else healed.left:
        warn(f"restore point {still.id} of {still.machine} stays damaged, {still.damage}: {still.reason}")
    exit_with(EXIT_PARTLY if unreadable or (healed is not None and healed.left) else 0)


def _show_broken(broken: tuple[str, ...], remembered: tuple[str, ...], home: Path | None) -> None:
    for name in broken:
        say(f"{name} is damaged, and would be made anew.")
    for name in remembered:
        say(f"{name} is lost, and would be put back as this appliance has it.")
    if not broken:
        say("Every index object can be read.")
    elif home is not None:
        tell("What the copy has can be told once they are: run 'strongroom repository repair' first.")


def _show_repaired(done: Repaired) -> None:
    if done.set_aside:
        say(f"{len(done.set_aside)} damaged index objects are set aside; {done.relisted_packs} packs are listed again.")
    elif not done.put_back:
        say("Every index object can be read: there was nothing to repair.")
    for name in done.put_back:
        say(f"{name} was lost, and is put back as this appliance had it.")


def _show_healed(healed: Healed, dry_run: bool) -> None:
    verb = "would be" if dry_run else "were"
    if healed.copied_blobs or healed.moved_blobs:
        say(
            f"{healed.copied_blobs} chunks and map nodes ({size(healed.copied_bytes)}) {verb} taken out of the copy,"
            f" {healed.moved_blobs} ({size(healed.moved_bytes)}) {verb} moved out of packs that are damaged."
        )
    elif not healed.left:
        say("Nothing that a restore point needs is known to be damaged or missing.")
    if not dry_run and (healed.copied_blobs or healed.moved_blobs):
        tell(
            "hint: 'strongroom repository verify --read-data' shows what is well now; 'strongroom repository collect'"
            " removes damaged packs that nothing needs any more"
        )


def _repaired_json(done: Repaired) -> dict[str, object]:
    return {
        "set_aside": list(done.set_aside),
        "relisted_packs": done.relisted_packs,
        "put_back": list(done.put_back),
        "unreadable_packs": [{"object": name, "reason": reason} for name, reason in done.unreadable],
    }


def _healed_json(healed: Healed) -> dict[str, object]:
    return {
        "copied_blobs": healed.copied_blobs,
        "copied_bytes": healed.copied_bytes,
        "moved_blobs": healed.moved_blobs,
        "moved_bytes": healed.moved_bytes,
        "stored_bytes": healed.stored_bytes,
        "left": [
            {"id": still.id, "name": still.machine, "reason": still.reason, **still.damage.facts()}
            for still in healed.left
        ],
    }
