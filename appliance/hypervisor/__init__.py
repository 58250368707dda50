"""Hypervisors: what the appliance needs of one (`protocol`), and libvirt's way of giving it.

The rule: nothing outside this package imports libvirt, and callers see typed values and `HypervisorError`s only.
"""
