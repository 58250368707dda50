"""Which act it is to have a run's work done once more. Pure.

The rule: who may not do something may not have it repeated either: "once more" is as grave as what is done by it.
"""

from __future__ import annotations

from appliance.acts import Act
from appliance.models import RunKind, RunRecord


def act_to_repeat(run: RunRecord) -> Act:
    match run.kind:
        case RunKind.BACKUP:
            return Act.RUN_RETRY
        case RunKind.RESTORE:
            overwrites = run.arguments is not None and run.arguments.force
            return Act.RESTORE_OVERWRITE if overwrites else Act.RESTORE_START
        case RunKind.VERIFY:
            return Act.REPOSITORY_VERIFY
        case RunKind.COLLECT:
            return Act.REPOSITORY_COLLECT
        case RunKind.COPY:
            return Act.REPOSITORY_COPY
        case RunKind.PRUNE:
            return Act.POINT_PRUNE
