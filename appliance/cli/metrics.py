"""`strongroom metrics`: how everything stands, for a monitoring system."""

from __future__ import annotations

import click

from appliance.cli.session import Session, pass_session


@click.command()
@pass_session
def metrics(session: Session) -> None:
    """Print metrics in Prometheus' text form, as the console serves them at /metrics.

    A file of them can be read by Prometheus' node exporter (textfile collector), where no console runs.

    \b
    Example:
      strongroom metrics > /var/lib/node_exporter/strongroom.prom
    """
    from appliance.services.metrics import MetricsService

    click.echo(MetricsService(session.appliance).text(), nl=False)
