"""Runs what takes too long for `make test`, with seeds, and says how it went.

python -m tests.soak [--rounds N] [--seed S]
"""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.faults import killing

ROUNDS = 200


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Kill backups at random moments.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how many processes to kill (default: {ROUNDS})")
    parser.add_argument("--seed", type=int, help="what the choices are drawn from (default: drawn, and printed)")
    given = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if given.seed is None else given.seed
    print(f"kills at random moments in backups: {given.rounds} of them, seed {seed}", flush=True)
    report = killing.rounds(given.rounds, seed, say=lambda text: print(text, flush=True))
    print(report, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
