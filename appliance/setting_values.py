"""What one value of a setting may be, as an admin writes it in the file or in the environment.

The rule: each of these takes what was written and returns what it means; its ValueError says what is wrong.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

_SIZE = re.compile(r"(\d+)\s*(B|[kKMGT]iB|[kKMGT]B)?", re.ASCII)
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)} | {"kiB": 1024}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)} | {"kB": 1000}
_CATALOG_URL = re.compile(r"postgresql(\+psycopg)?://[^\s/]*/[^\s/?]+(\?\S*)?", re.ASCII)
_COPY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def parse_size(value: object) -> int:
    """A number of bytes, or text such as "10 GiB"; ValueError, else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size is a number of bytes, or text such as '10 GiB'")
    return int(match[1]) * _UNITS[match[2] or ""]


def positive_size(value: object) -> int:
    number = parse_size(value)
    if number == 0:
        raise ValueError("it must be more than 0")
    return number


def count(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        try:
            number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise ValueError(f"it must be a whole number from {least} to {most}")
        return number

    return read


def seconds(least: float, most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise ValueError(f"it must be a number of seconds from {least:g} to {most:g}")
        return number

    return read


def text(pattern: str, meaning: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or re.fullmatch(pattern, value, re.ASCII) is None:
            raise ValueError(f"it must be {meaning}")
        return value

    return read


def path(value: object) -> Path:
    if not isinstance(value, str) or not value or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError("it must be a path")
    return Path(value)


def switch(value: object) -> bool:
    switches = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = value if isinstance(value, bool) else switches.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("it must be true or false")
    return found


def secret(value: object) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError("it must be text of printable characters")
    return value


def catalog_url(value: object) -> str:
    """The message never shows it: it may hold a password."""
    if value == "":
        return ""
    if not isinstance(value, str) or len(value) > 1000 or _CATALOG_URL.fullmatch(value) is None:
        raise ValueError("it must be postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE")
    return value


def homes(value: object) -> tuple[tuple[str, Path], ...]:
    """A table, name = path, or text, as in the environment: NAME=PATH, one after the other."""
    if isinstance(value, str):
        given: list[tuple[str, object]] = [(name, at) for name, _, at in (w.partition("=") for w in value.split())]
    elif isinstance(value, dict):
        given = [(str(name), at) for name, at in value.items()]
    else:
        raise ValueError("it must be a table with a path for each name")
    found = []
    for name, at in given:
        if _COPY_NAME.fullmatch(name) is None:
            raise ValueError(f"{name[:64]!r} is no name of a repository: letters, digits, dots, dashes, underscores")
        home = path(at)
        if not home.is_absolute():
            raise ValueError(f"the home of {name} must be a path that begins with /")
        found.append((name, home))
    if len({name for name, _ in found}) != len(found):
        raise ValueError("a name is there more than once")
    return tuple(found)


def folders(value: object) -> tuple[str, ...]:
    """Absolute paths: a list, or text with commas between them."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(folder, str) for folder in given):
        raise ValueError("it must be a list of folders")
    found = tuple(path(folder.strip()) for folder in given if folder.strip())
    if any(not folder.is_absolute() or ".." in folder.parts for folder in found):
        raise ValueError("it must be a list of folders whose paths begin with /, without '..'")
    return tuple(str(folder) for folder in found)


def host_names(value: object) -> tuple[str, ...]:
    """Host names: a list, or text with commas between them."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise ValueError("it must be a list of host names")
    names = tuple(name.strip() for name in given if name.strip())
    if any(re.fullmatch(r"[A-Za-z0-9._-]{1,253}", name, re.ASCII) is None for name in names):
        raise ValueError("it must be a list of host names, without ports")
    return names


def address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value)) if isinstance(value, str) else ""
    except ValueError as err:
        raise ValueError("it must be an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::") from err
