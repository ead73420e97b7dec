"""The parity matrix: every topology computes what one process computes."""

import pytest
import torch
from pool import Pool, RankError
from tasks import curve, tiny

from dgpt.config import RunConfig
from dgpt.parallel.parity import Curve, topology

SHAPES = ("gpt2", "llama")
GRID = [(tp, dp) for tp in (1, 2, 4) for dp in (1, 2) if 1 < tp * dp <= 4]


@pytest.fixture(scope="module")
def reference(pool: Pool) -> dict[str, Curve]:
    """One process, plain torch."""
    return {shape: pool.run(curve, 1, config=tiny(f"model.shape={shape}"))[0] for shape in SHAPES}


def distance(pool: Pool, config: RunConfig, world: int, reference: Curve) -> float:
    return max(rank.distance(reference) for rank in pool.run(curve, world, config=config))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("tp", "dp"), GRID)
@pytest.mark.parametrize("shape", SHAPES)
def test_topology_equals_one_process(
    pool: Pool, reference: dict[str, Curve], shape: str, tp: int, dp: int, zero_stage: int
) -> None:
    micro = f"training.micro_batch_size={4 // dp}"  # two micro steps
    for sequence_parallel in (False, True) if tp > 1 else (False,):
        config = topology(tiny(f"model.shape={shape}", micro), tp, zero_stage, sequence_parallel)
        assert distance(pool, config, tp * dp, reference[shape]) < 1e-5


def test_grouped_query_attention_and_untied_gpt2_under_tp(pool: Pool) -> None:
    for overrides in (("model.shape=llama", "model.n_kv_head=2"), ("model.tie_embeddings=false",)):
        config = tiny(*overrides)
        expected = pool.run(curve, 1, config=config)[0]
        assert distance(pool, topology(config, 2, 3, sequence_parallel=True), 4, expected) < 1e-5


def test_clipping_and_z_loss_agree(pool: Pool) -> None:
    config = tiny("optimizer.grad_clip=0.1", "training.z_loss=1e-2")
    expected = pool.run(curve, 1, config=config)[0]
    for zero_stage in (0, 1, 3):
        assert distance(pool, topology(config, 2, zero_stage), 4, expected) < 1e-5


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bf16_stays_near_one_process(pool: Pool, zero_stage: int) -> None:
    """16 bit rounds differently at each topology; the curves stay within its 8 bits of mantissa."""
    expected = pool.run(curve, 1, config=tiny(), dtype=torch.bfloat16)[0]
    for tp in (1, 2) if zero_stage else (1,):
        ranks = pool.run(curve, 2, config=topology(tiny(), tp, zero_stage), dtype=torch.bfloat16)
        assert all(rank.distance(expected) < 5e-3 for rank in ranks)


def test_zero_0_in_16_bit_with_tp_is_refused(pool: Pool) -> None:
    with pytest.raises(RankError, match=r"parallel\.zero_stage = 0 with parallel.tp = 2 in torch\.bfloat16"):
        pool.run(curve, 2, config=topology(tiny(), 2, 0), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("tp", "dp", "zero_stage", "sequence_parallel"),
    [(1, 1, 1, False), (1, 2, 3, False), (2, 1, 1, False), (2, 1, 3, True), (2, 2, 2, True)],
)
def test_activation_checkpointing_changes_no_bit(
    pool: Pool, tp: int, dp: int, zero_stage: int, sequence_parallel: bool
) -> None:
    curves = []
    for policy in ("none", "full", "selective", "selective_every=2", "full offloaded"):
        name, _, extra = policy.replace("_every=", " ").partition(" ")
        overrides = [f"activation_checkpointing.policy={name}", "model.dropout=0.2"]
        overrides += [f"activation_checkpointing.selective_every={extra}"] if extra.isdigit() else []
        overrides += ["activation_checkpointing.offload=true"] if extra == "offloaded" else []
        config = topology(tiny(*overrides), tp, zero_stage, sequence_parallel)
        curves.append(pool.run(curve, tp * dp, config=config, steps=3))
    assert all(other == curves[0] for other in curves[1:])
    assert curves[0][0].losses != pool.run(curve, 1, config=tiny(), steps=3)[0].losses, "dropout had no effect"


def test_compiled_blocks_compute_the_same_under_tp(pool: Pool) -> None:
    expected = pool.run(curve, 1, config=tiny())[0]
    config = tiny("training.compile=true", "activation_checkpointing.policy=full")
    assert distance(pool, topology(config, 2, 1, sequence_parallel=True), 2, expected) < 1e-5


def test_compile_with_zero_3_is_refused(pool: Pool) -> None:
    with pytest.raises(RankError, match=r"training\.compile = true with parallel\.zero_stage = 3"):
        pool.run(curve, 2, config=topology(tiny("training.compile=true"), 1, 3))


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_offloaded_optimizer_state_computes_the_same(pool: Pool, reference: dict[str, Curve], zero_stage: int) -> None:
    config = topology(tiny("parallel.offload_optimizer=true"), 1, zero_stage)
    assert distance(pool, config, 2, reference["gpt2"]) < 1e-5
