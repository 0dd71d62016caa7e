"""`edgekit inspect`: where a network is cut, or what a bundle holds."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.manifest import Manifest, Variant, axis_text
from edgekit.bundle.reader import read_bundle
from edgekit.cli.build import SetOption, resolve
from edgekit.cli.output import JsonOption, StageProgress, Terminal, print_segments
from edgekit.cli.policy import policy_text

__all__ = ["inspect"]


def inspect(
    path: Annotated[str, typer.Argument(metavar="RECIPE|BUNDLE", help="A recipe or a bundle.")],
    target: Annotated[str, typer.Option(help="For a recipe: the target.")] = "host",
    settings: SetOption = [],  # noqa: B006  (typer reads it, nobody changes it)
    json_to: JsonOption = None,
) -> None:
    """Show exits, cuts, boundary tensors, parameters and MACs of a recipe's network or a bundle."""
    terminal = Terminal(json_to)
    if Path(path).is_dir():
        manifest = read_bundle(path).manifest
        _print_bundle(terminal, manifest)
        variant, sources = manifest.variant(), [one.tensor for one in manifest.inputs]
        more: dict[str, Any] = {
            "bundle_id": manifest.bundle_id,
            "policy": dataclasses.asdict(manifest.policy),
        }
    else:
        recipe, the_target = resolve(path, target, settings)
        with StageProgress(terminal).live("importing torch"):
            from edgekit import pipeline
        found, warning = pipeline.inspect(recipe, the_target, StageProgress(terminal))
        segments = tuple(part.record() for part in found.chain)
        variant = Variant("default", found.exits, found.tensors, segments)
        sources = list(found.inputs.values())
        more = {"warning": warning}
        terminal.line(f"\n{recipe.name}: {len(found.exits)} exits, {', '.join(found.exits)}\n")
        if warning:
            terminal.line(f"Note: {warning}\n")
    print_segments(terminal, variant, sources)
    total = sum(segment.macs for segment in variant.segments) or 1
    shares = []
    done = 0
    for segment in variant.segments:
        done += segment.macs
        shares.append(f"{segment.exits[-1].name} {done / total:.1%}")
    terminal.line(f"\nMACs up to each exit: {', '.join(shares)}")
    terminal.json({**more, **dataclasses.asdict(variant)})


def _print_bundle(terminal: Terminal, manifest: Manifest) -> None:
    target = manifest.target
    terminal.line(f"{manifest.name} for {target.name}, {manifest.bundle_id[:12]}")
    terminal.line(f"  engine    {target.engine}, {target.precision}, threads: {target.threads}")
    for source in manifest.inputs:
        size = "x".join(axis_text(one) for one in source.shape)
        name = f"{source.name}: " if len(manifest.inputs) > 1 else ""
        more = " from images" if source.image else ""
        if source.range is not None:
            more = f", {source.range[0]} to {source.range[1]}"
        terminal.line(f"  input     {name}{size} {source.dtype}{more}")
    variant = manifest.variant()
    if manifest.labels:
        terminal.line(f"  classes   {len(manifest.labels)}")
    else:
        specs = [variant.tensors[part.exits[-1].logits] for part in variant.segments]
        found = ("x".join(map(str, spec.shape[1:])) + f" {spec.dtype}" for spec in specs)
        terminal.line(f"  outputs   {', '.join(found)}")
    terminal.line(f"  policy    {policy_text(manifest.policy, variant.exits)}")
    own, *others = manifest.requirements.packages
    terminal.line(
        f"  needs     Python {manifest.requirements.python}, {own}, and {len(others)} pins in "
        "install/requirements.txt\n"
    )
