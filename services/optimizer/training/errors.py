"""What can go wrong here, in words for who uploaded the model or asked for the training.

```
TrainingError             code
├── UnsupportedModel      unsupported_operator   the graph holds what is not interpreted: named, all at once
├── NotPrunable           not_prunable           no channel, head or neuron can go, or what is left does not run
├── NoHead                no_head                no last product with a constant matrix stands before the output
├── InvalidConfig         invalid_config         a field is out of its range: named, by its path
├── InvalidData           invalid_data           arrays do not fit each other, or not the model
└── Diverged              diverged               the loss became infinite or not a number
```

Nothing else is raised on purpose. Torch's own exceptions pass where a graph that is supported gets data that it can't
take; whoever runs this treats any exception as a failed candidate.
"""

from __future__ import annotations

from typing import ClassVar


class TrainingError(Exception):
    """The root: `code` is stable, the message is for people."""

    code: ClassVar[str]


class UnsupportedModel(TrainingError):
    """Operators, or variants of operators, that are not interpreted."""

    code = "unsupported_operator"

    def __init__(self, *found: str) -> None:
        super().__init__(f"Not supported in training: {', '.join(found)}")
        self.found = found


class NotPrunable(TrainingError):
    """No structure can be removed, or the removal could not be followed through the graph."""

    code = "not_prunable"


class NoHead(TrainingError):
    """The model does not end in a product with a constant matrix."""

    code = "no_head"


class InvalidConfig(TrainingError):
    """A field of a config is wrong; the message begins with its path."""

    code = "invalid_config"


class InvalidData(TrainingError):
    """The arrays given do not fit."""

    code = "invalid_data"


class Diverged(TrainingError):
    """Training left the numbers: a smaller learning rate, or clipping, may help."""

    code = "diverged"
