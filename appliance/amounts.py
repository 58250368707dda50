"""Amounts as people read them. Pure."""

from __future__ import annotations


def size(count_bytes: int | None) -> str:
    """1536 → "1.5 KiB"."""
    if count_bytes is None:
        return "-"
    number, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if abs(number) < 1023.95:  # what would be shown as 1024.0
            break
        number, unit = number / 1024, larger
    return f"{count_bytes} B" if unit == "B" else f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    """75 → "1 min 15 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
