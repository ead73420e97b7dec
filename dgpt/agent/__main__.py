"""`python -m dgpt.agent`."""

import gc
import sys


def run() -> None:
    """Imports make no garbage; to look for it meanwhile takes a quarter of their time. `node` enables it again."""
    gc.disable()
    from dgpt.agent.node import main
    from dgpt.outcome import leave

    try:
        code = main(sys.argv[1:])
    except SystemExit as end:  # a third Ctrl-C: the usual way out would wait for workers
        code = int(end.code or 0)
    leave(code)


if __name__ == "__main__":
    run()
