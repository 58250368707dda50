"""The independent reader's command line: list the points of a repository, or restore a disk of one, by the page alone.

python -m tests.contract.read_repository REPOSITORY --recovery-key FILE list | restore POINT DISK OUT
"""

import argparse
import sys
from pathlib import Path

from tests.contract.independent_reader import IndependentReader, Refused, require


def main() -> None:
    parser = argparse.ArgumentParser(description="Read a repository by its format page alone.")
    parser.add_argument("repository", type=Path)
    secrets = parser.add_mutually_exclusive_group(required=True)
    for kind, option in (("passphrase", "--passphrase"), ("recovery", "--recovery-key"), ("machine", "--machine-key")):
        secrets.add_argument(option, dest=kind, type=Path, metavar="FILE")
    parser.add_argument("--tables-only", action="store_true", help="read no index object")
    parser.add_argument("command", choices=["list", "restore"])
    parser.add_argument("operands", nargs="*", metavar="POINT DISK OUT")
    options = parser.parse_args()
    kind, path = next((k, p) for k in ("passphrase", "recovery", "machine") if (p := getattr(options, k)))
    secret = path.read_bytes() if kind == "machine" else path.read_bytes().rstrip(b"\r\n")
    reader = IndependentReader(options.repository, kind, secret, tables_only=options.tables_only)
    points = reader.points()
    sys.stderr.writelines(f"warning: {text}\n" for text in reader.warnings)
    if options.command == "list":
        for name, manifest in points.items():
            disks = [entry["name"] for entry in manifest["disks"] + manifest["files"]]
            print(name, manifest["created_utc"], manifest["machine"]["name"], *disks)
        return
    require(len(options.operands) == 3, "restore wants POINT DISK OUT")
    point, disk, out_path = options.operands
    chosen = [manifest for name, manifest in points.items() if name.endswith(point)]
    require(len(chosen) == 1, f"{len(chosen)} restore points that count are named {point}")
    with open(out_path, "xb") as out:
        reader.restore(chosen[0], disk, out)


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError) as error:
        sys.exit(f"error: {error}")
