"""`edgekit tune`: other thresholds for a bundle that is built."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.backends import checked_with
from edgekit.bundle.ladder import PROFILE_NAME, is_ladder, parse_ladder_policy, read_ladder
from edgekit.bundle.reader import read_bundle
from edgekit.bundle.writer import check_output
from edgekit.cli.build import print_cascade, print_tuned, require
from edgekit.cli.output import JsonOption, StageProgress, Terminal, refuse_inside_a_bundle
from edgekit.cli.report import ReportOption, draw_ladder_page, draw_page
from edgekit.errors import InputError, RecipeError
from edgekit.runtime.bench import brief
from edgekit.runtime.profile import read_profile

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
    Of a ladder, the cascade over its variants (`--set variants.tune...`) and its policy
    (`--set variants.policy=...`).
    """
    terminal = Terminal(json_to)
    require("pydantic", "yaml")
    if is_ladder(bundle):
        _tune_ladder(terminal, bundle, profile, settings, output, report=report, dry_run=dry_run)
        return
    from edgekit.config import split_overrides
    from edgekit.retune import measured_costs, recipe_of, retune, source_of
    from edgekit.tuning.goal import settle
    from edgekit.tuning.seen import Seen

    found = read_bundle(bundle)
    of_recipe, of_target = split_overrides(settings)
    if of_target:
        raise InputError(f"--set target.{next(iter(of_target))}: the target is built in")
    recipe = recipe_of(found, of_recipe)
    place = _place(bundle, output)
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


def _place(of: Path, output: Path | None) -> Path:
    """Where what is tuned goes, which may hold nothing else."""
    place = output or of.resolve().with_name(f"{of.resolve().name}-tuned")
    refuse_inside_a_bundle(place)
    if is_ladder(place.absolute().parent):
        # The ladder is of another bundle, and its next build would remove this one.
        raise InputError(
            f"{place}: lies in a ladder; give another --output, or tune the ladder's cascade: "
            f"edgekit tune {place.parent}"
        )
    check_output(place)
    return place


def _tune_ladder(
    terminal: Terminal,
    ladder: Path,
    profile: Path | None,
    settings: list[str],
    output: Path | None,
    *,
    report: bool,
    dry_run: bool,
) -> None:
    from edgekit.config import parse, split_overrides
    from edgekit.ladder import retune_ladder
    from edgekit.recipe import Goal

    document = read_ladder(ladder)
    of_recipe, of_target = split_overrides(settings)
    goal: dict[str, Any] = {}
    policy = None
    for key, value in {**of_recipe, **{f"target.{one}": x for one, x in of_target.items()}}.items():
        if key == "variants.policy":
            policy = parse_ladder_policy(value, document.names, f"--set {key}")
        elif key == "variants.tune" and isinstance(value, dict):
            goal |= value
        elif key.startswith("variants.tune."):
            goal[key.removeprefix("variants.tune.")] = value
        else:
            raise RecipeError(
                f"--set {key}: a ladder that is built can be tuned by variants.tune and "
                "variants.policy; anything else is built in: edgekit build"
            )
    if not goal and policy is None:
        if document.cascade is None:
            raise InputError(
                f"{ladder}: say what its cascade is to keep, such as --set "
                "variants.tune.max_accuracy_drop=0.01, or a policy: --set variants.policy="
                f'\'{{"kind": "fixed", "variant": "{document.names[-1]}"}}\''
            )
        goal = document.cascade.goal
    place = _place(ladder, output)
    if profile is None and (beside := ladder / PROFILE_NAME).is_file():
        profile = beside
    known = None if profile is None else read_profile(profile)
    if goal and known is not None and known.doubts is not None:
        terminal.line(f"Note: {known.doubts}")
    changed = retune_ladder(
        ladder,
        document,
        place,
        goal=parse(Goal, goal, "variants.tune") if goal else None,
        policy=policy,
        profile=known,
        dry_run=dry_run,
    )
    if goal and changed.cascade is not None:
        print_cascade(terminal, changed)
    if not dry_run:
        lacking = draw_ladder_page(terminal, place) if report else None
        terminal.line(f"\nWrote {place}: the same bundles as {ladder}. Next: edgekit bench {place}")
        if lacking:
            terminal.line(f"Note: no report.html: {lacking}")
    terminal.json({"path": None if dry_run else str(place), **asdict(changed)})


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
