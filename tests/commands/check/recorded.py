"""A Reporter that keeps its events, to test what a part reports."""

import io
import json

from gpucnn.commands.check.part import Reporter, Task


class Recorded:
    """The events that a part reports to .reporter."""

    def __init__(self, device="cudasim", quick=True):
        self._stream = io.StringIO()
        self.reporter = Reporter(Task(device, quick, "lenet5", 600.0), self._stream)

    def all(self, kind):
        """The values of the events of one kind, in order."""
        events = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [event[kind] for event in events if kind in event]

    def states(self):
        """{what: state} of the findings."""
        return {finding["what"]: finding["state"] for finding in self.all("finding")}

    def text(self):
        return self._stream.getvalue()
