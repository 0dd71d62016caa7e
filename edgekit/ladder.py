"""A recipe with variants into a ladder: a bundle for each of them, and what they are to each other.

Every variant goes the way of a recipe of its own, from the user's factory on, so that nothing of
one setting is left in the next, and whatever reads a bundle reads these.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.ladder import (
    PROFILE_NAME,
    Cascade,
    LadderDocument,
    LadderPolicy,
    TunedCascade,
    names_problem,
    parse_ladder,
    policy_document,
    read_variant,
    seal_ladder,
)
from edgekit.bundle.ladder import parse_ladder_policy as parse_policy
from edgekit.bundle.manifest import LADDER_NAME, Manifest
from edgekit.bundle.writer import new_bundle, write_files
from edgekit.cache import Cache
from edgekit.errors import EdgekitError, ModelError, RecipeError
from edgekit.plan import Built, Plan, lies_there, restore
from edgekit.recipe import Goal, Recipe, check_files
from edgekit.runtime.profile import Profile, read_profile
from edgekit.target import Target
from edgekit.tuning.cascade import fit_cascade, seen_of_variants
from edgekit.tuning.seen import Seen

if TYPE_CHECKING:
    from edgekit.pipeline import Progress

__all__ = [
    "BuiltLadder",
    "LadderPlan",
    "build_ladder",
    "retune_ladder",
    "shared_statistics",
    "tuned_cascade",
]

_SAME_FEATURES = 1e-3
"""Features whose mean and standard deviation are this near have one distribution."""

Begin = Callable[[str, Plan], None]
"""Told of a variant, by its name, before anything of it is built."""


@dataclass(frozen=True)
class BuiltLadder:
    """A ladder that lies in `path`: its `ladder.json` as plain data, and the bundles by name.

    Narrowest first. `written` is false where it lay there already.
    """

    path: Path
    document: dict[str, Any]
    variants: dict[str, Built]
    written: bool = True


class LadderPlan:
    """What is known of a ladder's build before it runs: a plan for every variant, by its name."""

    def __init__(
        self,
        recipe: Recipe,
        target: Target,
        cache: Cache | None = None,
        *,
        wheelhouse: bool = False,
        only: Sequence[str] = (),
    ) -> None:
        """With `only`, a ladder of these variants.

        Raises RecipeError for a name that is no variant's, for a policy that needs another one, and
        with the variant's name for what no recipe can be.
        """
        assert recipe.variants is not None  # noqa: S101  (the caller has asked)
        known = recipe.variants.each
        for name in only:
            if name not in known:
                raise RecipeError(f"--variant {name}: there is none; they are {', '.join(known)}")
        if words := names_problem([*known]):
            raise RecipeError(f"variants.each: {words}; name it otherwise")
        if recipe.variants.tune is not None and recipe.data.tuning is None:
            raise RecipeError("variants.tune: there is no data.tuning to fit a cascade to")
        self.recipe = recipe
        self.target = target
        self.plans: dict[str, Plan] = {}
        for name in known:
            if not only or name in only:
                with _named(name):
                    one = recipe.variant(name)
                    check_files(one)
                    self.plans[name] = Plan(one, target, cache, wheelhouse=wheelhouse)
        self.policy = recipe.variants.policy
        if self.policy is not None:
            try:
                policy = parse_policy(self.policy, list(self.plans), "variants.policy")
            except EdgekitError as error:
                raise RecipeError(f"{error} (--set variants.policy=null)") from None
            if policy == Cascade() and len(self.plans) < 2:
                raise RecipeError(
                    "variants.policy: a cascade goes over two variants or more "
                    "(--set variants.policy=null)"
                )

    @property
    def finished(self) -> bool:
        """Whether nothing has to run."""
        return all(plan.finished for plan in self.plans.values())

    @property
    def values(self) -> dict[str, Any]:
        """The settings' values, by the variants' names."""
        assert self.recipe.variants is not None  # noqa: S101  (see above)
        return {name: self.recipe.variants.each[name] for name in self.plans}


def build_ladder(
    plan: LadderPlan,
    output: Path,
    progress: "Progress | None" = None,
    *,
    command: str | None = None,
    begin: Begin = lambda name, plan: None,
) -> BuiltLadder:
    """Build every variant of a plan, and put the ladder into the folder `output`.

    It takes its place when all variants are built and agree with PyTorch; until then, and whatever
    happens, `output` is as it was. Raises an EdgekitError that names the variant and the stage.
    """
    if plan.finished and (kept := _lies_there(plan, output)) is not None:
        return kept
    with new_bundle(output) as folder:
        built: dict[str, Built] = {}
        for name, one in plan.plans.items():
            begin(name, one)
            with _named(name):
                built[name] = _carry_out(one, folder / name, progress, command)
                _demand_its_own(plan, built, name)
        built = _narrowest_first(built)
        document = _document(plan, built)
        write_files(folder, {LADDER_NAME: seal_ladder(document)})
        # What the device would refuse is not written.
        parse_ladder((folder / LADDER_NAME).read_bytes())
        _keep_profile(output, folder, built)
    moved = {name: Built(output / name, one.manifest, one.evidence) for name, one in built.items()}
    return BuiltLadder(output, document, moved)


