"""A run whose newest checkpoint turns out damaged, or goes while it is read: its readers take the one before."""

import shutil
from pathlib import Path

import pytest
import torch

from dgpt.checkpoint import Checkpointer, CheckpointError, Found, MeshEntry, open_checkpoint
from dgpt.cli import main
from dgpt.finetuned import whole_model
from dgpt.fragments import Fragment
from dgpt.generate import load_model, use_whole
from dgpt.outcome import DONE, MISTAKE


@pytest.fixture
def run(random_run: Path, tmp_path: Path) -> Path:
    """Whole checkpoints of steps 1 and 2."""
    run = shutil.copytree(random_run, tmp_path / "run")
    found, (model, _) = open_checkpoint(run), load_model(run)
    weights = [Fragment(name, "weight", tuple(p.shape), None, 0, 1, 0, p.detach().flatten())
               for name, p in model.named_parameters()]  # fmt: skip
    writer = Checkpointer(run, 0, MeshEntry(world_size=1, dp_size=1, tp=1, zero_stage=0), "a2")
    writer.save(2, weights, found.manifest.meta)
    writer.wait()
    return run


def flip(run: Path) -> Path:
    """A bit of step 2, which only its hash tells."""
    path = run / "checkpoints" / "step_00000002" / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path.parent


@pytest.mark.parametrize(
    "verb", [["generate", "{}", "ba", "--max-new-tokens", "2"], ["export", "{}", "out", "--format", "dgpt"],
             ["export", "{}", "out"]],
)  # fmt: skip
def test_a_flipped_bit_is_passed_over_unless_that_checkpoint_is_asked_for(
    verb: list[str], run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = flip(run)
    assert main([argument.format(damaged) for argument in verb]) == MISTAKE
    assert "expected sha256" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main([argument.format(run) for argument in verb]) == DONE
    assert f"passed over {damaged}/rank_00000.safetensors: expected sha256" in capsys.readouterr().err


def test_one_that_a_run_deletes_meanwhile_is_passed_over(run: Path) -> None:
    used = []

    def use(found: Found) -> int:
        if not used:
            shutil.rmtree(found.folder)
        used.append(found.folder.name)
        whole_model(found, load_model(run)[1], torch.device("cpu"))
        return found.manifest.step

    assert use_whole(run, use) == 1
    assert used == ["step_00000002", "step_00000001"]


def test_where_none_is_whole_all_reasons_are_told(run: Path) -> None:
    flip(run)
    (run / "checkpoints" / "step_00000001" / "manifest.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"(?s)none of the 2 checkpoints here is whole:.*step_00000002/rank_00000"
    ):
        load_model(run)


@pytest.mark.parametrize(("name", "where"), [("", "the base of it"), ("checkpoints/step_00000002", "{}/rank_00000")])
def test_neither_a_damage_elsewhere_nor_a_checkpoint_by_its_name_is_tried_again(
    name: str, where: str, run: Path
) -> None:
    used = []

    def use(found: Found) -> None:
        used.append(found.folder)
        raise CheckpointError(where.format(found.folder), "is damaged", fix="")

    with pytest.raises(CheckpointError, match="is damaged"):
        use_whole(run / name, use)
    assert used == [run / "checkpoints" / "step_00000002"]


def test_renamed_checkpoints_are_no_reason_to_start_anew(run: Path) -> None:
    for step in (1, 2):
        (run / "checkpoints" / f"step_{step:08d}").rename(run / "checkpoints" / f"step_{step}")
    with pytest.raises(CheckpointError, match="holds checkpoints under names that are none: step_1, step_2"):
        open_checkpoint(run)
