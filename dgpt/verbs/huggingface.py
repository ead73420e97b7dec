"""What the verbs between dgpt and `transformers` do with their options. Heavy imports happen in the verb."""

import sys
from argparse import Namespace

from dgpt import outcome
from dgpt.errors import UserError
from dgpt.tables import size_text


def export(options: Namespace) -> int:
    from dgpt.export import export, export_huggingface
    from dgpt.huggingface.export import MAX_SHARD_BYTES

    progress = sys.stderr.isatty()
    if options.format == "dgpt" and options.max_shard_size is not None:
        raise UserError("--max-shard-size with --format dgpt", rule="files of that format have at most 4 GiB",
                        fix="leave it out, or export for transformers (--format huggingface)")  # fmt: skip
    if options.format == "dgpt":
        written = export(options.source, options.output, options.dtype, progress=progress)
    else:
        written = export_huggingface(options.source, options.output, options.dtype,
                                     options.max_shard_size or MAX_SHARD_BYTES, progress=progress)  # fmt: skip
    print(f"{options.output}: weights of step {written.step} in {options.dtype}, {size_text(written.bytes)}")
    return outcome.DONE


def import_(options: Namespace) -> int:
    from dgpt.huggingface.importing import import_folder

    manifest = import_folder(options.source, options.output, progress=sys.stderr.isatty())
    print(f"{options.output}: {len(manifest.tensors)} tensors of {options.source}, {size_text(manifest.bytes)}")
    return outcome.DONE


def convert_pickle(options: Namespace) -> int:
    from dgpt.huggingface.pickles import convert

    convert(options.source, options.output)
    print(f"{options.output}: a copy of {options.source} with its weights as safetensors")
    return outcome.DONE
