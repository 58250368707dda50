"""`strongroom init`."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.output import say, tell
from appliance.cli.passphrases import KeySink, new_passphrase
from appliance.cli.session import Session, pass_session


@click.command()
@click.option(
    "--repository",
    "location",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where the repository is made: an empty or new folder (default: where the settings say).",
)
@click.option(
    "--recovery-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the recovery key to this new file (mode 0600) instead of showing it.",
)
@pass_session
def init(session: Session, location: Path | None, recovery_key_file: Path | None) -> None:
    """Make a repository and take it into use.

    The passphrase comes from STRONGROOM_PASSPHRASE or is asked for. Afterwards this machine opens the repository with a
    key of its own (keys/machine.key), and needs no passphrase. The recovery key is shown once: with it alone, the
    repository can be opened when this machine is lost.

    In an object store (S3), the repository is made where the settings say: bucket, endpoint and credentials are in the
    section [s3] of strongroom.toml, or in STRONGROOM_S3_BUCKET, _ENDPOINT, _ACCESS_KEY and _SECRET_KEY. For Azure Blob
    Storage: container, account and account_key in [azure], or STRONGROOM_AZURE_CONTAINER and so on. For Google Cloud
    Storage: bucket and key_file in [gcs], or STRONGROOM_GCS_BUCKET and _KEY_FILE.

    \b
    Examples:
      strongroom init --repository /srv/backup
      strongroom init --repository /srv/backup --recovery-key-file /root/recovery.key
    """
    from appliance import home
    from appliance.services import repositories

    settings = session.settings()
    if home.in_use(settings):
        raise home.HomeInUse(settings.home)
    path = None if location is None else location.absolute()
    passphrase = new_passphrase()
    sink = KeySink(recovery_key_file)
    try:
        founded = repositories.init(settings, path, passphrase, sink.deliver)
    finally:
        sink.cancel()
    say(f"Repository {founded.repository_id} is ready in {founded.location}.")
    tell("Next: 'strongroom host add NAME qemu:///system', then 'strongroom backup VM'.")
