"""The verbs from a trained model to one for a task."""

from dgpt import finetune_verbs
from dgpt.cli.options import Verbs, add_verb, on_config, settings, with_config, with_nproc
from dgpt.config import FinetuneConfig


def _finetune(subparsers: Verbs) -> None:
    text = "train a model on the examples of a task; on an existing run folder, go on from its newest whole checkpoint"
    parser = add_verb(subparsers, "finetune", on_config(finetune_verbs.finetune, FinetuneConfig), text,
                      settings(FinetuneConfig))  # fmt: skip
    with_config(parser, FinetuneConfig)
    with_nproc(parser)


ADDERS = (_finetune,)
