"""What a signal does to the command outside the part that does the work."""

import signal

import pytest

from gptoss_convert import process
from gptoss_convert.cli import run
from gptoss_convert.process import INTERRUPTED


@pytest.mark.parametrize("step", ["_prepare_standard_output", "_run"])
def test_interruption_before_and_after_the_command_is_told_in_one_line(
    step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(process, step, interrupted)
    assert run(["--version"]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_signals_are_heeded_as_before_when_the_command_has_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
