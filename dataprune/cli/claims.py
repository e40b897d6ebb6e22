"""dataprune claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import AsJson, option
from .output import console, print_json


def claims(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...",
            help="Files of `dataprune pack`, or folders of compare, saving or reproduce; without any, what is claimed.",
        ),
    ] = None,
    md: Annotated[bool, option("Print the table as Markdown.")] = False,
    json_: AsJson = False,
) -> None:
    """Set what is claimed of each method beside what was measured, one line a method.

    Differences in accuracy to `short` (all the data for fewer steps) and to `rs2` (a random part every epoch) are in
    points, paired by seed: the mean over the settings in the results, with a 95 % interval. They are at equal steps,
    and at equal FLOPs: where scoring costs nothing, or in comparisons with --equal flops. FLOPs and seconds are
    relative to `short`, scoring included. Methods of which the results have no runs are not measured.
    """
    from ..lab.report import claims as table
    from ..lab.report import records, tables

    if md and json_:
        raise UsageError("--md and --json are two forms of one table: choose one")
    lines = table.measure(records.entries(results or []))
    if json_:
        print_json({"claims": lines})
    elif md:
        print(table.markdown(lines))
    else:
        console().print(tables.claims(*table.rows(lines)))
