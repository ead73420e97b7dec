"""TensorBoard: writing the events of a run, and serving them to a browser.

It sorts the groups of tags by name and opens the first two, hence loss/ and optimizer/, and then progress/, speed/,
system/ and time/.
"""

import getpass
import io
import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgpt.errors import UserError
from dgpt.train.append import AppendFile

FOLDER = "tensorboard"
DEFAULT_PORT = 6006


class BoardWriter:
    """Writes points to run_dir/tensorboard; on resume TensorBoard drops what lies beyond `start_step`.

    Not by torch's SummaryWriter: its thread ends for good at the first write that fails, and the run with it.
    """

    def __init__(self, run_dir: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder = run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # readers take the files in the order of their names
        name = f"events.out.tfevents.{seconds:010}.{nanoseconds:09}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(folder / name)
        self._add(file_version="brain.Event:2")
        self._add(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, points: Mapping[str, float], step: int) -> None:
        """Raises OSError if they cannot be written; then none of them is."""
        from torch.utils.tensorboard.summary import scalar

        self._add(*(scalar(tag, value) for tag, value in points.items()), step=step)  # type: ignore[no-untyped-call]

    def add_text(self, tag: str, text: str, step: int) -> None:
        """A panel that shows `text` letter by letter (indented, as markdown leaves it alone). Raises as `add`."""
        from torch.utils.tensorboard.summary import text as panel

        self._add(panel(tag, re.sub("^", "    ", text, flags=re.MULTILINE)), step=step)  # type: ignore[no-untyped-call]

    def add_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        """An RGB picture (height, width, 3). Raises as `add`."""
        from torch.utils.tensorboard.summary import image as picture

        self._add(picture(tag, image, dataformats="HWC"), step=step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._file.close()

    def _add(self, *summaries: Any, **fields: Any) -> None:
        """One event for each summary, or one without; all in one write."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        piece, now = io.BytesIO(), time.time()
        for summary in summaries or (None,):
            RecordWriter(piece).write(Event(wall_time=now, summary=summary, **fields).SerializeToString())
        self._file.add(piece.getvalue())


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
