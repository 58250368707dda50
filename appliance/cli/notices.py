"""`strongroom notice`: who is told what goes on, what was told, and whether a target works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.output import emit_json, moment, say, table, tell
from appliance.cli.session import EXIT_FAILED, EXIT_PARTLY, Session, exit_with, json_option, pass_session

if TYPE_CHECKING:
    from appliance.notices.records import Delivery


@click.group()
def notice() -> None:
    """Notices: what `strongroom serve` tells people by mail, chat or webhook."""


@notice.command()
@json_option
@pass_session
def targets(session: Session, as_json: bool) -> None:
    """List where notices go: name, kind, what they get, and what became of the last one. No address is shown.

    \b
    Example:
      strongroom notice targets
    """
    from appliance.services.notices import NoticeService

    found = NoticeService(session.appliance).targets()
    if as_json:
        emit_json(
            [
                {
                    "name": each.name, "kind": each.kind, "alerts": each.alerts, "digest": each.digest,
                    "waiting": each.waiting, "last": None if each.last is None else _delivery_json(each.last),
                }
                for each in found
            ]
        )  # fmt: skip
        return
    table(
        ["target", "kind", "gets", "waiting", "last", "when", "error"],
        [
            (
                each.name,
                each.kind,
                " and ".join(word for word, gets in (("alerts", each.alerts), ("digest", each.digest)) if gets),
                each.waiting or None,
                each.last.state if each.last else None,
                moment(each.last.next_utc) if each.last else None,
                each.last.error if each.last else None,
            )
            for each in found
        ],
        right=["waiting"],
        empty="There is no target: nobody is told anything. See 'Notices' in docs/operations.md.",
    )


@notice.command("list")
@click.option("--last", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="The newest N.")
@json_option
@pass_session
def list_notices(session: Session, last: int, as_json: bool) -> None:
    """List what was told, newest first, and whether it arrived. Notices are kept for 90 days.

    \b
    Examples:
      strongroom notice list
      strongroom notice list --last 5 --json
    """
    from appliance.services.notices import NoticeService

    found = NoticeService(session.appliance).told(last)
    if as_json:
        emit_json(
            [
                {
                    "id": each.notice.id, "kind": each.notice.kind.value, "urgency": each.notice.urgency.value,
                    "created_utc": each.notice.created_utc, "title": each.notice.title, "body": each.notice.body,
                    "concerns": each.notice.concerns,
                    "deliveries": [_delivery_json(delivery) for delivery in each.deliveries],
                }
                for each in found
            ]
        )  # fmt: skip
        return
    table(
        ["when", "kind", "title", "deliveries"],
        [
            (
                moment(each.notice.created_utc),
                each.notice.kind,
                each.notice.title,
                "; ".join(_delivery(delivery) for delivery in each.deliveries),
            )
            for each in found
        ],
        empty="Nothing was told.",
    )


@notice.command()
@click.argument("target", nargs=-1)
@json_option
@pass_session
def test(session: Session, target: tuple[str, ...], as_json: bool) -> None:
    """Send a message to a target, or to all, and say whether it was taken.

    Ends with exit code 3 when some did not take it, and 1 when none did.

    \b
    Examples:
      strongroom notice test
      strongroom notice test ops
    """
    from appliance.services.notices import NoticeService

    found = NoticeService(session.appliance).test(target)
    failed = [each for each in found if each.error is not None]
    if as_json:
        emit_json([{"target": each.target, "ok": each.error is None, "error": each.error} for each in found])
    else:
        for each in found:
            if each.error is None:
                say(f"{each.target}: sent.")
            else:
                tell(f"error: {each.target}: {each.error}")
    exit_with(0 if not failed else EXIT_FAILED if len(failed) == len(found) else EXIT_PARTLY)


def _delivery(delivery: Delivery) -> str:
    words = f"{delivery.target} {delivery.state}"
    if delivery.error is None:
        return words
    return f"{words} ({delivery.error}; attempts: {delivery.attempts})"


def _delivery_json(delivery: Delivery) -> dict[str, object]:
    over = delivery.state != "waiting"
    return {
        "target": delivery.target, "state": delivery.state.value, "attempts": delivery.attempts,
        "ended_utc": delivery.next_utc if over else None, "next_utc": None if over else delivery.next_utc,
        "error": delivery.error,
    }  # fmt: skip
