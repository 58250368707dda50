"""What the fleet will need: room, bandwidth, time to recover; and what another retention would cost. Pure."""
