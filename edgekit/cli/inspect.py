"""`edgekit inspect`: where a network is cut, or what a bundle or a ladder holds."""

import dataclasses
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.bundle.ladder import (
    is_ladder,
    policy_document,
    read_ladder,
    read_variant_manifest,
)
from edgekit.bundle.manifest import Manifest, Variant, axis_text
from edgekit.cli.build import SetOption, print_cascade, resolve
from edgekit.cli.engine import open_bundle
from edgekit.cli.output import (
    JsonOption,
    StageProgress,
    Terminal,
    print_segments,
    print_variants,
)
from edgekit.cli.policy import policy_text
from edgekit.errors import DeviceError, EdgekitError, InputError, RecipeError
from edgekit.report.benches import ladder_policy_text
from edgekit.runtime import Ladder
from edgekit.runtime.profile import profile_beside

if TYPE_CHECKING:
    from edgekit.recipe import Recipe
    from edgekit.stages import Segments
    from edgekit.target import Target

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        str,
        typer.Argument(metavar="RECIPE|BUNDLE|LADDER", help="A recipe, a bundle or a ladder."),
    ],
    target: Annotated[str, typer.Option(help="For a recipe: the target.")] = "host",
    settings: SetOption = [],  # noqa: B006  (typer reads it, nobody changes it)
    variant: Annotated[
        str | None,
        typer.Option(help="Of a ladder, or a recipe with variants: this one, with its cuts."),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Show exits, cuts, boundary tensors, parameters and MACs of a recipe's network or a bundle.

    Of a ladder what each variant holds and takes, and who answers.
    """
    terminal = Terminal(json_to)
    if is_ladder(path) and variant is None:
        terminal.json(_ladder(terminal, Path(path)))
    elif Path(path).is_dir():
        manifest = open_bundle(Path(path), variant).manifest
        _print_bundle(terminal, manifest)
        more = {
            "bundle_id": manifest.bundle_id,
            "policy": dataclasses.asdict(manifest.policy),
        }
        sources = [one.tensor for one in manifest.inputs]
        terminal.json({**more, **_chain(terminal, manifest.variant(), sources)})
    else:
        recipe, the_target = resolve(path, target, settings)
        terminal.json(_recipe(terminal, recipe, the_target, variant))


def _recipe(
    terminal: Terminal, recipe: "Recipe", target: "Target", name: str | None
) -> dict[str, Any]:
    """What a recipe's network is, or each of its variants', with nothing built."""
    with StageProgress(terminal).live("importing torch"):
        from edgekit import pipeline

    if recipe.variants is None:
        if name is not None:
            raise RecipeError(f"--variant {name}: {recipe.name} has no variants; leave it out")
        found, warning = pipeline.inspect(recipe, target, StageProgress(terminal))
        return _network(terminal, recipe.name, found, warning)
    if name is not None:
        if name not in recipe.variants.each:
            raise RecipeError(
                f"--variant {name}: there is none; they are {', '.join(recipe.variants.each)}"
            )
        one = recipe.variant(name)
        found, warning = pipeline.inspect(one, target, StageProgress(terminal))
        return _network(terminal, one.name, found, warning)
    variants: list[dict[str, Any]] = []
    for each in recipe.variants.each:
        terminal.line(each)
        try:
            found, _ = pipeline.inspect(recipe.variant(each), target, StageProgress(terminal))
        except EdgekitError as error:
            raise type(error)(f"variant {each}: {error}") from error
        variants.append(
            {
                "name": each,
                "exits": found.exits,
                "parameters": sum(one.parameters for one in found.chain),
                "macs": sum(one.macs for one in found.chain),
                "size_bytes": 0,
                "accuracy": None,
                "accuracy_of": None,
            }
        )
    variants.sort(key=operator.itemgetter("macs"))
    terminal.line(f"\n{recipe.name}: {len(variants)} variants\n")
    print_variants(terminal, variants)
    terminal.line(
        f"\n--variant {variants[-1]['name']} shows its cuts; sizes and accuracies come of a build"
    )
    told = ("name", "exits", "parameters", "macs")
    return {"variants": [{key: one[key] for key in told} for one in variants]}


def _network(
    terminal: Terminal, name: str, found: "Segments[Any]", warning: str | None
) -> dict[str, Any]:
    segments = tuple(part.record() for part in found.chain)
    variant = Variant("default", found.exits, found.tensors, segments)
    terminal.line(f"\n{name}: {len(found.exits)} exits, {', '.join(found.exits)}\n")
    if warning:
        terminal.line(f"Note: {warning}\n")
    return {"warning": warning, **_chain(terminal, variant, list(found.inputs.values()))}


def _chain(terminal: Terminal, variant: Variant, sources: list[str]) -> dict[str, Any]:
    """Print a chain's segments, and how much of the work comes before each exit."""
    print_segments(terminal, variant, sources)
    total = sum(segment.macs for segment in variant.segments) or 1
    shares = []
    done = 0
    for segment in variant.segments:
        done += segment.macs
        shares.append(f"{segment.exits[-1].name} {done / total:.1%}")
    terminal.line(f"\nMACs up to each exit: {', '.join(shares)}")
    return dataclasses.asdict(variant)


def _ladder(terminal: Terminal, path: Path) -> dict[str, Any]:
    """What a ladder's variants hold, and what they take where it was measured; who answers here."""
    document = read_ladder(path)
    target = read_variant_manifest(path, document, document.names[-1]).target
    profile, odd = profile_beside(path, document)
    policy = policy_document(document.policy)
    answers, why = _who(path)
    terminal.line(f"{document.name} for {target.name}, {document.ladder_id[:12]}")
    terminal.line(f"  engine    {target.engine}, {target.precision}, threads: {target.threads}")
    terminal.line(f"  policy    {ladder_policy_text(policy)}")
    if answers is not None:
        terminal.line(f"  answers   {answers}")
    elif why is None:
        terminal.line(f"  answers   {document.names[0]} first, then wider until it is sure")
    if why is not None:
        terminal.line(f"  note      {why}")
    if profile is not None:
        threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
        terminal.line(
            f"  measured  on {profile.device.get('cpu')}, {profile.engine_version}, {threads}"
        )
        if profile.doubts:
            terminal.line(f"  note      {profile.doubts}")
    else:
        terminal.line(f"  measured  {odd or f'not yet; edgekit bench {path} --profile does'}")
    terminal.line()
    variants = [dataclasses.asdict(one) for one in document.variants]
    measured = {} if profile is None else profile.variants
    print_variants(terminal, variants, measured)
    print_cascade(terminal, document)
    return {
        "ladder_id": document.ladder_id,
        "name": document.name,
        "target": target.name,
        "policy": policy,
        "answers": answers,
        "note": why,
        "cascade": document.cascade and dataclasses.asdict(document.cascade),
        "profile": profile
        and {
            "device": profile.device,
            "engine": profile.engine,
            "engine_version": profile.engine_version,
            "threads": profile.threads,
            "reasons": list(profile.reasons),
        },
        "variants": [
            {**one, "measured": dataclasses.asdict(measured[one["name"]]) if measured else None}
            for one in variants
        ],
    }


def _who(path: Path) -> tuple[str | None, str | None]:
    """Which variant answers on this machine, None where that depends; and what is to be said."""
    try:
        ladder = Ladder.load(path)
    except (InputError, DeviceError) as error:
        return None, str(error)
    return ladder.variant, ladder.shortfall


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