def _keep_profile(output: Path, folder: Path, built: Mapping[str, Built]) -> None:
    """Take along what was measured of the very same bundles: another policy makes none anew."""
    try:
        profile = read_profile(output / PROFILE_NAME)
    except EdgekitError:
        return  # There is none, or none that anybody could use.
    known = {name: one.bundle_id for name, one in profile.variants.items()}
    if known == {name: one.manifest.bundle_id for name, one in built.items()}:
        shutil.copyfile(output / PROFILE_NAME, folder / PROFILE_NAME)


def _lies_there(plan: LadderPlan, output: Path) -> BuiltLadder | None:
    """The ladder in `output`, where it is to the byte what a finished plan would put there."""
    folders = {name: output / name for name in plan.plans}
    if not all(lies_there(plan.plans[name], folder) for name, folder in folders.items()):
        return None
    built = _narrowest_first({name: restore(plan.plans[name], folders[name]) for name in folders})
    document = _document(plan, built)
    try:
        there = (output / LADDER_NAME).read_bytes() == seal_ladder(document)
    except OSError:
        return None
    return BuiltLadder(output, document, built, written=False) if there else None


def _narrowest_first(built: dict[str, Built]) -> dict[str, Built]:
    return dict(sorted(built.items(), key=lambda pair: _macs(pair[1].manifest)))


@contextmanager
def _named(variant: str) -> Iterator[None]:
    """Errors inside say of which variant they are."""
    try:
        yield
    except EdgekitError as error:
        raise type(error)(f"variant {variant}: {error}") from error


