"""Durations and sizes as people read them."""

from __future__ import annotations


def format_seconds(seconds: float) -> str:
    """A duration in seconds as text, such as ``8.4 s``, ``1 min 26 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float) -> str:
    """A size in bytes as text with decimal units, such as ``640 bytes``, ``1.2 MB`` or ``12 GB``."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"
