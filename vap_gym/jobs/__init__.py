"""Jobs: one function for every episode, on one core, in processes or on a Ray cluster, with the same result."""

from vap_gym.jobs.executors import EXECUTORS, Executor
from vap_gym.jobs.importing import AtOnce
from vap_gym.jobs.manifest import Outcome
from vap_gym.jobs.run import run_jobs

__all__ = ["EXECUTORS", "AtOnce", "Executor", "Outcome", "run_jobs"]
