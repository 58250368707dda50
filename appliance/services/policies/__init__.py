"""Policies as people ask for them: made, changed, paused, and what they would do.

`service` is what the command line, the console and the API call; `known` says which machines there are to be selected.
"""

from appliance.services.policies.service import KnownPolicy, PolicyList, PolicyService

__all__ = ["KnownPolicy", "PolicyList", "PolicyService"]
