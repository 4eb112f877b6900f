"""What training makes small, and what people read beside it.

Which loss fits depends on what an output is: `kind` looks at the operator that made it. Classes lie along the last
axis. An output of one column, or one behind a sigmoid, answers yes or no in each column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch.nn import functional

from services.optimizer.training.errors import InvalidData

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto
    from torch import Tensor

    from services.optimizer.training.config import Loss
    from services.optimizer.training.weights import Array

Kind = Literal["scores", "probabilities", "log_probabilities", "odds"]
_KINDS: Final[Mapping[str, Kind]] = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities", "Sigmoid": "odds"}
_METRICS: Final[Mapping[str, str]] = {
    "cross_entropy": "accuracy",
    "soft_cross_entropy": "agreement",
    "mse": "mse",
    "cosine": "cosine",
}
_TINY: Final = 1e-12


def kind(model: ModelProto, output: str) -> Kind:
    """What the numbers of an output are."""
    makers = {name: node for node in model.graph.node for name in node.output}
    while output in makers and makers[output].op_type == "Identity":
        output = makers[output].input[0]
    return _KINDS.get(makers[output].op_type, "scores") if output in makers else "scores"


@dataclass(frozen=True)
class Objective:
    """A loss for an output of a kind. `soft_cross_entropy` takes targets of the same kind as the output."""

    loss_name: Loss
    kind: Kind
    temperature: float = 1.0

    @property
    def metric_name(self) -> str:
        """What `metric` gives: `accuracy`, `agreement` and `cosine` are better high, `mse` low."""
        return _METRICS[self.loss_name]

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The mean over the rows.

        Raises:
            InvalidData: the targets' shape does not fit.
        """
        if self.loss_name == "cross_entropy":
            return self._labels(output, targets)
        if output.shape != targets.shape:
            raise InvalidData(f"The output is {list(output.shape)}, and the targets are {list(targets.shape)}")
        if self.loss_name == "soft_cross_entropy":
            return self._divergence(output, targets)
        if self.loss_name == "cosine":
            return (1 - functional.cosine_similarity(output, targets, dim=-1)).mean()
        return functional.mse_loss(output, targets)

    def metric(self, output: Tensor, targets: Tensor) -> float:
        """The mean over the rows of what `metric_name` says."""
        if self.loss_name == "cosine":
            return float(functional.cosine_similarity(output, targets, dim=-1).mean())
        if self.loss_name == "mse":
            return float(functional.mse_loss(output, targets))
        hard = self.loss_name == "cross_entropy"
        if self._binary(output):
            said, wanted = self._yes(output), targets if hard else self._yes(targets)
            return float((said.reshape(wanted.shape) == wanted.bool()).float().mean())
        wanted = targets if hard else targets.argmax(-1)
        return float((output.argmax(-1) == wanted).float().mean())

    def _binary(self, output: Tensor) -> bool:
        return self.kind == "odds" or output.shape[-1] == 1

    def _yes(self, output: Tensor) -> Tensor:
        return output > (0.0 if self.kind == "scores" else 0.5)

    def _labels(self, output: Tensor, labels: Tensor) -> Tensor:
        if self._binary(output):
            wanted = self._fit(output, labels)
            if self.kind == "scores":
                return functional.binary_cross_entropy_with_logits(output, wanted)
            return functional.binary_cross_entropy(output, wanted)
        if labels.shape != output.shape[:-1]:
            raise InvalidData(f"The output is {list(output.shape)}, and the labels are {list(labels.shape)}")
        classes = output.shape[-1]
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise InvalidData(f"Labels {int(labels.min())} to {int(labels.max())} for {classes} classes")
        return functional.nll_loss(self._logs(output).reshape(-1, classes), labels.reshape(-1).long())

    def _fit(self, output: Tensor, labels: Tensor) -> Tensor:
        if labels.numel() != output.numel() or int(labels.min()) < 0 or int(labels.max()) > 1:
            raise InvalidData(f"The output {list(output.shape)} says yes or no, and the labels do not")
        return labels.reshape(output.shape).to(output.dtype)

    def _divergence(self, output: Tensor, targets: Tensor) -> Tensor:
        """Kullback-Leibler, times the square of the temperature, so that gradients keep their size."""
        if self._binary(output):
            if self.kind == "scores":
                return functional.binary_cross_entropy_with_logits(output, torch.sigmoid(targets))
            return functional.binary_cross_entropy(output, targets)
        wanted, said = self._logs(targets, self.temperature), self._logs(output, self.temperature)
        rows = (wanted.exp() * (wanted - said)).sum(-1)
        return rows.mean() * self.temperature**2

    def _logs(self, values: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities."""
        if self.kind == "probabilities":
            values = values.clamp_min(_TINY).log()
            return values if temperature == 1.0 else functional.log_softmax(values / temperature, -1)
        if self.kind == "log_probabilities" and temperature == 1.0:
            return values
        return functional.log_softmax(values / temperature, -1)


def objective(model: ModelProto, output: str, targets: Array, loss: Loss, temperature: float) -> Objective:
    """The objective asked for, or with `auto` the one that fits.

    Labels: cross-entropy. Rows of length 1: cosine. What is behind a softmax or a sigmoid: soft cross-entropy.
    Everything else: the mean squared error, which says nothing false of any numbers; scores of classes are better
    distilled with `soft_cross_entropy`, which can't be told from the graph.
    """
    found = kind(model, output)
    return Objective(_fitting(found, targets) if loss == "auto" else loss, found, temperature)


def _fitting(found: Kind, targets: Any) -> Loss:
    if targets.dtype.kind in "iub":
        return "cross_entropy"
    if found != "scores":
        return "soft_cross_entropy"
    lengths = (targets.astype("f8") ** 2).sum(-1)
    several = targets.ndim > 1 and targets.shape[-1] > 1
    return "cosine" if several and abs(lengths - 1).max() < 1e-3 else "mse"  # noqa: PLR2004 - as good as 1
