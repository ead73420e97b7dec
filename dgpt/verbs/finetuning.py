"""What the verbs around fine-tuning do with their options. Heavy imports happen in the verb."""

from argparse import Namespace

from dgpt import outcome
from dgpt.config import FinetuneConfig
from dgpt.errors import UserError
from dgpt.verbs.generation import check_new
from dgpt.verbs.training import start_processes


def finetune(config: FinetuneConfig, options: Namespace) -> int:
    if config.data.demo:
        from dgpt.data.demo_tasks import provide_demo

        provide_demo(config.data.demo, config.data.path)
    start_processes(options.nproc)
    from dgpt.finetune import finetune

    return finetune(config)


def predict(options: Namespace) -> int:
    from dgpt.finetuned import load_finetuned
    from dgpt.predict import one_row, predict
    from dgpt.tasks.rows import read_rows

    given = {name: getattr(options, name) for name in ("text", "text_pair", "context", "question")}
    if (options.file is None) == (set(given.values()) == {None}):
        raise UserError("predict takes a file or the options of one row", rule="exactly one of them is given",
                        fix="give a file, or --text, or --context and --question")  # fmt: skip
    check_new(options.output)
    model = load_finetuned(options.model)
    rows = list(read_rows(options.file)) if options.file else [one_row(model, given)]
    predict(model, rows, options.output, options.batch_size)
    return outcome.DONE
