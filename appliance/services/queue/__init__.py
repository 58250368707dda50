"""The queue of runs: what is asked for now and done by workers later.

`messages` is what wakes a worker, `service` what people ask for, `workers` what `strongroom serve` does. The truth is
in the catalog (`appliance.catalog.queue`); what becomes of an attempt that failed, `appliance.policy.retries` decides.
"""