def shared_statistics(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The BatchNorm layers that two settings read the same statistics of, for other features.

    By the `layers` of `edgekit.models.statistics.own_statistics`. Of the same features, as before
    the first layer that slims, they may well be the same.
    """
    return [
        name
        for name in one
        if name in other
        and one[name]["sha256"] == other[name]["sha256"]
        and not all(
            math.isclose(one[name][key], other[name][key], rel_tol=_SAME_FEATURES, abs_tol=1e-6)
            for key in ("mean", "std")
        )
    ]


def _carry_out(plan: Plan, folder: Path, progress: "Progress | None", command: str | None) -> Built:
    if plan.finished:
        return restore(plan, folder)
    from edgekit.pipeline import carry_out  # With it comes torch.

    return carry_out(plan, folder, progress, command=command)


def _demand_its_own(plan: LadderPlan, built: Mapping[str, Built], name: str) -> None:
    """Raises ModelError where a variant is one before it again, or borrows its statistics."""
    new = built[name]
    how = new.manifest.recipe["model"]["setting"]["recalibrate"]
    for other, old in built.items():
        if other == name:
            continue
        files = [
            [(one.path, one.sha256) for one in found.manifest.variant().segments]
            for found in (new, old)
        ]
        if files[0] == files[1]:
            raise ModelError(
                f"is the same network as {other}, to the last byte: does variants.set name what "
                "the model reads?"
            )
        if how is not None and how["when"] == "never":
            continue
        if plan.values[name] == plan.values[other]:
            continue  # One set of weights, at another resolution.
        layers = [_statistics(found)["layers"] for found in (new, old)]
        if common := shared_statistics(*layers):
            shown = ", ".join(one.removeprefix("model.") for one in common[:3])
            raise ModelError(
                f"{len(common)} BatchNorm layers have one set of statistics for this setting and "
                f"{other}'s ({shown}); say recalibrate: {{when: always}} to take each one's own "
                "from data.calibration, or {when: never} to take them as they are"
            )


def _document(plan: LadderPlan, built: Mapping[str, Built]) -> dict[str, Any]:
    """The ladder as plain data, of bundles narrowest first."""
    worth = _accuracies(built)
    widest = [*built][-1]
    assert plan.recipe.variants is not None  # noqa: S101  (see LadderPlan)
    # Of a single variant there is no cascade.
    goal = plan.recipe.variants.tune if len(built) > 1 else None
    usual = {"kind": "fixed", "variant": widest} if goal is None else {"kind": "cascade"}
    policy = parse_policy(plan.policy or usual, list(built))
    return {
        "name": plan.recipe.name,
        "variants": [
            {
                "name": name,
                "bundle_id": one.manifest.bundle_id,
                "settings": _settings(plan.recipe, name),
                "parameters": sum(part.parameters for part in one.manifest.variant().segments),
                "macs": _macs(one.manifest),
                "size_bytes": sum(part.size_bytes for part in one.manifest.variant().segments),
                "accuracy": worth[name][0],
                "accuracy_of": worth[name][1],
            }
            for name, one in built.items()
        ],
        "policy": policy_document(policy),
        "cascade": None if goal is None else asdict(tuned_cascade(goal, built)),
    }


def tuned_cascade(
    goal: Goal, built: Mapping[str, Built], profile: Profile | None = None
) -> TunedCascade:
    """The cascade over these bundles, narrowest first, that meets the goal best.

    It saves multiply-accumulate operations, or what the variants take on a device by its `profile`.
    Raises as `fit_cascade`, and RecipeError where the bundles hold no samples to fit it to.
    """
    manifests = [one.manifest for one in built.values()]
    seen = []
    for one in built.values():
        if one.manifest.tuning is None:
            raise RecipeError("variants.tune: there is no data.tuning to fit a cascade to")
        seen.append(Seen.from_bytes((one.path / one.manifest.tuning.seen).read_bytes()))
    joint, left = seen_of_variants([one.policy for one in manifests], seen)
    if profile is None:
        costs = [
            np.cumsum([part.macs for part in one.variant().segments], dtype=float)[exits]
            for one, exits in zip(manifests, left, strict=True)
        ]
    else:
        costs = [np.full(joint.samples, profile.variants[one].latency_ms.mean) for one in built]
    unit = "MACs" if profile is None else "ms"
    return fit_cascade(goal, [*built], joint, np.array(costs), unit)


def retune_ladder(
    path: Path,
    document: LadderDocument,
    output: Path,
    *,
    goal: Goal | None,
    policy: LadderPolicy | None,
    profile: Profile | None = None,
    dry_run: bool = False,
) -> LadderDocument:
    """The ladder in `path`, whose document this is, with another cascade or policy, in `output`.

    Its bundles are the same. Without a `goal` the cascade stays as it is, without a `policy` the
    policy does; a goal alone makes the cascade the policy. With `dry_run` nothing is written.
    Raises as `tuned_cascade`, RecipeError for a profile of other bundles, BundleError for a ladder
    that is not as it was built, BuildError where `output` cannot be written.
    """
    cascade = document.cascade
    if goal is not None:
        if len(document.variants) < 2:
            raise RecipeError(f"variants.tune: {path} has one variant, and a cascade goes over two")
        known = {one.name: one.bundle_id for one in document.variants}
        of = (
            known
            if profile is None
            else {name: one.bundle_id for name, one in profile.variants.items()}
        )
        if of != known:
            raise RecipeError(
                f"the profile is of other bundles than {path} has; edgekit bench {path} --profile "
                "measures these"
            )
        bundles = {name: read_variant(path, document, name) for name in document.names}
        built = {name: Built(one.path, one.manifest, {}) for name, one in bundles.items()}
        cascade = tuned_cascade(goal, built, profile)
        policy = policy or Cascade()
    values = asdict(replace(document, cascade=cascade))
    values["policy"] = policy_document(policy or document.policy)
    content = seal_ladder(values)
    changed = parse_ladder(content)
    if dry_run:
        return changed
    with new_bundle(output) as folder:
        for name in document.names:
            shutil.copytree(path / name, folder / name)
            # What was copied is what the ladder is of.
            read_variant(folder, document, name)
        # Of the same bundles, so it holds where it held.
        if (path / PROFILE_NAME).is_file():
            shutil.copyfile(path / PROFILE_NAME, folder / PROFILE_NAME)
        write_files(folder, {LADDER_NAME: content})
    return changed


def _settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What makes this variant: the value by its attribute's name, if it has one, and overrides."""
    assert recipe.variants is not None  # noqa: S101  (see LadderPlan)
    how = recipe.variants.set
    key = (how and how.attribute) or "value"
    return {key: recipe.variants.each[name], **recipe.variants.overrides.get(name, {})}


def _accuracies(built: Mapping[str, Built]) -> dict[str, tuple[float | None, str | None]]:
    """Each chain's accuracy on the tuning split, by its policy; and what it is counted by.

    Labels, or else the answers of the widest variant. None where there is no such split, or the
    exits tell no classes.
    """
    answers: dict[str, npt.NDArray[np.int64]] = {}
    labels = None
    for name, one in built.items():
        tuning = one.manifest.tuning
        if tuning is None:
            return dict.fromkeys(built, (None, None))
        seen = Seen.from_bytes((one.path / tuning.seen).read_bytes())
        if not seen.told:
            return dict.fromkeys(built, (None, None))
        left = seen.taken(one.manifest.policy.thresholds)
        answers[name] = seen.classes[left, np.arange(seen.samples)]
        labels = seen.labels
    by = "labels" if labels is not None else "agreement"
    right = answers[[*built][-1]] if labels is None else labels
    return {name: (float(np.mean(found == right)), by) for name, found in answers.items()}


def _macs(manifest: Manifest) -> int:
    return sum(part.macs for part in manifest.variant().segments)


def _statistics(built: Built) -> dict[str, Any]:
    (notes,) = (one["notes"] for one in built.evidence["stages"] if one["name"] == "load")
    found: dict[str, Any] = notes["statistics"]
    return found
