"""The device side: numpy and one inference engine, nothing else.

from edgekit.runtime import Chain

chain = Chain.load("build/digits/host")
prediction = chain(chain.read("7.png"))
"""

from edgekit.runtime.adapt import AdaptivePolicy
from edgekit.runtime.chain import Chain, Prediction
from edgekit.runtime.drift import DriftDetector, DriftWarning
from edgekit.runtime.ladder import Ladder
from edgekit.runtime.metrics import Metrics

__all__ = [
    "AdaptivePolicy",
    "Chain",
    "DriftDetector",
    "DriftWarning",
    "Ladder",
    "Metrics",
    "Prediction",
]
