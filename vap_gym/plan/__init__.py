"""Planning: search over actions for the best future that a world model, or the simulator, foresees."""

from vap_gym.plan.costs import ScoreAsCost, cost_as_score
from vap_gym.plan.episode import Played, play_episode
from vap_gym.plan.fan import Fan, fan_movie, fan_sheet, imagined_fan
from vap_gym.plan.foresight import Foreseen, ForesightScore, LatentForesight, ThingForesight
from vap_gym.plan.goals import PictureGoal, TaskGoal
from vap_gym.plan.gradient import GradientAscent
from vap_gym.plan.gradients import DrawnForesight
from vap_gym.plan.icem import Icem
from vap_gym.plan.oracle import OracleForesight
from vap_gym.plan.outlook import ImaginedOutlook, OracleOutlook, of_latents, of_things
from vap_gym.plan.planned import PlannedPolicy, PlanSettings
from vap_gym.plan.planner import Bounds, Plan, Planner, held
from vap_gym.plan.policy import Horizon, MpcPolicy, StraightLine, by_task, start_of, task_bounds
from vap_gym.plan.sampling import Cem, Mppi, RandomShooting

__all__ = [
    "Bounds",
    "Cem",
    "DrawnForesight",
    "Fan",
    "Foreseen",
    "ForesightScore",
    "GradientAscent",
    "Horizon",
    "Icem",
    "ImaginedOutlook",
    "LatentForesight",
    "MpcPolicy",
    "Mppi",
    "OracleForesight",
    "OracleOutlook",
    "PictureGoal",
    "Plan",
    "PlanSettings",
    "PlannedPolicy",
    "Planner",
    "Played",
    "RandomShooting",
    "ScoreAsCost",
    "StraightLine",
    "TaskGoal",
    "ThingForesight",
    "by_task",
    "cost_as_score",
    "fan_movie",
    "fan_sheet",
    "held",
    "imagined_fan",
    "of_latents",
    "of_things",
    "play_episode",
    "start_of",
    "task_bounds",
]
