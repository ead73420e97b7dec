"""What differs between a run and the checkpoint that it continues from: refused, warned of, or just said."""

from collections.abc import Iterator

from dgpt.checkpoint.find import Found
from dgpt.config import LoopConfig, flat
from dgpt.errors import UserError

# These decide which samples a step sees.
DATA_ORDER = ("seed", "model.seq_len", "training.global_batch_size", "data.reset_at_document", "data.max_tokens",
              "data.over_long", "data.packing")  # fmt: skip
# A change of these leaves the curve as it is, but for rounding.
FREE = ("data.", "tokenizer.", "parallel.", "activation_checkpointing.", "checkpoint.", "logging.", "resume.",
        "training.micro_batch_size", "training.eval_", "training.loss_chunk_tokens", "training.compile", "base",
        "best.", "task.max_new_tokens", "task.no_answer_threshold", "task.label_threshold")  # fmt: skip
BENDS = ("parallel.reduce_dtype", "parallel.zero_quantized", "parallel.zero_extra")  # numerics, all the same
ALLOWED = "resume.allow_data_change=true goes on nevertheless, with what the other stream of samples has at that step"


def check_same_data(found: Found, config: LoopConfig, data_hash: str, tokenizer_hash: str) -> None:
    """Raises UserError if the run would see other samples than the run that never stopped, unless that is allowed."""
    change = next(data_changes(found, config, data_hash, tokenizer_hash), None)
    if change and not config.resume.allow_data_change:
        what, fix = change
        raise UserError(what, rule="a resumed run sees the samples that the uninterrupted run would have seen",
                        fix=f"{fix}, or start a new run_dir; {ALLOWED}")  # fmt: skip


def data_changes(
    found: Found, config: LoopConfig, data_hash: str, tokenizer_hash: str
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Each difference that changes the samples, and how to undo it."""
    meta, where = found.manifest.meta, config.data.path
    hashes = (("a tokenizer", tokenizer_hash, meta.tokenizer_hash), ("data", data_hash, meta.data_hash))
    for what, ours, theirs in hashes:
        if ours != theirs:
            change = f"'{where}' holds {what} ({ours[:12]}) other than that of the checkpoint {found.folder}"
            yield f"data.path = {change} ({theirs[:12]})", "give the data of this run"
    for name, then, now in differences(found, config):
        if name in DATA_ORDER or (name.startswith("data.sources") and name.endswith("weight")):
            yield f"{name} = {now} now, {then} in the checkpoint {found.folder}", f"set {name}={then}"


def differences(found: Found, config: LoopConfig) -> Iterator[tuple[str, object, object]]:
    """(setting, value in the checkpoint, value now), where they differ."""
    then, now = flat(found.manifest.meta.config), flat(config.model_dump(mode="json"))
    for name in now | then:
        if name != "run_dir" and then.get(name) != now.get(name):
            yield name, then.get(name), now.get(name)


def report(found: Found, config: LoopConfig, data_hash: str, tokenizer_hash: str) -> Iterator[str]:
    """A line for each difference, those that bend the curve first."""
    samples = list(data_changes(found, config, data_hash, tokenizer_hash))
    yield from (f"WARNING, other samples from here on (resume.allow_data_change): {what}" for what, _ in samples)
    others = [change for change in differences(found, config) if change[0] not in DATA_ORDER]
    for free, what in ((False, "WARNING, this bends the curve"), (True, "changed since the checkpoint")):
        for name, then, now in others:
            if (name.startswith(FREE) and not name.startswith(BENDS)) == free:
                yield f"{what}: {name} = {then} -> {now}"
