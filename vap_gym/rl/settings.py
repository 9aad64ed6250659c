"""Settings of a training by reinforcement: everything that makes one run another."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vap_gym.errors import CheckpointError, VapError, unknown_name
from vap_gym.policies.seen import checked_task
from vap_gym.rl.steady import Steady

ALGORITHMS = ("ppo", "sac")
WORLDS = ("imagination", "pictures", "oracle")


@dataclass(frozen=True, kw_only=True)
class RlSettings:
    """What an agent is trained on, how, and for how long. A step is one decision in one slot.

    Args:
        task: reach, push or lift.
        algorithm: "ppo" or "sac", those of Stable-Baselines3.
        world: "imagination" (things alone, thousands of steps a second), "pictures" (every frame is imagined and
            judged) or "oracle" (the simulator).
        card: of the env whose robot, world model and starts these are.
        steps: decisions, all slots together.
        seed: of weights, starts and exploration.
        slots: episodes side by side.
        horizon: control steps of an episode.
        hold: control steps of a decision.
        agree, of: readings that must agree before progress counts, see `steady.Steady`.
        noise: episodes begin with things beside where they are seen, as far as the finder errs.
        max_spread_m: imagined episodes are given up where an ensemble of the things comes further apart; 0: never.
        min_trust: pictured episodes are given up below this trust (see docs/trust.md); 0: never.
        approach: reward for coming near, to push and lift, see `things_env.ThingVectorEnv`.
        bonus: reward for a task that is solved.
        data: recordings whose moments are starts; "" takes the card's shipped starts.
        moments: how many of them.
        any_task: take moments of other tasks' episodes, too.
        init: folder of an agent to begin with (PPO only); "": from scratch.
        kl: weight of the distance to that agent, in reward for a nat; 0: free.
        critic_rounds: rounds in which only the critic learns, where the agent is not from scratch.
        gamma, learning_rate: of the algorithm.
        round_steps: decisions of each slot between two updates (PPO) or checkpoints (SAC).
        check_every: rounds from one try in the oracle to the next, beside it the same in imagination where that is
            trained in; the last round is tried, too; 0: never. Needs PyBullet.
        check_starts: so many of the card's starts are tried.
        check_steps: control steps of such a try.
        world_model, judge: names or folders; the card's world model by default.
    """

    task: str = "reach"
    algorithm: str = "ppo"
    world: str = "imagination"
    card: str = "VAP-DROID-v0"
    steps: int = 200_000
    seed: int = 0
    slots: int = 64
    horizon: int = 20
    hold: int = 2
    agree: int = 2
    of: int = 3
    noise: bool = True
    max_spread_m: float = 0.03
    min_trust: float = 0.0
    approach: float = 0.5
    bonus: float = 1.0
    data: str = ""
    moments: int = 400
    any_task: bool = True
    init: str = ""
    kl: float = 0.0
    critic_rounds: int = 4
    gamma: float = 0.97
    learning_rate: float = 3e-4
    round_steps: int = 32
    check_every: int = 0
    check_starts: int = 24
    check_steps: int = 100
    world_model: str = ""
    judge: str = "tiny"

    def __post_init__(self) -> None:
        checked_task(self.task)
        for kind, given, known in (("algorithm", self.algorithm, ALGORITHMS), ("world", self.world, WORLDS)):
            if given not in known:
                raise unknown_name(kind, given, known)
        counts = ("steps", "slots", "hold", "round_steps", "moments", "check_starts", "check_steps")
        low = {name: getattr(self, name) for name in counts if getattr(self, name) < 1}
        if low:
            raise VapError(f"{', '.join(low)} must be at least 1, got {', '.join(map(str, low.values()))}.")
        if self.horizon < self.hold or self.horizon % self.hold or self.check_steps % self.hold:
            raise VapError(
                f"horizon and check_steps must be multiples of hold ({self.hold}), got {self.horizon} and "
                f"{self.check_steps}."
            )
        if not (0.0 < self.gamma < 1.0 and self.learning_rate > 0.0 and self.kl >= 0.0 and self.max_spread_m >= 0.0):
            raise VapError(
                "gamma must be between 0 and 1, learning_rate above 0, kl and max_spread_m not below 0, got "
                f"{self.gamma}, {self.learning_rate}, {self.kl} and {self.max_spread_m}."
            )
        if self.algorithm == "sac" and (self.init or self.kl):
            raise VapError(
                "An agent to begin with, and a distance to it, are for PPO, got algorithm='sac' with "
                f"init='{self.init}' and kl={self.kl}. Use algorithm='ppo'."
            )
        if self.min_trust and self.world != "pictures":
            raise VapError(
                f"min_trust is of pictures, got {self.min_trust} with world='{self.world}'. Use max_spread_m in "
                "imagination, or world='pictures'."
            )
        if self.kl and not self.init:
            raise VapError(f"kl={self.kl} needs an agent to stay near to, got none. Give init, or kl=0.")
        Steady(self.agree, self.of)

    def save(self, path: Path) -> None:
        """Write the settings as JSON (temp name, then renamed)."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    @staticmethod
    def read(path: Path) -> RlSettings:
        """Read what `save` wrote. Raises CheckpointError where it is missing or damaged."""
        try:
            return RlSettings(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"No settings of a training in '{path}': {error}. Resume a folder that vap-gym train-rl wrote."
            ) from error
