"""`python -m dgpt.cli`, and the command `dgpt`."""

from dgpt.cli import main


def run() -> None:
    """Run one verb as all that this process does."""
    code = main()
    from dgpt import outcome

    outcome.leave(code)


if __name__ == "__main__":
    run()
