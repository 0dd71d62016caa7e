"""`edgekit tune`: other thresholds for a bundle that is built."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.backends import checked_with
from edgekit.bundle.reader import read_bundle
from edgekit.bundle.writer import check_output
from edgekit.cli.build import print_tuned, require
from edgekit.cli.output import JsonOption, StageProgress, Terminal, refuse_inside_a_bundle
from edgekit.cli.report import ReportOption, draw_page
from edgekit.errors import InputError
from edgekit.runtime.bench import brief

__all__ = ["tune"]


def tune(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    profile: Annotated[
        Path | None,
        typer.Option(
            help="A report of `edgekit bench --json` from the device, for its times.",
            show_default="measured here",
        ),
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value of the recipe's `policy.tune`, `policy.thresholds` or "
            "`policy.drift`.",
        ),
    ] = [],  # noqa: B006  (typer reads it, nobody changes it)
    output: Annotated[
        Path | None, typer.Option(help="The new bundle's folder.", show_default="BUNDLE-tuned")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would come of it, and write nothing.")
    ] = False,
    report: ReportOption = True,
    json_to: JsonOption = None,
) -> None:
    """Fit a built bundle's thresholds anew, to a device's times or another goal.

    No segment is built or run for it: what every exit said of the tuning split lies in the bundle.
    """
    terminal = Terminal(json_to)
    require("pydantic", "yaml")
    from edgekit.config import split_overrides
    from edgekit.retune import measured_costs, recipe_of, retune, source_of
    from edgekit.tuning.goal import settle
    from edgekit.tuning.seen import Seen

    found = read_bundle(bundle)
    of_recipe, of_target = split_overrides(settings)
    if of_target:
        raise InputError(f"--set target.{next(iter(of_target))}: the target is built in")
    recipe = recipe_of(found, of_recipe)
    place = output or bundle.resolve().with_name(f"{bundle.resolve().name}-tuned")
    refuse_inside_a_bundle(place)
    check_output(place)
    progress = StageProgress(terminal)
    if profile is None:
        with progress.live("measuring") as step:
            measured = brief(found, engine=checked_with(found.manifest.target.engine), step=step)
        if measured is None:
            raise InputError(
                f"{bundle}: carries no test split to measure with; give --profile FILE, which "
                "edgekit bench --json FILE writes"
            )
        if not measured["on_target"]:
            terminal.line(
                f"Times are measured here, not on the target: {measured['other_device']}. There, "
                f"edgekit bench {bundle} --json FILE measures them; give it as --profile FILE.\n"
            )
    else:
        measured = _read(profile)
    if not measured.get("valid", True):
        terminal.line(f"The times are doubtful: {'; '.join(measured['reasons'])}.\n")
    costs = measured_costs(found, measured, "here" if profile is None else str(profile))
    tuning = found.manifest.tuning
    assert tuning is not None  # noqa: S101  (`recipe_of` has asked)
    if dry_run:
        seen = Seen.from_bytes(found.read(tuning.seen))
        exits = found.manifest.variant().exits
        notes = settle(
            recipe, exits, seen, costs, tuning.reference_right, found.manifest.policy.temperatures
        ).notes
        _print(terminal, notes)
        terminal.json(notes)
        return
    command = shlex.join(["edgekit", *sys.argv[1:]])
    with progress.live("tune") as step:
        whose = source_of(measured, profile)
        built = retune(found, recipe, costs, place, command=command, costs_from=whose, step=step)
    lacking = draw_page(terminal, place) if report else None
    notes = next(one["notes"] for one in built.evidence["stages"] if one["name"] == "tune")
    _print(terminal, notes)
    terminal.line(
        f"\nWrote {place} ({built.manifest.bundle_id[:12]}): the same segments as "
        f"{found.manifest.bundle_id[:12]}. Next: edgekit bench {place}"
    )
    if lacking:
        terminal.line(f"Note: no report.html: {lacking}")
    terminal.json({"path": str(place), "bundle_id": built.manifest.bundle_id, **notes})


def _print(terminal: Terminal, notes: dict[str, Any]) -> None:
    print_tuned(terminal, notes)
    if "warning" in notes:
        terminal.line(f"\nNote: {notes['warning']}")


def _read(profile: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(profile.read_bytes())
    except OSError as error:
        raise InputError(f"{profile}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{profile}: is no JSON; edgekit bench BUNDLE --json FILE writes a report"
        ) from None
    return report
