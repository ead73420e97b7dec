"""Batch arithmetic."""

import pytest

from dgpt.config import batch_plan, load_config
from dgpt.errors import UserError


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "dp_size", "accum"), [(64, 8, 1, 8), (64, 8, 8, 1), (512, 1, 64, 8), (6, 2, 3, 1)]
)
def test_accumulation_is_what_is_left(global_batch: int, micro_batch: int, dp_size: int, accum: int) -> None:
    config = load_config(
        None, [f"training.global_batch_size={global_batch}", f"training.micro_batch_size={micro_batch}"]
    )
    plan = batch_plan(config, dp_size)
    assert plan.grad_accum_steps == accum
    assert plan.micro_batch_size * plan.grad_accum_steps * plan.dp_size == plan.global_batch_size == global_batch


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "dp_size", "nearest"),
    [(64, 8, 3, "48 or 72"), (64, 8, 5, "40 or 80"), (8, 8, 2, "16"), (100, 10, 4, "80 or 120")],
)
def test_what_does_not_divide_prints_the_arithmetic_and_the_nearest(
    global_batch: int, micro_batch: int, dp_size: int, nearest: str
) -> None:
    config = load_config(
        None, [f"training.global_batch_size={global_batch}", f"training.micro_batch_size={micro_batch}"]
    )
    with pytest.raises(UserError) as caught:
        batch_plan(config, dp_size)
    message = str(caught.value)
    assert f"training.global_batch_size = {global_batch} does not divide" in message
    assert f"micro_batch_size {micro_batch} x dp_size {dp_size} = {micro_batch * dp_size}" in message
    assert f"set training.global_batch_size to {nearest}," in message
    for number in map(int, nearest.split(" or ")):
        fixed = load_config(None, [f"training.global_batch_size={number}", f"training.micro_batch_size={micro_batch}"])
        assert batch_plan(fixed, dp_size).global_batch_size == number
