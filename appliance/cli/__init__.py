"""The command line: parse, call one service, render.

The rule: no command decides anything that the console or the API would have to decide again; importing this package
must stay cheap, so that services, SQL, libvirt and numpy are imported by the commands that use them.
"""

from __future__ import annotations

from appliance.cli.entry import main

__all__ = ["main"]
