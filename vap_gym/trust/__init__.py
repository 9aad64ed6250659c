"""Trust: how far a frame may be off, from signals that cost little, calibrated against the simulator."""

from vap_gym.trust.calibration import Calibration, Expected
from vap_gym.trust.doubt import UNFAMILIAR, Doubt
from vap_gym.trust.familiar import Familiarity
from vap_gym.trust.samples import SampleSpread
from vap_gym.trust.signals import SIGNALS, TrustSignals

__all__ = [
    "SIGNALS", "UNFAMILIAR", "Calibration", "Doubt", "Expected", "Familiarity", "SampleSpread", "TrustSignals",
]  # fmt: skip
