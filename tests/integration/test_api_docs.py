"""What docs/api.md shows is done: its examples, by curl and jq, with a real server over TLS."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from appliance.acts import Act, Role
from tests.unit.api_site import serving, site
from tests.unit.cli_runner import PROJECT

_EXAMPLE = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def test_the_examples_of_the_documentation_work(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "api.md").read_text()
    examples = _EXAMPLE.findall(text)
    assert len(examples) == 6
    # The machine that libvirt's test driver has.
    script = "shopt -s expand_aliases\nset -euo pipefail\n" + "\n".join(examples).replace('"web-1"', '"test"')
    with site(tmp_path) as made, serving(made.environment) as url:
        (tmp_path / "token").write_text(made.token_of(Role.ADMIN, tuple(Act)))
        shutil.copy(made.appliance.settings.home / "keys" / "web.crt", tmp_path)
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=made.environment | {"STRONGROOM": url}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "header").stat().st_mode & 0o777 == 0o600
    assert '"fine": ' in done.stdout
    assert '"cancelled"' in done.stdout
