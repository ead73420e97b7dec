"""Numbers and tables for people."""

import sys
from collections.abc import Iterable, Sequence

WIDTH = 1000  # at most, of a table that goes to a file or a pipe: no line is broken


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: int | None = None) -> None:
    """Print rows below their names; the first `right` columns (None: all but the last) are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, name in enumerate(columns):
        to_right = number < (len(columns) - 1 if right is None else right)
        table.add_column(name, justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDTH
    Console(width=width, markup=False, highlight=False).print(table)


def size_text(count: int) -> str:
    """A number of bytes, as 1.4 GiB."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def or_dash(value: float | None, form: str) -> str:
    """A number in a format, or a dash for an unknown one."""
    return "-" if value is None else format(value, form)
