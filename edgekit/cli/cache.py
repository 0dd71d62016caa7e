"""`edgekit cache`: what earlier builds left for later ones."""

from datetime import datetime
from typing import Annotated

import typer

from edgekit.cache import Cache, default_folder
from edgekit.cli.output import JsonOption, Terminal
from edgekit.errors import BuildError

__all__ = ["cache"]


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    json_to: JsonOption = None,
) -> None:
    """Show what earlier builds left for later ones, or remove it."""
    terminal = Terminal(json_to)
    found = Cache(default_folder())
    listing = found.listing()
    size_bytes = found.size_bytes()
    if clear:
        found.clear()
        if found.problem:
            raise BuildError(f"the cache cannot be cleared: {found.problem}")
        terminal.line(f"Removed {len(listing)} results, {size_bytes / 1e6:.1f} MB: {found.folder}")
    else:
        if listing:
            terminal.table(
                "Results",
                ["built", "after", "MB", "last used"],
                [
                    [
                        one.title,
                        one.stage,
                        f"{one.size_bytes / 1e6:.1f}",
                        f"{datetime.fromtimestamp(one.used_at):%Y-%m-%d %H:%M}",
                    ]
                    for one in listing
                ],
            )
            terminal.line()
        # Results share files, so together they take less than their sum.
        terminal.line(f"{len(listing)} results, {size_bytes / 1e6:.1f} MB in {found.folder}")
    terminal.json(
        {
            "folder": str(found.folder),
            "size_bytes": size_bytes,
            "limit_bytes": found.limit_bytes,
            "cleared": clear,
            "entries": [
                {
                    "key": one.key,
                    "title": one.title,
                    "stage": one.stage,
                    "size_bytes": one.size_bytes,
                    "used_at": one.used_at,
                }
                for one in listing
            ],
        }
    )
