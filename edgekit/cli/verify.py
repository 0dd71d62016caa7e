"""`edgekit verify`: is this bundle what was built, and does it compute here what it did there?"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.ladder import is_ladder, read_ladder, read_ladder_page, read_variant
from edgekit.bundle.reader import Bundle, read_bundle, read_evidence, read_report
from edgekit.cli.engine import EngineOption, InstallOption, load
from edgekit.cli.output import JsonOption, Terminal
from edgekit.errors import CheckError
from edgekit.runtime.device import describe, other_than_target
from edgekit.runtime.verify import verify_golden

__all__ = ["verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a ladder's.")],
    engine: EngineOption = None,
    install: InstallOption = False,
    json_to: JsonOption = None,
) -> None:
    """Check every file's hash, then the golden samples' logits and exits on this machine.

    Of a ladder, those of every variant.
    """
    terminal = Terminal(json_to)
    if not is_ladder(bundle):
        terminal.json(_verify(terminal, read_bundle(bundle), engine, install))
        return
    document = read_ladder(bundle)
    if read_ladder_page(bundle) is not None:
        terminal.line("report    as written")
    variants = {}
    for name in document.names:
        terminal.line(f"\n{name}")
        found = read_variant(bundle, document, name)
        try:
            variants[name] = _verify(terminal, found, engine, install)
        except CheckError as error:
            raise CheckError(f"{name}: {error}") from None
    terminal.line(f"\n{bundle} is sound: {len(variants)} variants.")
    terminal.line(f"ladder_id {document.ladder_id}")
    terminal.json({"ladder_id": document.ladder_id, "variants": variants})


def _verify(terminal: Terminal, found: Bundle, engine: str | None, install: bool) -> dict[str, Any]:
    """Check one bundle, print what was found, and return it for the report."""
    files = found.manifest.all_files()
    size_mb = sum(file.size_bytes for file in files) / 1e6
    terminal.line(f"files     {len(files)} as built, {size_mb:.1f} MB")
    if read_evidence(found) is not None:
        terminal.line("evidence  as written, and of this bundle")
    if (page := read_report(found)) is not None:
        of_this = "as written, and of this evidence"
        other = f"as written, but of other evidence; edgekit report {found.path} makes it anew"
        terminal.line(f"report    {of_this if page[1] else other}")
    chain = load(terminal, found, engine, install, None)
    golden = verify_golden(found, chain)
    worst = max(golden.max_relative_error.values())
    classes = ", with the same class" if found.manifest.labels else ""
    what = "logits and confidences" if found.manifest.golden.confidences else "logits"
    terminal.line(
        f"golden    {golden.samples} samples leave where they did{classes}; {what} "
        f"within {worst:.1e} (limit {golden.limit:.1e})"
    )
    target = found.manifest.target
    facts = describe(gpu=target.gpu is not None)
    other_device = other_than_target(target, facts, engine)
    if other_device is not None:
        terminal.line(f"device    not the target: {other_device}")
    terminal.line(f"\n{found.path} is sound.")
    terminal.line(f"bundle_id {found.manifest.bundle_id} (what is deployed)")
    terminal.line(f"seal      {found.seal} (the whole manifest)")
    return {
        "bundle_id": found.manifest.bundle_id,
        "seal": found.seal,
        "files": len(files),
        "golden": dataclasses.asdict(golden),
        "engine": chain.engines[0].version,
        "on_target": other_device is None,
        "other_device": other_device,
    }
