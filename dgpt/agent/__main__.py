"""`python -m dgpt.agent`."""

import gc
import sys


def run() -> None:
    """Imports make no garbage; to look for it meanwhile takes a quarter of their time. `preload` ends this."""
    gc.disable()
    from dgpt.agent.node import main
    from dgpt.outcome import leave

    leave(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
