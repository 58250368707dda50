"""`strongroom --url`: a lost machine is started, moved and removed on the other appliance, by its token."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from appliance.acts import Act, Role
from appliance.models import RecoveryState
from appliance.services.access import local_actor
from appliance.services.accounts.tokens import TokenService
from tests.integration.backing_up import MIB, rig
from tests.integration.recovering import assert_nothing_left, protect, record_of, supervised
from tests.lab import Lab
from tests.unit.api_site import serving
from tests.unit.cli_runner import CommandLine, Ran

pytestmark = pytest.mark.integration


def test_a_lost_machine_is_recovered_from_elsewhere(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with rig() as made, serving(made.process_environment()) as url, supervised(made):
        token = TokenService(made.appliance).add(
            local_actor({}), "elsewhere", Role.OPERATOR, acts=list(_ACTS), good_for=timedelta(hours=1)
        )
        line = CommandLine(made.home.parent, capsys)
        line.environment = {"PATH": os.environ["PATH"], "STRONGROOM_TOKEN": token.secret}

        def remote(*words: str, code: int = 0) -> Ran:
            certificate = made.home / "keys" / "web.crt"
            done = line("--url", url, "--ca-file", str(certificate), *words)
            assert done.code == code, done.err
            return done

        lost = protect(made, lab, "remote", [16 * MIB])
        names = [f"{lab.token}{name}" for name in ("kept", "thrown")]
        for name in names:
            remote("recovery", "start", lost.name, "--point", "latest", "--as", name)
        kept, thrown = sorted(
            remote("recovery", "list", "--json").json(), key=lambda each: names.index(each["machine"])
        )
        assert [each["state"] for each in (kept, thrown)] == ["running", "running"]
        assert "stands on its own storage" in remote("recovery", "migrate", kept["id"][:8]).out
        assert record_of(made, kept["id"]).state is RecoveryState.MIGRATED
        assert lab.adopt(names[0]).exists
        remote("recovery", "discard", thrown["id"][:8], "--yes")
        assert_nothing_left(made, lab, record_of(made, thrown["id"]))
        assert "nothing left to do" in remote("recovery", "discard", kept["id"], "--yes", code=1).error()


_ACTS = (Act.RECOVERY_SEE, Act.RECOVERY_START, Act.RECOVERY_MIGRATE, Act.RECOVERY_DISCARD, Act.OVERVIEW_SEE)
