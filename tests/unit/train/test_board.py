"""TensorBoard as a reader sees it: its own loader and its own server."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dgpt.errors import UserError
from dgpt.train.board import BoardWriter, serve, start_server


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_a_resumed_run_shows_each_step_once_and_texts_as_they_are(tmp_path: Path) -> None:
    killed = BoardWriter(tmp_path, start_step=0)
    for step in (10, 20, 30):
        killed.add({"loss/train": 1.0}, step)
    killed.close()
    resumed = BoardWriter(tmp_path, start_step=20)
    resumed.add({"loss/train": 3.0}, 30)
    resumed.add_text("sample", "def f(x):\n    return *x* <b>", 30)
    resumed.close()
    url = start_server(tmp_path / "tensorboard", None, "test")
    assert url.startswith("http://127.0.0.1:")
    points = get(f"{url}data/plugin/scalars/scalars?run=.&tag=loss/train")
    assert [(step, value) for _, step, value in points] == [(10, 1.0), (20, 1.0), (30, 3.0)]
    (text,) = get(f"{url}data/plugin/text/text?run=.&tag=sample/text_summary")
    assert "<pre><code>def f(x):\n    return *x* &lt;b&gt;\n</code></pre>" in text["text"]


def test_a_taken_port_is_a_mistake_that_names_it(tmp_path: Path) -> None:
    BoardWriter(tmp_path, start_step=0).close()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}"):
            serve(tmp_path, port)


def test_a_folder_without_events_is_a_mistake_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no TensorBoard events"):
        serve(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        serve(tmp_path / "nothing")
