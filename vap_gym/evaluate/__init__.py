"""Evaluation: policies in the same trials, held-out episodes, and what the benchmarks print of fidelity and speed."""

import sys
from types import ModuleType
from typing import Any


class _Evaluation(ModuleType):
    """This package, which can be called: `vap_gym.evaluate(policies, env_id, starts, seeds)` → `Report`."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """See `evaluate_policies`."""
        from vap_gym.evaluate.policies import evaluate_policies

        return evaluate_policies(*arguments, **settings)


sys.modules[__name__].__class__ = _Evaluation
