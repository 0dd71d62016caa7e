"""Runs on the Pi: python inferences.py BUNDLE RUNS, under the plugin that counts.

Prints the name of what it ran, one a line. Of each the plugin has RUNS + 1 marks: one in front, and
one after each run.
"""

import gc
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace

from edgekit.bundle.manifest import Policy, Segment
from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.runtime import preprocess
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.chain import Chain, ChainSpec, contents

WARM = 2
"""Runs before those that are counted: the first ones allocate, and specialise Python's code."""


def main(path: str, runs: int) -> None:
    """Count to each exit, each segment alone, and the undivided networks."""
    bundle = read_bundle(path)
    carried = load_test_data(bundle)
    assert carried is not None, "the bundle carries no test split"
    x = preprocess.unstack(carried[0])[0]
    chain = Chain.from_bundle(bundle, threads=1)
    early = len(chain.spec.segments) - 1
    calls: dict[str, Callable[[], object]] = {"nothing": lambda: None}
    for depth, exit in enumerate(bundle.manifest.variant().exits):
        # Where a sample leaves depends on no sample: not before this exit, and there in any case.
        thresholds = tuple(-math.inf if one == depth else math.inf for one in range(early))
        calls[f"to {exit}"] = once(
            chain.with_policy(replace(chain.spec.policy, thresholds=thresholds)), x
        )
    bound = chain.segment_runs(preprocess.stack([x]))
    for segment, call in zip(chain.spec.segments, bound, strict=True):
        calls[f"alone {segment.name}"] = call
    (pair,) = (
        one for one in bundle.manifest.baselines if one.variant == bundle.manifest.variant().name
    )
    for name, network in (("plain", pair.plain), ("whole", pair.whole)):
        calls[name] = once(undivided(bundle, network), x)
    gc.collect()
    gc.freeze()
    gc.disable()
    mark = os.getppid
    for name, call in calls.items():
        for _ in range(WARM):
            call()
        mark()
        for _ in range(runs):
            call()
            mark()
        print(name)


def once(chain: Chain, x: preprocess.Sample) -> Callable[[], object]:
    """One inference."""
    return lambda: chain.one(x)


def undivided(bundle: Bundle, network: Segment) -> Chain:
    """An undivided network as a chain of one segment."""
    manifest = bundle.manifest
    spec = ChainSpec(
        manifest.inputs,
        manifest.labels,
        manifest.variant().tensors,
        (network,),
        Policy("max_prob", ()),
    )
    engine = manifest.target.engine
    content = contents(bundle, (network,), engine)
    return Chain.from_segments(spec, content, engine=engine, threads=1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
