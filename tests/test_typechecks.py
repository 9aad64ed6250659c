"""The shapes in annotations are really checked while testing: a hook that silently does nothing would look the same."""

import os

import pytest
import torch

from vap_gym.geometry import transform


@pytest.mark.skipif(os.environ.get("VAP_TYPECHECK") == "0", reason="VAP_TYPECHECK=0 switches the checks off")
def test_wrong_shape_is_refused() -> None:
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError, match=r"batch 4 4"):
        transform(torch.eye(3), torch.zeros(2, 3))
