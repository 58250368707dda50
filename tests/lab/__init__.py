"""Real virtual machines for tests, the demo and the benchmark.

The rule: whatever a Lab defines, starts or writes carries its own token, and is gone when the Lab is closed; nothing
else on the machine is touched.

    with Lab() as lab:
        guest = lab.machine(disks=[lab.data_disk("vda")])
        guest.start()
        guest.run("echo hello >/mnt/vda/greeting && sync")
"""

from tests.lab.channel import CommandFailed, GuestSilent
from tests.lab.disks import LabDisk, make_blank_disk, make_ext4_disk
from tests.lab.guest import DiskReport, GuestReport, LabGuest
from tests.lab.machines import Lab
from tests.lab.private_libvirtd import PrivateLibvirtd

__all__ = [
    "CommandFailed",
    "DiskReport",
    "GuestReport",
    "GuestSilent",
    "Lab",
    "LabDisk",
    "LabGuest",
    "PrivateLibvirtd",
    "make_blank_disk",
    "make_ext4_disk",
]
