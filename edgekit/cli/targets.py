"""`edgekit targets`: what can be built for."""

from edgekit.cli.build import require
from edgekit.cli.output import JsonOption, Terminal

__all__ = ["targets"]


def targets(json_to: JsonOption = None) -> None:
    """List the targets that come with edgekit."""
    require("yaml", "pydantic")
    from edgekit.target import load_target, target_names

    terminal = Terminal(json_to)
    found = [load_target(name) for name in target_names()]
    terminal.table(
        "Targets",
        ["target", "engine", "precision", "threads", "opset", "what it is"],
        [
            [
                one.name,
                one.engine,
                one.precision,
                str(one.threads),
                "-" if one.engine == "litert" else str(one.opset),
                one.description,
            ]
            for one in found
        ],
        fold=5,
    )
    terminal.json([one.model_dump(mode="json") for one in found])
