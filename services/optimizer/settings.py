"""Settings of the optimizer."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings import PlatformSettings

_MAX_PROTOBUF_BYTES = 2**31 - 1


class OptimizerSettings(PlatformSettings):
    """See `PlatformSettings` for how to reach Kafka and the store."""

    max_model_bytes: int = Field(default=512 * 1024**2, ge=1, le=_MAX_PROTOBUF_BYTES)
    """The largest file that is looked at. Protobuf itself ends at 2 GiB."""
    threads: int = Field(default=1, ge=1)
    """Intra-op threads of a measured run."""
    batch_cap: int = Field(default=128, ge=1, le=1024)
    """Most rows that a variant may be proved for; the measured time and memory of a run may lower it."""
    max_batch_run_s: float = Field(default=0.25, gt=0)
    """How long a run of a full batch may take: the cap of a slow model stays below it, and an urgent request never waits
    longer for a run that has begun."""

    job_timeout_s: float = Field(default=300.0, gt=0)
    """How long the child may take for everything."""
    run_timeout_s: float = Field(default=20.0, gt=0)
    """How long one run of the model may take before it is terminated."""
    sandbox_memory_bytes: int = Field(default=6 * 1024**3, ge=1024**3)
    """Address space of the child: several copies of the model, of its tensors, and the libraries (about 1 GiB)."""
    scratch_dir: Path | None = None
    """Where jobs keep their files while they run; in `data_dir` if not set. One optimizer's alone: what is found there
    at the start is removed."""

    min_cosine: float = Field(default=0.999, ge=0, le=1)
    """A variant's answers must be at least this similar to those of fp32."""
    min_top1_agreement: float = Field(default=0.99, ge=0, le=1)
    """Where answers look like scores, the best one must be the same for this share of rows."""
    min_speedup: float = Field(default=1.05, ge=1)
    """How much faster than fp32 a variant must be to be worth serving."""

    @property
    def jobs_dir(self) -> Path:
        """The directory of the jobs' directories, absolute: children work elsewhere."""
        return (self.scratch_dir or self.data_dir / "jobs").absolute()
