"""TensorBoard: writing the events of a run, and serving them to a browser.

It sorts the groups of tags by name and opens the first two, hence loss/ and optimizer/, and then progress/, speed/,
system/ and time/.
"""

import getpass
import logging
import re
import socket
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgpt.errors import UserError

FOLDER = "tensorboard"
FLUSH_SECONDS = 10
DEFAULT_PORT = 6006


class BoardWriter:
    """Writes points to run_dir/tensorboard; on resume TensorBoard drops what lies beyond `start_step`."""

    def __init__(self, run_dir: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / FOLDER), purge_step=start_step + 1, flush_secs=FLUSH_SECONDS)

    def add(self, points: Mapping[str, float], step: int) -> None:
        for tag, value in points.items():
            self._writer.add_scalar(tag, value, step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """A panel that shows `text` letter by letter: an indented block, as markdown leaves it alone."""
        self._writer.add_text(tag, re.sub("^", "    ", text, flags=re.MULTILINE), step)

    def add_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        self._writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def serve(path: Path, port: int | None = None) -> None:
    """`dgpt tensorboard RUN_DIR`: serve its curves on 127.0.0.1 until Ctrl-C; a folder of several runs compares them.

    Without `port` the first free one from 6006 on. Raises UserError if there are no events or the port is taken.
    """
    url = start_server(_events_folder(path), port, title=f"dgpt: {path}")
    number = url.rstrip("/").rpartition(":")[2]
    print(f"TensorBoard of {path}: {url}  (Ctrl-C ends it)")
    print("from another machine, first open a tunnel there:")
    print(f"  ssh -N -L {number}:127.0.0.1:{number} {getpass.getuser()}@{socket.gethostname()}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print()


def start_server(folder: Path, port: int | None, title: str) -> str:
    """Serve `folder` from a background thread of this process and return the URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries that it bundles
        return _start_server(folder, port, title)


def _start_server(folder: Path, port: int | None, title: str) -> str:
    from tensorboard import program

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard()
    # the Python loader: no second process, and no note about an experiment; a run has few enough points for it
    options = ["--logdir", str(folder), "--host", "127.0.0.1", "--window_title", title, "--load_fast", "false"]
    board.configure([None, *options, *([] if port is None else ["--port", str(port)])])
    try:
        return str(board.launch())
    except program.TensorBoardServerException as error:
        raise UserError(
            f"TensorBoard cannot listen on port {port or DEFAULT_PORT}: {error}",
            rule="the port is free on this machine",
            fix="give another one with --port",
        ) from None


def _events_folder(path: Path) -> Path:
    if next(path.rglob("events.out.tfevents.*"), None) is None:
        raise UserError(
            f"'{path}' holds no TensorBoard events" if path.is_dir() else f"run folder '{path}' does not exist",
            rule="a run with logging.tensorboard = true writes them to RUN_DIR/tensorboard at its first logging step",
            fix="give the run folder of such a run, or a folder of several",
        )
    return path / FOLDER if (path / FOLDER).is_dir() else path
