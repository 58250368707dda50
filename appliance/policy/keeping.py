"""Which restore points of a machine the policies that select it keep, together. Pure.

The rule: a point stays if any of them keeps it, each by its own rules and in its own time zone; a policy without rules
prunes nothing, and so keeps all. Of a machine that no policy selects, nothing goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliance.policy.policies import Policy
from appliance.policy.retention import Candidate, Verdict, decide

UNSELECTED = "no policy selects it"
NO_RULES = "nothing is pruned"


def keep(policies: Sequence[Policy], candidates: Iterable[Candidate]) -> tuple[Verdict, ...]:
    """A verdict on every point of one machine, oldest first. `policies`: all that select it, paused ones too. Reasons
    are told with their policies: "office: daily"."""
    ordered = sorted(candidates, key=lambda each: each.generation)
    if not policies:
        return tuple(Verdict(each, (UNSELECTED,)) for each in ordered)
    reasons: dict[str, list[str]] = {each.id: [] for each in ordered}
    for policy in policies:
        if policy.retention.empty:
            for each in ordered:
                reasons[each.id].append(f"{policy.name}: {NO_RULES}")
            continue
        for verdict in decide(ordered, policy.retention, zone=policy.schedule.tzinfo):
            told = reasons[verdict.candidate.id]
            told += [
                reason if reason in verdict.candidate.uses else f"{policy.name}: {reason}"
                for reason in verdict.reasons
            ]  # fmt: skip
    # A use is no policy's, and told once.
    return tuple(Verdict(each, tuple(dict.fromkeys(reasons[each.id]))) for each in ordered)
