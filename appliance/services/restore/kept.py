"""The definition of a machine that is being restored in place, kept in the home while libvirt does not know it.

The rule: it is durable before the machine is undefined, and removed once the machine is defined again. So a restore
that fails, or is killed, loses nothing: an admin can define it as it is, and the next attempt goes on with it.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from appliance import home
from appliance.hypervisor.domain_xml import MachineDefinition, parse_machine
from appliance.hypervisor.errors import DomainXmlInvalid
from appliance.settings import Settings

_SUFFIX = ".before-restore.xml"
_NO_PLAIN = re.compile("[^0-9A-Za-z-]")  # a uuid out of a manifest may be any text
_HEAD = "<!-- as the machine was before it was restored in place; autostart: {} -->\n"
_AUTOSTART = re.compile(r"<!-- [^>]*; autostart: yes -->\n")


@dataclass(frozen=True, slots=True)
class Kept:
    definition: MachineDefinition
    autostart: bool


def kept_files(settings: Settings) -> list[Path]:
    """Of restores that did not come to their end."""
    return sorted(settings.machines_directory.glob(f"*{_SUFFIX}"))


class KeptDefinition:
    """Of one machine on one host."""

    def __init__(self, settings: Settings, host: str, uuid: str) -> None:
        self.path: Path = settings.machines_directory / f"{host}-{_NO_PLAIN.sub('_', uuid)}{_SUFFIX}"

    def keep(self, xml: str, autostart: bool) -> None:
        """HomeUnusable."""
        home.write_private(self.path, (_HEAD.format("yes" if autostart else "no") + xml).encode(), replace=True)

    def read(self) -> Kept | None:
        """None when none is kept. HomeUnusable."""
        try:
            text = self.path.read_text("utf-8")
            return Kept(parse_machine(text), _AUTOSTART.match(text) is not None)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, DomainXmlInvalid) as err:
            hint = "Move it away; the disks are then restored to where the restore point has them."
            raise home.HomeUnusable(self.path, f"it cannot be read: {err}", hint=hint) from err

    def forget(self) -> None:
        with contextlib.suppress(OSError):  # what was asked for is done: a file too many is no failure
            self.path.unlink(missing_ok=True)
