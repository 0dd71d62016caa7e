"""`edgekit build`: a recipe and a target into a bundle."""

import gc
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.bundle.ladder import LadderDocument, parse_ladder, seal_ladder
from edgekit.bundle.manifest import REPORT_NAME, Manifest
from edgekit.bundle.writer import check_output
from edgekit.cli.install import install_here
from edgekit.cli.output import (
    JsonOption,
    StageProgress,
    Terminal,
    print_segments,
    print_variants,
)
from edgekit.cli.report import ReportOption, draw_ladder_page, draw_page
from edgekit.errors import DeviceError, RecipeError
from edgekit.report.words import bytes_text
from edgekit.runtime.device import describe, other_than_target

if TYPE_CHECKING:
    from edgekit.ladder import LadderPlan
    from edgekit.plan import Plan

__all__ = ["SetOption", "build", "print_cascade", "print_tuned", "require", "resolve"]

SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the recipe, or of the target with `target.` in front.",
    ),
]


def build(
    recipe: Annotated[str, typer.Argument(help="The recipe's YAML file, or a shipped one's name.")],
    target: Annotated[str, typer.Option(help="What to build for; see `edgekit targets`.")] = "host",
    output: Annotated[
        Path | None, typer.Option(help="The bundle's folder.", show_default="build/RECIPE/TARGET")
    ] = None,
    settings: SetOption = [],  # noqa: B006  (typer reads it, nobody changes it)
    variants: Annotated[
        list[str],
        typer.Option("--variant", metavar="NAME", help="Of a recipe with variants: these alone."),
    ] = [],  # noqa: B006  (as above)
    wheelhouse: Annotated[
        bool,
        typer.Option("--wheelhouse", help="Add the wheels that a device without a network needs."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, show it, and stop.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of every stage why it runs, or that it need not.")
    ] = False,
    use_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Use what earlier builds worked out.")
    ] = True,
    report: ReportOption = True,
    json_to: JsonOption = None,
) -> None:
    """Build a recipe for a target: export, split, lower, optimize, quantize, tune, check, write.

    A recipe with variants makes a ladder: a folder of bundles, one for each.
    """
    terminal = Terminal(json_to)
    the_recipe, the_target = resolve(recipe, target, settings)
    if variants and the_recipe.variants is None:
        raise RecipeError(f"--variant {variants[0]}: {recipe} has no variants; leave it out")
    folder = output or Path("build") / the_recipe.name / the_target.name
    resolved = {
        "recipe": the_recipe.model_dump(mode="json"),
        "target": the_target.model_dump(mode="json"),
        "output": str(folder),
    }
    from edgekit.cache import Cache, default_folder
    from edgekit.plan import STAGES, Plan
    from edgekit.recipe import check_precision
    from edgekit.tuning.goal import check_buildable

    check_precision(the_recipe, the_target.name, the_target.precision)
    check_buildable(the_recipe)
    check_output(folder)

    cache = Cache(default_folder()) if use_cache else None
    if the_recipe.variants is not None:
        from edgekit.ladder import LadderPlan

        whole = LadderPlan(
            the_recipe, the_target, cache, wheelhouse=wheelhouse, only=tuple(variants)
        )
        plans = whole.plans
    else:
        plans = {"": Plan(the_recipe, the_target, cache, wheelhouse=wheelhouse)}
    stages = {
        name: {stage: reasons.get(stage, "cached") for stage in STAGES}
        for name, reasons in ((name, plan.reasons()) for name, plan in plans.items())
    }
    if dry_run:
        import yaml

        terminal.line(yaml.safe_dump(resolved, sort_keys=False).rstrip())
        terminal.line("# Nothing was built. The stages:")
    if dry_run or explain:
        for name, found in stages.items():
            if name:
                terminal.line(f"{'# ' * dry_run}{name}")
            for stage, reason in found.items():
                terminal.line(f"{'#' if dry_run else ' '} {stage:<10}{reason}")
    if dry_run:
        shown = stages if the_recipe.variants is not None else stages[""]
        terminal.json({**resolved, "stages": shown})
        return
    command = shlex.join(["edgekit", *sys.argv[1:]])
    if the_recipe.variants is not None:
        _build_ladder(terminal, whole, folder, command, report=report)
    else:
        _build_bundle(terminal, plans[""], folder, command, report=report)
    if cache is not None and cache.problem:
        terminal.line(f"Note: the cache could not be written: {cache.problem}")


def _build_bundle(
    terminal: Terminal, plan: "Plan", folder: Path, command: str, *, report: bool
) -> None:
    from edgekit.plan import restore

    _announce(terminal, plan)
    if plan.finished:
        built = restore(plan, folder)
    else:
        with StageProgress(terminal).live("importing torch"):
            pipeline = _pipeline()
        built = pipeline.carry_out(plan, folder, StageProgress(terminal), command=command)
    lacking = draw_page(terminal, folder) if report else None
    _print(terminal, built.manifest, built.evidence)
    verb = "Wrote" if built.written else "Nothing to do for"
    bundle = f"{folder} ({built.manifest.bundle_id[:12]})"
    install_here(terminal, folder, built.manifest.target)
    terminal.line(f"\n{verb} {bundle}. Next{_next(built.manifest, folder)}")
    if (folder / REPORT_NAME).is_file():
        terminal.line(f"Look at {folder / REPORT_NAME}")
    if lacking:
        terminal.line(f"Note: no report.html: {lacking}")
    terminal.json({"path": str(folder), **built.evidence})


