"""The console: plain lines in a file, and a bar on a terminal that the lines do not break."""

import io

from dgpt.train.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, *, enabled: bool = True) -> str:
    with Console(total_steps=4, start_step=1, enabled=enabled, stream=stream) as console:
        console.print("step 2/4 | loss [0.5] :smile:")
        console.note("loss 0.5")
        for step in (2, 3, 4):
            console.advance(step)
    return stream.getvalue()


def test_a_file_gets_the_lines_alone() -> None:
    assert run(io.StringIO()) == "step 2/4 | loss [0.5] :smile:\n"


def test_a_terminal_gets_the_lines_and_a_bar_that_goes_away(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("dgpt.train.console.REDRAW_SECONDS", 0.0)
    shown = run(Terminal())
    assert "step 2/4 | loss [0.5] :smile:" in shown
    assert " 75%" in shown
    assert "100%" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the last thing is that the line of the bar is erased


def test_other_ranks_show_nothing() -> None:
    assert run(Terminal(), enabled=False) == ""
