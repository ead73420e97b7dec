"""What the verbs around fine-tuning do with their options. Heavy imports happen in the verb."""

from argparse import Namespace

from dgpt.config import FinetuneConfig
from dgpt.verbs import start_processes


def finetune(config: FinetuneConfig, options: Namespace) -> int:
    start_processes(options.nproc)
    from dgpt.finetune import finetune

    return finetune(config)
