"""Training: `loop.py` is the story; `feeds.py` what it eats, `optim.py` what it minimises, `runs.py` what it leaves."""

from wildcat.train.listener import Listener
from wildcat.train.loop import Outcome, choose_device, train
from wildcat.train.runs import Run, create_run, open_run

__all__ = ["Listener", "Outcome", "Run", "choose_device", "create_run", "open_run", "train"]
