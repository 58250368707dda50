"""Sending one message to one target, by apprise: the only place that imports it.

The rule: a URL is a secret and stays one, so of an error only what names no part of it is told, and apprise's own log
is not printed. Messages are text, whatever the target makes of text; nothing is looked up, stored or generated for it
beside what the URL says, and redirects are not followed.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

from appliance.notices.records import Notice
from appliance.notices.targets import NoticeTarget
from appliance.notices.wording import neutral

if TYPE_CHECKING:
    import apprise

_TIMEOUT_S: Final = 60.0
_SOCKET_TIMEOUT_S: Final = 30.0
_ERROR_CHARACTERS_MAX: Final = 300
_PART: Final = re.compile(r"[^/?&=@:;,#]+")
_SECRET_CHARACTERS_MIN: Final = 3


class Sender(Protocol):
    def send(self, target: NoticeTarget, notice: Notice) -> str | None:
        """Why it did not arrive, as a sentence without secrets; None: whoever has the target took it."""


class AppriseSender:
    """Needs half a second when it is first used."""

    def send(self, target: NoticeTarget, notice: Notice) -> str | None:
        try:
            return _send(target, notice)
        except Exception as err:  # noqa: BLE001  (any of a hundred plugins, and what it says may show the URL)
            return f"apprise failed: {type(err).__name__}"


def _send(target: NoticeTarget, notice: Notice) -> str | None:
    import apprise

    # Its loggers would print URLs of a kind: what matters is returned, without them.
    logger = logging.getLogger("apprise")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    sender = apprise.Apprise(asset=_asset())
    if not sender.add(target.url):
        return f"apprise does not understand the URL of {target.name}: it is of no kind that it knows, or incomplete"
    _split_long_messages(sender, target)
    _be_patient(sender, target)
    result: Any = sender.notify(
        body=notice.body, title=notice.title, notify_type=notice.urgency.value,
        body_format=apprise.NotifyFormat.TEXT, log_level=logging.WARNING,
    )  # fmt: skip
    if result:
        return None
    said = [str(getattr(entry, "message", entry)) for entry in result.logs()]
    return neutral(without_secrets("; ".join(said), target), _ERROR_CHARACTERS_MAX) or "it was refused"


def without_secrets(text: str, target: NoticeTarget) -> str:
    """The text without anything that the target's URL says, but what sort of place it is."""
    _, _, rest = target.url.partition("://")
    parts = {part for found in _PART.findall(rest) for part in (found, unquote(found))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SECRET_CHARACTERS_MIN:
            text = re.sub(re.escape(part), "…", text, flags=re.IGNORECASE)
    return text


def _asset() -> apprise.AppriseAsset:
    import apprise

    return apprise.AppriseAsset(
        app_id="Strongroom", app_desc="Strongroom", app_url="", image_path_mask=False, image_url_mask="",
        image_url_logo="", async_mode=False, storage_mode=apprise.PersistentStoreMode.MEMORY.value,
        service_timeout=_TIMEOUT_S, allow_templates=False, secure_logging=True, http_redirects=False,
        interpret_escapes=False, interpret_emojis=False, pgp_autogen=False, pem_autogen=False, language="en",
    )  # fmt: skip


def _split_long_messages(sender: apprise.Apprise, target: NoticeTarget) -> None:
    """Where a target takes short messages only, a long one is sent in parts, unless the URL says otherwise."""
    import apprise

    if "overflow=" not in target.url.lower():
        for service in sender:
            service.overflow_mode = apprise.OverflowMode.SPLIT


def _be_patient(sender: apprise.Apprise, target: NoticeTarget) -> None:
    """apprise gives a server 4 s for its answer, unless the URL says otherwise: one that needs longer has taken the
    notice by then, and would get it again and again."""
    for service in sender:
        if "cto=" not in target.url.lower():
            service.socket_connect_timeout = _SOCKET_TIMEOUT_S
        if "rto=" not in target.url.lower():
            service.socket_read_timeout = _SOCKET_TIMEOUT_S
