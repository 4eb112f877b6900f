"""Settings of the optimizer."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, Json, field_validator

from shared.optimization import Objective, Policy
from shared.settings import PlatformSettings

_MAX_PROTOBUF_BYTES = 2**31 - 1


class OptimizerSettings(PlatformSettings):
    """See `PlatformSettings` for how to reach Kafka and the store."""

    max_model_bytes: int = Field(default=512 * 1024**2, ge=1, le=_MAX_PROTOBUF_BYTES)
    """The largest file that is looked at. Protobuf itself ends at 2 GiB."""
    max_data_bytes: int = Field(default=2 * 1024**3, ge=1)
    """The largest data set that is looked at."""
    threads: int = Field(default=1, ge=1)
    """Intra-op threads of a measured run."""
    batch_cap: int = Field(default=256, ge=1, le=1024)
    """Most rows that a variant may be proved for; the measured time and memory of a run may lower it."""
    max_batch_run_s: float = Field(default=0.25, gt=0)
    """How long a run of a full batch may take: the cap of a slow model stays below it, and an urgent request waits no
    longer for a run that has begun."""

    job_timeout_s: float = Field(default=300.0, gt=0)
    """How long vetting a model and measuring it as it is may take."""
    time_budget_s: float = Field(default=60.0, gt=0)
    """How long all candidates of a version may take together, unless its policy says otherwise: so long an upload waits
    to be served. What is not tried for want of time is on record."""
    max_time_budget_s: float = Field(default=24 * 3600.0, gt=0)
    """The most that a policy may ask for."""
    step_timeout_s: float = Field(default=600.0, gt=0)
    """How long one candidate may take. Training may take all of the budget."""
    sweep_after_s: float = Field(default=7 * 24 * 3600.0, ge=0)
    """How long files of rejected candidates stay in the store, for the same upload or another policy to find."""
    measure_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """How long a worker of another class may take to measure the candidates there, below its traffic. Without an answer
    they are judged by what was measured here."""
    checkpoint_s: float = Field(default=30.0, ge=0)
    """How often the state of a training is kept, so that another optimizer can go on there."""
    run_timeout_s: float = Field(default=20.0, gt=0)
    """How long one run of the model may take before it is terminated."""
    sandbox_memory_bytes: int = Field(default=6 * 1024**3, ge=1024**3)
    """Address space of the child: several copies of the model, of its tensors, and the libraries (about 1 GiB)."""
    scratch_dir: Path | None = None
    """Where jobs keep their files while they run; in `data_dir` if not set. One optimizer's alone: what is found there
    at the start is removed."""

    pt2_tenants: Json[list[str]] = Field(default="[]", validate_default=True)
    """JSON list of the tenants who may upload `torch.export` programs; `["*"]`: everyone. Loading one can run what is
    in it: it is vetted, and loaded in the sandbox alone."""
    torchscript_tenants: Json[list[str]] = Field(default="[]", validate_default=True)
    """The same for TorchScript."""

    min_cosine: float = Field(default=0.999, ge=0, le=1)
    """Answers that are no scores must be at least this similar to those of fp32, where there are no labels."""
    max_loss: float = Field(default=0.01, ge=0, le=1)
    """How much worse than fp32 a variant may be; without labels, for how many rows its best class may be another."""
    min_gain: float = Field(default=1.05, ge=1)
    """How many times better than fp32 a variant must be, in the objective, to be worth serving."""
    objective: Objective = "latency"
    """What is best of what passes."""

    @field_validator("pt2_tenants", "torchscript_tenants", mode="before")
    @classmethod
    def _empty_is_none(cls, text: object) -> object:
        return text or "[]"  # a variable that is there and empty, as compose files pass it on

    @property
    def allowed_formats(self) -> dict[str, list[str]]:
        """Tenants by the variable that lists them."""
        return {"AIAAS_PT2_TENANTS": self.pt2_tenants, "AIAAS_TORCHSCRIPT_TENANTS": self.torchscript_tenants}

    @property
    def policy(self) -> Policy:
        """What is asked of candidates of versions that ask for nothing else."""
        return Policy(
            objective=self.objective,
            max_loss=self.max_loss,
            min_cosine=self.min_cosine,
            min_gain=self.min_gain,
            proof="estimate",
            time_budget_s=self.time_budget_s,
        )

    @property
    def curves_dir(self) -> Path:
        """Where TensorBoard finds the curves of trainings."""
        return self.data_dir / "tensorboard"

    @property
    def jobs_dir(self) -> Path:
        """The directory of the jobs' directories, absolute: children work elsewhere."""
        return (self.scratch_dir or self.data_dir / "jobs").absolute()
