"""How to train, as data: frozen structs that travel as JSON and are kept as the recipe of what was trained.

`checked` is called by whoever uses a config. It names the field that is wrong by its path, whether the config came from
JSON or was built in Python.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from services.optimizer.training.errors import InvalidConfig

Rate = Annotated[float, Meta(gt=0, le=100)]
Decay = Annotated[float, Meta(ge=0, le=10)]
Share = Annotated[float, Meta(ge=0, le=1)]
Beta = Annotated[float, Meta(ge=0, lt=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Patterns = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=1000)], ...], Meta(max_length=1000)]
"""Names of initializers, where `*`, `?` and `[…]` match as in a shell."""
Loss = Literal["auto", "cross_entropy", "soft_cross_entropy", "mse", "cosine"]


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of them are."""


class Sgd(Config, frozen=True, kw_only=True, tag_field="kind", tag="sgd"):
    """Stochastic gradient descent. `weight_decay` is added to the gradient."""

    learning_rate: Rate = 0.01
    momentum: Beta = 0.9
    nesterov: bool = True
    weight_decay: Decay = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")


class Adam(Config, frozen=True, kw_only=True, tag_field="kind", tag="adam"):
    """Adam (https://arxiv.org/abs/1412.6980). `weight_decay` is added to the gradient."""

    learning_rate: Rate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    weight_decay: Decay = 0.0


class AdamW(Config, frozen=True, kw_only=True, tag_field="kind", tag="adamw"):
    """Adam with weight decay apart from the gradient (https://arxiv.org/abs/1711.05101)."""

    learning_rate: Rate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    weight_decay: Decay = 0.01


Optimizer = Sgd | Adam | AdamW


class Constant(Config, frozen=True, kw_only=True, tag_field="kind", tag="constant"):
    """The learning rate stays."""


class Cosine(Config, frozen=True, kw_only=True, tag_field="kind", tag="cosine"):
    """It falls along half a cosine, to `final` times itself."""

    final: Share = 0.0


class Steps(Config, frozen=True, kw_only=True, tag_field="kind", tag="steps"):
    """It is multiplied by `factor` after each `every` epochs."""

    every: Annotated[int, Meta(ge=1, le=10_000)] = 10
    factor: Share = 0.1


Schedule = Constant | Cosine | Steps


class Training(Config, frozen=True, kw_only=True):
    """A training run: from weights to weights."""

    optimizer: Optimizer = AdamW()
    """Weight decay holds for matrices and kernels; biases and norms are spared, as is usual."""
    schedule: Schedule = Cosine()
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """The share of all steps in which the learning rate rises from nothing."""
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 10
    batch_rows: Annotated[int, Meta(ge=1, le=65_536)] = 32
    clip_norm: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """Gradients longer than this, all together, are shortened to it."""
    loss: Loss = "auto"
    temperature: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Of `soft_cross_entropy`: above 1 the smaller probabilities weigh more (https://arxiv.org/abs/1503.02531)."""
    held_out: Annotated[float, Meta(ge=0, le=0.9)] = 0.2
    """The share of rows that is not trained on. The weights of the epoch that was best on it are kept."""
    patience: Annotated[int, Meta(ge=1, le=10_000)] | None = 5
    """Epochs without a better loss on what is held out, after which training ends. None: all epochs."""
    train: Patterns = ("*",)
    freeze: Patterns = ()
    """Weights that stay; it wins over `train`."""
    keep_zeros: bool = False
    """Weights that are exactly 0 stay it: what `sparsify` gave survives."""
    output: Annotated[str, Meta(max_length=1000)] | None = None
    """The output that is trained; the first one by default."""
    seed: Seed = 0
    budget_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """Training ends after this time. How far it came then differs from run to run."""


C = TypeVar("C", bound=Config)


def checked(config: C) -> C:
    """The config, if every field is within its range.

    Raises:
        InvalidConfig: the first field that is not, by its path.
    """
    try:
        msgspec.convert(msgspec.to_builtins(config), type(config))
    except msgspec.ValidationError as err:
        found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", str(err))
        raise InvalidConfig(f"{found[2]}: {found[1]}" if found else str(err)) from err
    return config
