"""`dgpt checkpoint` and its actions."""

from dgpt.cli.options import CHECKPOINT, Verbs, add_verb, positive
from dgpt.storage import place
from dgpt.verbs import checkpoints


def _checkpoint(subparsers: Verbs) -> None:
    text = "look at the checkpoints of a run, compare, thin out and average them"
    parser = add_verb(subparsers, "checkpoint", checkpoints.show, text)
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for add in (_list, _show, _verify, _diff, _prune, _average):
        add(actions)


def _list(actions: Verbs) -> None:
    text = "step, tokens, loss, size and age of each checkpoint of a run, and whether it is whole by its sizes"
    parser = add_verb(actions, "list", checkpoints.list_, text)
    parser.add_argument("run", type=place, metavar="RUN", help="a run folder")


def _show(actions: Verbs) -> None:
    text = "progress, topology and tensors of a checkpoint, and whether it is whole by its sizes"
    parser = add_verb(actions, "show", checkpoints.show, text)
    parser.add_argument("path", type=place, metavar="PATH", help=CHECKPOINT)


def _verify(actions: Verbs) -> None:
    text = "read every byte and compare with the hashes; exit code 0: whole, 2: damaged"
    parser = add_verb(actions, "verify", checkpoints.verify, text)
    parser.add_argument("path", type=place, metavar="PATH", help="a checkpoint, or a run folder: all that it holds")


def _diff(actions: Verbs) -> None:
    text = "compare the tensors of two checkpoints of any topology; exit code 0: equal, every bit, 1: not, 2: a mistake"
    parser = add_verb(actions, "diff", checkpoints.diff, text)
    for name in ("a", "b"):
        parser.add_argument(name, type=place, metavar=name.upper(), help=CHECKPOINT)
    parser.add_argument("--all", action="store_true", help="show every tensor, not only the most different")


def _prune(actions: Verbs) -> None:
    text = "delete old checkpoints of a run that has ended; damaged ones neither count nor go"
    parser = add_verb(actions, "prune", checkpoints.prune, text)
    parser.add_argument("run", type=place, metavar="RUN", help="a run folder")
    parser.add_argument("--keep-last", type=positive, required=True, metavar="K", help="keep the newest K whole ones")
    parser.add_argument("--keep-every", type=positive, default=0, metavar="N", help="keep multiples of N steps too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def _average(actions: Verbs) -> None:
    text = "write the mean of the weights of several checkpoints, as a folder that `dgpt generate` takes"
    parser = add_verb(actions, "average", checkpoints.average, text)
    parser.add_argument("sources", type=place, metavar="PATH", nargs="+", help=f"two or more; each {CHECKPOINT}")
    parser.set_defaults(list_name="sources")
    parser.add_argument("--output", type=place, required=True, metavar="FOLDER", help="a new folder or URL")


ADDERS = (_checkpoint,)