def _build_ladder(
    terminal: Terminal, plan: "LadderPlan", folder: Path, command: str, *, report: bool
) -> None:
    from edgekit.ladder import build_ladder

    if not plan.finished:
        with StageProgress(terminal).live("importing torch"):
            _pipeline()
    ladder = build_ladder(
        plan,
        folder,
        StageProgress(terminal),
        command=command,
        begin=lambda _, one: _announce(terminal, one),
    )
    for name, built in ladder.variants.items():
        terminal.line(f"\n{name}")
        if report:
            draw_page(terminal, built.path)
        _print(terminal, built.manifest, built.evidence)
        install_here(terminal, built.path, built.manifest.target)
    terminal.line()
    variants = ladder.document["variants"]
    print_variants(terminal, variants)
    print_cascade(terminal, parse_ladder(seal_ladder(ladder.document)))
    verb = "Wrote" if ladder.written else "Nothing to do for"
    widest = ladder.variants[variants[-1]["name"]]
    lacking = draw_ladder_page(terminal, folder) if report else None
    terminal.line(f"\n{verb} {folder}. Next{_next(widest.manifest, folder, [*ladder.variants])}")
    if (folder / REPORT_NAME).is_file():
        terminal.line(f"Look at {folder / REPORT_NAME}")
    if lacking:
        terminal.line(f"Note: no report.html: {lacking}")
    evidence = {name: built.evidence for name, built in ladder.variants.items()}
    terminal.json({"path": str(folder), **ladder.document, "evidence": evidence})


def print_cascade(terminal: Terminal, document: LadderDocument) -> None:
    """What a ladder's cascade came to, if one was tuned."""
    found = document.cascade
    if found is None:
        return
    terminal.line()
    terminal.table(
        "Cascade",
        ["variant", "threshold", "answers"],
        [
            [name, "-" if limit is None else f"{limit:.4f}", f"{rate:.1%}"]
            for name, limit, rate in zip(
                document.names, (*found.thresholds, None), found.rates, strict=True
            )
        ],
    )
    scale = 1e6 if found.unit == "MACs" else 1
    unit = "M MACs" if found.unit == "MACs" else found.unit
    of = "accuracy" if document.variants[-1].accuracy_of == "labels" else "agreement"
    terminal.line(
        f"{of.capitalize()} {found.accuracy:.2%} on {found.samples} tuning samples; on average "
        f"{found.mean_cost / scale:.3g} {unit} each, {document.names[-1]} alone "
        f"{found.widest_cost / scale:.3g} {unit}"
    )


def _announce(terminal: Terminal, plan: "Plan") -> None:
    """Say what is about to be built, and what of it is at hand."""
    from edgekit.plan import STAGES

    name = f"{plan.recipe.name} for {plan.target.name}"
    if plan.finished:
        terminal.line(f"{name}: nothing has changed")
        return
    terminal.line(f"Building {name}")
    if cached := [stage for stage in STAGES if not plan.runs(stage)]:
        terminal.line(f"  cached: {', '.join(cached)}")


def _pipeline() -> ModuleType:
    """`edgekit.pipeline`, with all that it imports left out of Python's searches for garbage.

    Half a million objects, which stay anyway: to go through them again and again takes a good part
    of a small build.
    """
    from edgekit import pipeline

    gc.collect()
    gc.freeze()
    return pipeline


def resolve(recipe: str, target: str, settings: list[str]) -> tuple[Any, Any]:
    """The recipe and target that a command names, with its overrides."""
    require("yaml", "pydantic", "packaging", "torch", "onnx", "onnxscript", "safetensors")
    from edgekit.config import split_overrides
    from edgekit.recipe import check_files, load_recipe
    from edgekit.target import load_target

    of_recipe, of_target = split_overrides(settings)
    found = load_recipe(recipe, of_recipe)
    check_files(found)
    return found, load_target(target, of_target)


def require(*modules: str) -> None:
    """Raises DeviceError where modules of the host side are not installed, as on a device."""
    if lacking := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise DeviceError(
            f"this command belongs to the host side, and {', '.join(lacking)} is not installed: "
            "pip install 'edgekit[build]' (Python 3.11 or newer)"
        )


