"""Concerns as messages. Pure.

The rule: names and errors come from guests, hosts and strangers, and messages go where text may be taken for markup,
headers or mentions. So whatever somebody else chose becomes neutral text: one line of visible characters, no angle
brackets, no links that work, nobody mentioned; and it is as long as we say.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from appliance.models import new_id
from appliance.notices.records import Concern, Kind, Notice, Urgency

TITLE_CHARACTERS_MAX: Final = 120
BODY_CHARACTERS_MAX: Final = 8000
SUBJECT_CHARACTERS_MAX: Final = 100
DETAIL_CHARACTERS_MAX: Final = 400
_DETAILS_MAX: Final = 12
_SUBJECTS_MAX: Final = 10

_NEVER: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, format (bidi), surrogates, separators
_MARKUP: Final = str.maketrans({"<": "‹", ">": "›", "`": "'", "{": "(", "}": ")"})
_MENTION: Final = re.compile(r"(?<![\w.+-])@")
_LINK: Final = re.compile(r"(?<=\w)://|\]\(")

_KINDS: Final[dict[Kind, tuple[Urgency, str, str, str]]] = {
    # urgency; title of one, with {} for its subject; title of {} many; where to look
    Kind.FAILED: (
        Urgency.FAILURE, "the backup of {} failed", "{} backups failed", "'strongroom run list --state failed' has all",
    ),
    Kind.WORK: (Urgency.FAILURE, "{} failed", "{} runs failed", "'strongroom run list --state failed' has all"),
    Kind.VERIFICATION: (
        Urgency.FAILURE, "the verification of {} failed", "{} verifications failed",
        "'strongroom repository verify' names what is damaged and the points that it touches",
    ),
    Kind.THAW: (
        Urgency.FAILURE, "{} may be frozen", "{} machines may be frozen",
        "'strongroom status' tells why; 'virsh domfsthaw MACHINE' thaws by hand",
    ),
    Kind.RPO: (
        Urgency.WARNING, "{} missed its RPO", "{} machines missed their RPO", "'strongroom policy due' tells why",
    ),
    Kind.FILLING: (
        Urgency.WARNING, "{} is filling", "{} repositories are filling",
        "'strongroom repository forecast' says what deleting frees; 'prune', then 'repository collect' frees it",
    ),
    Kind.AWAY: (
        Urgency.FAILURE, "{} needs attention", "{} things need attention", "'strongroom status' has all that is known",
    ),
    Kind.UNUSUAL: (
        Urgency.WARNING, "unusual: {}", "{} unusual things", "find out whether somebody meant it",
    ),
    Kind.OVER: (
        Urgency.SUCCESS, "no longer so: {}", "{} things are no longer so", "nothing has to be done",
    ),
}  # fmt: skip


def neutral(text: str, characters: int) -> str:
    """One line, at most so long, that no reader takes for anything but text."""
    shown = "".join(_visible(character) for character in text[: 4 * characters])
    shown = " ".join(shown.translate(_MARKUP).split())
    shown = _MENTION.sub("(at)", _LINK.sub(lambda found: found[0][0] + " " + found[0][1:], shown))
    return shown if len(shown) <= characters else shown[: characters - 1] + "…"


def visible(text: str) -> str:
    """The text with what would steer or hide it shown as escapes."""
    return text if text.isascii() and text.isprintable() else "".join(_visible(character) for character in text)


def notice(kind: Kind, concerns: Sequence[Concern], appliance: str, now_utc: datetime) -> Notice:
    """One message of at least one concern of this kind. `appliance`: what its machine is called."""
    urgency, one, many, look = _KINDS[kind]
    subject = neutral(concerns[0].subject, SUBJECT_CHARACTERS_MAX)
    headline = one.replace("{}", subject) if len(concerns) == 1 else many.replace("{}", str(len(concerns)))
    body = "\n".join([*_told(concerns), "", f"{look[0].upper()}{look[1:]}."])
    return Notice(
        new_id(), kind, urgency, now_utc, titled(appliance, headline), body[:BODY_CHARACTERS_MAX], len(concerns)
    )


def titled(appliance: str, headline: str) -> str:
    """A title that says who tells it."""
    return neutral(f"Strongroom {appliance}: {headline}", TITLE_CHARACTERS_MAX)


def listed(names: Sequence[str], most: int = _SUBJECTS_MAX) -> str:
    """As "a, b and 3 more", neutral."""
    shown = ", ".join(neutral(name, SUBJECT_CHARACTERS_MAX) for name in names[:most])
    more = len(names) - most
    return f"{shown} and {more} more" if more > 0 else shown


def _told(concerns: Sequence[Concern]) -> list[str]:
    """What is the matter, the most common first, each with what it is about."""
    subjects: dict[str, list[str]] = defaultdict(list)
    for each in concerns:
        subjects[neutral(each.detail, DETAIL_CHARACTERS_MAX)].append(each.subject)
    common = Counter({detail: len(found) for detail, found in subjects.items()}).most_common()
    lines = [f"{listed(subjects[detail])}: {detail}" for detail, _ in common[:_DETAILS_MAX]]
    left = sum(count for _, count in common[_DETAILS_MAX:])
    return [*lines, f"… and {left} more for other reasons"] if left else lines


def _visible(character: str) -> str:
    if unicodedata.category(character) in _NEVER:
        # Spaces of all kinds become one; what hides or steers is shown.
        return " " if character in "\n\r\t\v\f\x85\u2028\u2029" else character.encode("unicode_escape").decode("ascii")
    return character
