"""run_dir/heartbeats: one small file for each node, which its agent writes and the agent of rank 0 reads; and the word
of rank 0's agent, which all of them read. The only part of the watch that touches the shared file system.

Clocks of nodes are not compared: a file says how long ranks were still when it was written, and the reader adds the
time for which it saw no newer one.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dgpt.watch.hang import Hang, Seen

FOLDER = "heartbeats"
WORD = "hang.json"
NOTHING = "nothing was said yet"
SILENT_LOOKS = 4  # without a newer file of a node, until its agent counts as silent


@dataclass
class _Node:
    """What was read of a node last."""

    content: dict[str, Any]
    age: float = 0.0  # seconds
    looks: int = 0


class Board:
    """Of one start of a run, for the agent of one node, whose lowest rank is `first_rank`."""

    def __init__(self, run_dir: str, attempt: str, first_rank: int) -> None:
        self._folder, self._attempt = Path(run_dir) / FOLDER, attempt
        self._own = self._folder / f"node_{first_rank:05d}.json"
        self._look = 0
        self._nodes: dict[Path, _Node] = {}
        self._word: Hang | str | None = NOTHING

    def _sweep(self) -> None:
        """Remove what earlier starts left."""
        for path in self._folder.glob("*.json"):
            if (_json(path) or {}).get("attempt") != self._attempt:
                path.unlink(missing_ok=True)

    def write(self, ranks: Sequence[Seen]) -> None:
        """Raises OSError."""
        self._look += 1
        self._folder.mkdir(exist_ok=True)
        self._put(self._own, look=self._look, ranks=[asdict(rank) for rank in ranks])

    def others(self, seconds: float) -> list[Seen]:
        """The ranks of the other nodes; `seconds` have passed since the last call. Raises OSError."""
        found: dict[Path, _Node] = {}
        for path in self._folder.glob("node_*.json"):
            content, before = _json(path), self._nodes.get(path)
            if path == self._own or (content and content["attempt"] != self._attempt):
                continue
            if before and (content is None or content["look"] == before.content["look"]):
                found[path] = _Node(before.content, before.age + seconds, before.looks + 1)
            elif content:
                found[path] = _Node(content)
        self._nodes = found
        return [rank for node in found.values() for rank in _ranks(node)]

    def leave(self) -> None:
        """The ranks of this node have ended. A word of a hang stays for the other agents, until the next start."""
        with suppress(OSError):
            self._own.unlink(missing_ok=True)
            if self._word is None:
                (self._folder / WORD).unlink(missing_ok=True)
            self._folder.rmdir()  # if it is empty

    def announce(self, hang: Hang | None) -> None:
        """Raises OSError. The file is there from the beginning: a file server may remember for long that one is not."""
        if self._word == NOTHING:
            self._sweep()
        if hang != self._word:
            self._put(self._folder / WORD, hang=asdict(hang) if hang else None)
            self._word = hang

    def announced(self) -> Hang | None:
        content = _json(self._folder / WORD)
        if not content or content["attempt"] != self._attempt or content["hang"] is None:
            return None
        return Hang(**{**content["hang"], "ranks": tuple(content["hang"]["ranks"])})

    def _put(self, path: Path, **content: Any) -> None:
        path.write_text(json.dumps({"attempt": self._attempt, **content}), encoding="utf-8")


def nodes_of_ranks(run_dir: Path) -> dict[int, str]:
    """Rank -> node, for the start that runs; empty where no agent watches."""
    contents = filter(None, map(_json, (run_dir / FOLDER).glob("node_*.json")))
    return {rank["rank"]: rank["node"] for content in contents for rank in content["ranks"]}


def _ranks(node: _Node) -> Iterator[Seen]:
    for entry in node.content["ranks"]:
        rank = Seen(**entry)
        state = "silent" if node.looks > SILENT_LOOKS else rank.state
        yield replace(rank, still=rank.still + node.age, stuck=rank.stuck + node.age, state=state)


def _json(path: Path) -> dict[str, Any] | None:
    """None if there is no such file, or it is being written."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None
