"""Where the scripts that come with dgpt lie."""

from pathlib import Path

HERE = Path(__file__).parent


def script(name: str) -> Path:
    """A file such as launch/torchrun.sh, of the installed package or of the checkout that this file is in."""
    return next(path for path in (HERE / name, HERE.parent / name) if path.is_file())
