"""Aligned columns and sizes for people."""

from __future__ import annotations

from collections.abc import Sequence

_GAP = 2


def table_lines(
    rows: Sequence[Sequence[str]],
    right: range = range(0),
    *,
    width: int | None = None,
    drop: Sequence[str] = (),
) -> list[str]:
    """The rows as lines, each column as wide as its widest cell, those of `right` flush right.

    The first row has the headings. Of those in `drop` as many columns are left out, one after the
    other, as it takes to come down to `width`; None: any width.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = list(range(len(widths)))
    for heading in drop:
        if width is None or sum(widths[i] + _GAP for i in shown) - _GAP <= width:
            break
        shown.remove(list(rows[0]).index(heading))
    return [
        (" " * _GAP)
        .join(row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in shown)
        .rstrip()
        for row in rows
    ]


def byte_size(count: float | None) -> str:
    """ "382.3 MB", in powers of 1000; "-" for None."""
    if count is None:
        return "-"
    size, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