def _print(terminal: Terminal, manifest: Manifest, evidence: dict[str, Any]) -> None:
    terminal.line()
    terminal.table(
        "Chain against the model in PyTorch",
        ["after", "samples", "max abs error", "max rel error", "top-1 agree", "exits agree"],
        [
            [
                check["stage"],
                str(check["samples"]),
                f"{check['max_abs_error']:.1e}",
                f"{check['max_relative_error']:.1e}",
                "-" if check["top1_agreement"] is None else f"{check['top1_agreement']:.2%}",
                f"{check['exit_agreement']:.2%}",
            ]
            for check in evidence["checks"]
        ],
    )
    terminal.line()
    print_segments(terminal, manifest.variant(), [x.tensor for x in manifest.inputs])
    notes = {stage["name"]: stage["notes"] for stage in evidence["stages"]}
    _print_results(terminal, notes, manifest.variant().exits)
    for proven in sorted(
        {
            (one["by"], one["compute_capability"])
            for one in evidence["proof"]
            if one["compute_capability"]
        }
    ):
        terminal.line("compiled   every segment, with {} for compute capability {}".format(*proven))
    for dropped in notes["optimize"]["dropped"]:
        terminal.line("\nNote: {pass} was dropped for {part}: {reason}".format(**dropped))
    for found in notes.values():
        if "warning" in found:
            terminal.line(f"\nNote: {found['warning']}")
    wheels = [file for file in manifest.files if file.path.endswith(".whl")]
    if len(wheels) > 1:  # Its own travels always.
        size = bytes_text(sum(file.size_bytes for file in wheels))
        terminal.line(
            f"\ninstall/ holds {len(wheels)} wheels, {size}, for Python "
            f"{manifest.requirements.python}"
        )


def _print_results(terminal: Terminal, notes: dict[str, Any], exits: tuple[str, ...]) -> None:
    """What recalibration, quantize and tune came to, in a line or some."""
    terminal.line()
    statistics = notes["load"].get("statistics", {})
    if "recalibrated" in statistics:
        before, after = (statistics.get(f"accuracy_{when}") for when in ("before", "after"))
        terminal.line(
            f"statistics of {statistics['recalibrated']} BatchNorm layers taken anew from "
            f"{statistics['batches']} batches"
            + (
                f": accuracy {before[exits[-1]]:.2%} before, {after[exits[-1]]:.2%} after"
                if before
                else ""
            )
        )
    if shares := notes["quantize"].get("integer_share"):
        terminal.line(f"integers   {shares['chain']:.1%} of the MACs outside the heads")
    if mended := notes["tune"].get("temperature"):
        at = ", ".join(
            "{} at {temperature:.3g} (ECE {ece_before:.4f} -> {ece_after:.4f})".format(
                exit, **mended[exit]
            )
            for exit in exits
        )
        terminal.line(f"calibrated {at}")
    print_tuned(terminal, notes["tune"])


def print_tuned(terminal: Terminal, tuned: dict[str, Any]) -> None:
    """What the thresholds are, and what came of them on the tuning split."""
    if "exit_rates" in tuned:
        at = ", ".join(f"{exit} {value:.6g}" for exit, value in tuned["thresholds"].items())
        leave = ", ".join(f"{exit} {rate:.1%}" for exit, rate in tuned["exit_rates"].items())
        terminal.line(f"thresholds {at or '-'}")
        terminal.line(f"leave      {leave} (tuning split)")
        samples = f"of {tuned['samples']}"
        if "accuracy" in tuned:
            terminal.line(
                f"accuracy   {tuned['accuracy']:.2%} {samples}, with no exit taken "
                f"{tuned['final_exit_accuracy']:.2%}"
                + (
                    ""
                    if tuned["pytorch_accuracy"] is None
                    else f", the model in PyTorch {tuned['pytorch_accuracy']:.2%}"
                )
            )
        elif "agreement" in tuned:
            terminal.line(f"agreement  {tuned['agreement']:.2%} {samples} with the final exit")
        if "mean_latency_ms" in tuned:
            terminal.line(
                f"latency    {tuned['mean_latency_ms']:.3f} ms on average, p95 "
                f"{tuned['p95_latency_ms']:.3f} ms"
            )
        if promised := tuned.get("certificate"):
            terminal.line(
                f"certified  at most {promised['risk']:.2%} {promised['of'].replace('_', ' ')}, "
                f"with {promised['confidence']:.0%} confidence ({promised['errors']} of "
                f"{promised['tested']} tested)"
            )


def _next(manifest: Manifest, folder: Path, variants: Sequence[str] = ()) -> str:
    """What to do with what was built: a bundle, or a ladder of these variants."""
    gpu = manifest.target.gpu
    if other_than_target(manifest.target, describe(gpu=gpu is not None)) is None:
        return f": edgekit bench {folder}"
    bundles = [f"{folder.name}/{one}" for one in variants] or [folder.name]
    # They all need the same.
    pip = f"~/edgekit/bin/pip install -r {bundles[-1]}/install/requirements.txt"
    if gpu is None:
        return f": copy the folder to the device; there, python3 -m venv ~/edgekit and {pip}"
    # TensorRT comes with the system there, not with these requirements.
    lines = [
        ", copy the folder to the device, and there:",
        "python3 -m venv --system-site-packages ~/edgekit",
        pip,
        *(f"~/edgekit/bin/edgekit install {one}" for one in bundles),
    ]
    return "\n  ".join(lines)
