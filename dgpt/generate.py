"""A trained model in one process, for sampling: from a run folder or one checkpoint, whatever topology wrote it."""

from pathlib import Path

import torch

from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import open_checkpoint
from dgpt.checkpoint.load import load_weights
from dgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgpt.model.gpt import GPT


def load_model(path: Path) -> tuple[GPT, Tokenizer]:
    """The model in fp32 on the GPU if there is one, and its tokenizer. Raises UserError if `path` holds neither."""
    found = open_checkpoint(path)
    with torch.device("meta"):
        model = GPT(read_config(found).model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to_empty(device=device)
    model.tie_weights()
    load_weights(found.folder, model)
    run_dir = found.folder.resolve().parents[1]
    return model.eval(), load_tokenizer(run_dir / "tokenizer")
