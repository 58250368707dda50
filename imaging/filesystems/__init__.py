"""Volumes, folders and files within the disks of a restore point, without mounting anything.

The rule: what a guest wrote is parsed by a process that has no rights, no files and no network, and may end at any time
(`worker`, in `sandbox`); whoever asks (`session`) gives it the disks' bytes, and believes nothing that it says.
"""
