"""New checkpoints of weights alone, made of one checkpoint or of several, one parameter in memory at a time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dgpt.checkpoint.compatible import model_difference, read_config
from dgpt.checkpoint.find import Found
from dgpt.checkpoint.format import DTYPE_NAMES, DTYPES, Manifest, TensorEntry
from dgpt.checkpoint.output import check_free
from dgpt.checkpoint.progress import Advance, byte_bar
from dgpt.checkpoint.weights import WEIGHT, new_checkpoint, whole_entry
from dgpt.checkpoint.whole import check_files, files_of, read_tensor, tensor_bytes
from dgpt.errors import UserError
from dgpt.storage import Place


def export(
    found: Found, output: Place, dtype: torch.dtype, extra: Mapping[str, bytes], *, progress: bool = False
) -> Manifest:
    """Write the weights in `dtype` to the folder `output`, which must not exist, in format 1; `extra` goes beside them.

    extra: files, by their names in the folder. Raises UserError if `output` exists or cannot be written,
    CheckpointError if the source is damaged; then nothing is left.
    """
    return _rewrite([found], found, output, dtype, extra, progress)


def average(sources: Sequence[Found], output: Place, extra: Mapping[str, bytes], *, progress: bool = False) -> Manifest:
    """Write the mean of the weights in fp32, summed in fp64; settings and progress are those of the newest source.

    Raises UserError if the sources are not of one model and one tokenizer, or one is given twice; else as `export`.
    """
    newest = newest_of(sources)
    _check_different(sources)
    for other in sources:
        _check_alike(newest, other)
    return _rewrite(sources, newest, output, torch.float32, extra, progress)


def newest_of(sources: Sequence[Found]) -> Found:
    return max(sources, key=lambda found: found.manifest.step)


def _rewrite(
    sources: Sequence[Found], like: Found, output: Place, dtype: torch.dtype | None, extra: Mapping[str, bytes],
    progress: bool,
) -> Manifest:  # fmt: skip
    for found in sources:
        _check_weights(found)
    manifest = like.manifest
    check_free(output, manifest.step)
    read = [(found, files_of(found, [WEIGHT])) for found in sources]
    total = sum(tensor_bytes(found, [WEIGHT]) + sum(file.size for file in files) for found, files in read)
    with byte_bar(f"writing {output.name}", total, enabled=progress) as advance:
        for found, touched in read:
            check_files(found, touched, advance)
        return new_checkpoint(output, manifest.step, manifest.meta, _entries(like, dtype),
                              lambda entry: _mean(sources, entry, advance), extra, epoch=manifest.epoch)  # fmt: skip


def _entries(like: Found, dtype: torch.dtype | None) -> list[TensorEntry]:
    """The tensors as they will be stored."""
    return [whole_entry(t.name, t.shape, DTYPE_NAMES[dtype] if dtype else t.states[WEIGHT])
            for t in like.manifest.tensors]  # fmt: skip


def _mean(sources: Sequence[Found], entry: TensorEntry, advance: Advance) -> Tensor:
    """The mean of one parameter; of a single source, its own bits."""
    tensors = (read_tensor(found, found.manifest.tensor_ids[entry.name], WEIGHT, advance) for found in sources)
    dtype = DTYPES[entry.states[WEIGHT]]
    if len(sources) == 1:
        return next(tensors).to(dtype)
    total = next(tensors).double()
    for tensor in tensors:
        total += tensor
    return total.div_(len(sources)).to(dtype)


def _check_weights(found: Found) -> None:
    without = [tensor.name for tensor in found.manifest.tensors if WEIGHT not in tensor.states]
    if without or not found.manifest.tensors:
        raise UserError(f"checkpoint {found.folder} holds no weight of {without[0] if without else 'any tensor'}",
                        rule="the weights of a whole model are needed", fix="give another checkpoint")  # fmt: skip


def _check_different(sources: Sequence[Found]) -> None:
    folders = (found.folder.resolve() if isinstance(found.folder, Path) else found.folder for found in sources)
    folder, times = Counter(map(str, folders)).most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder} is given {times} times", rule="each checkpoint of a mean has the same weight in it",
                        fix="name it once; a run folder stands for its best or its newest checkpoint")  # fmt: skip


def _check_alike(newest: Found, other: Found) -> None:
    """Raises UserError that names the first difference between the two models or their tokenizers."""
    reason = None
    if difference := model_difference(read_config(other).model, read_config(newest).model):
        reason = "model.{} = {!r} and {!r}".format(*difference)
    elif other.manifest.meta.tokenizer_hash != newest.manifest.meta.tokenizer_hash:
        reason = "their tokenizers"
    elif _shapes(other) != _shapes(newest):
        reason = f"tensors such as {min(dict(_shapes(other) ^ _shapes(newest)))}"
    if reason:
        raise UserError(f"{other.folder} and {newest.folder} differ in {reason}",
                        rule="a mean is taken over checkpoints of one model and one tokenizer",
                        fix="give checkpoints of one run, or of runs with the same settings")  # fmt: skip


def _shapes(found: Found) -> set[tuple[str, tuple[int, ...]]]:
    return {(tensor.name, tensor.shape) for tensor in found.manifest.tensors}
