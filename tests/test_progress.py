"""Signals to stop: the first one lets the step in hand end, a second one interrupts, a repetition does nothing."""

from __future__ import annotations

import signal

import pytest

import wildcat.progress
from wildcat.progress import interruptible, stop_code, stopped_by_signal, terminable


def test_sigterm_interrupts_a_command_wherever_it_is_and_is_its_exit_code() -> None:
    former = signal.getsignal(signal.SIGTERM)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with pytest.raises(KeyboardInterrupt), terminable():
            assert not stopped_by_signal()
            signal.raise_signal(number)
        assert stop_code() == code and stopped_by_signal()
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_repeated_signal_is_not_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sends its processes the signal that they have received with their group."""
    with terminable(), interruptible() as event:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert event.is_set()
        monkeypatch.setattr(wildcat.progress, "REPEATED", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
