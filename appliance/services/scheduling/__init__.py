"""What makes runs of policies: the scheduler of `strongroom serve`, and what it would do, for whoever asks.

`gathering` puts together what is known at a moment, `scheduler` looks at it with `policy.due` and asks the queue,
`service` tells how things stand.
"""

from appliance.services.scheduling.scheduler import Scheduler
from appliance.services.scheduling.service import SchedulingService, Standing

__all__ = ["Scheduler", "SchedulingService", "Standing"]
