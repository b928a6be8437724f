"""The lines that a run has logged, and a callback that stops the run."""

import json

from gpucnn import train

TIMES = {"seconds", "images_per_second", "step_ms"}


def lines(path):
    """The records of a file, without what was measured."""
    assert path.read_bytes().endswith(b"\n")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


class StopAt(train.Callback):
    def __init__(self, step):
        self.step = step

    def on_batch_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop()
