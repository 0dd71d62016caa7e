"""`--policy`: the same segments under another policy, and a policy in words."""

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.ladder import POLICIES, LadderDocument, LadderPolicy, parse_ladder_policy
from edgekit.bundle.manifest import Manifest, Policy, parse_policy
from edgekit.errors import BundleError, InputError
from edgekit.runtime.criteria import unknown

__all__ = ["PolicyOption", "other_ladder_policy", "other_policy", "policy_text"]

PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="FILE|JSON",
        help="Another policy for the same segments, such as '{\"thresholds\": 0.9}', or a file of "
        "that; what it does not name stays as in the bundle. Of a ladder, who answers: "
        '\'{"kind": "latency_budget", "budget_ms": 5}\'.',
    ),
]

_FITTED = ("criterion", "combine", "weights", "temperatures")
"""What thresholds are fitted to: where one of these is another, the bundle's say nothing."""


def other_policy(text: str, manifest: Manifest) -> Policy:
    """The bundle's policy with what `text` changes: a JSON object, or a file that holds one.

    `thresholds` may be a number for all early exits; `thresholds`, `weights` and `temperatures` are
    a list in order of depth or an object by exit. Raises InputError where the file cannot be read,
    or where what it says is no policy for the bundle's exits.
    """
    exits = manifest.variant().exits
    given = _read(text)
    fields = [field.name for field in dataclasses.fields(Policy)]
    for key in given:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(fields)}"
            raise InputError(f"--policy: a policy has no {key!r}; {hint}")
    for key, names in (("thresholds", exits[:-1]), ("weights", exits), ("temperatures", exits)):
        if key in given:
            given[key] = _in_order(key, given[key], names)
    before = json.loads(json.dumps(dataclasses.asdict(manifest.policy)))  # Lists, as those given.
    other = [key for key in _FITTED if key in given and given[key] != before[key]]
    if other and "thresholds" not in given and exits[1:]:
        raise InputError(
            f"--policy: the bundle's thresholds are not for another {other[0]}; give thresholds too"
        )
    try:
        policy = parse_policy({**before, **given})
    except BundleError as error:
        raise InputError(f"--policy: {str(error).removesuffix('; rebuild it')}") from None
    last = [segment.exits[-1] for segment in manifest.variant().segments]
    if words := unknown(policy) or policy.problem(last, scores=bool(manifest.labels)):
        raise InputError(f"--policy: {words}")
    return policy


def other_ladder_policy(text: str, document: LadderDocument) -> LadderPolicy:
    """The policy of a ladder that `text` is: a JSON object with its `kind`, or a file of that.

    Raises InputError where the file cannot be read, or where what it says is no policy for the
    ladder's variants.
    """
    if text in POLICIES and not Path(text).exists():
        fields = dataclasses.fields(POLICIES[text])
        needed = [f'"{one.name}": ...' for one in fields if one.default is dataclasses.MISSING]
        example = ", ".join([f'"kind": "{text}"', *needed])
        raise InputError(f"--policy {text}: give it as JSON, '{{{example}}}'")
    try:
        return parse_ladder_policy(_read(text), document.names, "--policy")
    except BundleError as error:
        raise InputError(str(error).removesuffix("; rebuild it")) from None


def policy_text(policy: Policy, exits: tuple[str, ...]) -> str:
    """The policy in a line: what is usual is left out."""
    parts = [policy.criterion]
    if policy.combine != "last":
        parts.append(f"of the {policy.combine}")
    if policy.weights is not None:
        parts.append(f"with weights {', '.join(f'{one:g}' for one in policy.weights)}")
    if policy.temperatures is not None:
        parts.append(f"at temperatures {', '.join(f'{one:g}' for one in policy.temperatures)}")
    thresholds = ", ".join(
        f"{exit} at {one:g}" for exit, one in zip(exits, policy.thresholds, strict=False)
    )
    text = f"{' '.join(parts)}: {thresholds or 'no early exit'}"
    return text if policy.otherwise == "last" else f"{text}; otherwise {policy.otherwise}"


def _read(text: str) -> dict[str, Any]:
    where = "--policy"
    if not text.lstrip().startswith("{"):
        where = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"--policy {where}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"--policy {where}: is not UTF-8 text") from None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise InputError(f'{where}: is no JSON object, such as {{"thresholds": 0.9}}')
    return given


def _in_order(key: str, value: Any, names: tuple[str, ...]) -> Any:
    """One number for each name, of a number for all or of numbers by name; lists stay."""
    if key == "thresholds" and type(value) in {int, float}:
        return [value] * len(names)
    if not isinstance(value, dict):
        return value
    if value.keys() != set(names):
        raise InputError(
            f"--policy: {key} are for {', '.join(names)}; found {', '.join(value) or 'none'}"
        )
    return [value[name] for name in names]
