"""What docs/api.md shows is done: its examples, by curl and jq, with a real server over TLS."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.acts import Act, Role
from tests.lab.filesystems import make_ext
from tests.unit.api_site import serving, site
from tests.unit.cli_runner import PROJECT

_EXAMPLE = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def test_the_examples_of_the_documentation_work(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "api.md").read_text()
    examples = _EXAMPLE.findall(text)
    assert len(examples) == 7
    # The machine that libvirt's test driver has.
    script = "shopt -s expand_aliases\nset -euo pipefail\n" + "\n".join(examples).replace('"web-1"', '"test"')
    script = script.replace("vda1:", "disk:")  # of an image without partitions
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "fstab").write_text("none")
    image = make_ext(tmp_path / "image", tmp_path / "tree")
    with site(tmp_path) as made, serving(made.environment) as url:
        (tmp_path / "token").write_text(made.token_of(Role.ADMIN, tuple(Act)))
        shutil.copy(made.appliance.settings.home / "keys" / "web.crt", tmp_path)
        words = ["backup", "--image", str(image), "--format", "raw", "--name", "web-1"]
        subprocess.run([sys.executable, "-m", "appliance.cli", *words], cwd=PROJECT, env=made.environment, check=True)
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=made.environment | {"STRONGROOM": url}, capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "header").stat().st_mode & 0o777 == 0o600
    assert '"fine": ' in done.stdout
    assert '"cancelled"' in done.stdout
    assert (tmp_path / "fstab").read_text() == "none"
