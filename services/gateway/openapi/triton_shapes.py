"""What answers of Triton's extensions look like; a part of `shapes`."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.oip_shapes import Size
from shared.runtime_config import OptimizationOptions


class Spent(Struct):
    """How often, and the nanoseconds altogether."""

    count: Size
    ns: Size


class InferenceStatistics(Struct):
    """Requests by their end, and where the time of those that succeeded went."""

    success: Spent
    fail: Spent
    queue: Spent
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent
    cache_hit: Spent
    cache_miss: Spent


class BatchStatistics(Struct):
    """Runs with one number of requests in the batch."""

    batch_size: int
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent


class VersionStatistics(Struct):
    """Exact for the outcomes below `exact_at`, by partition of the outcome log."""

    name: str
    version: str
    last_inference: Size
    inference_count: Size
    execution_count: Size
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    exact_at: dict[str, int]


class Statistics(Struct):
    """Of every version that could answer or once did."""

    model_stats: list[VersionStatistics]


class IndexFilter(Struct):
    """Which versions the index is to have."""

    ready: bool | UnsetType = UNSET


class IndexEntry(Struct):
    """A version; `reason` is empty where it is ready."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str


class NoParameters(Struct):
    """Loading takes none."""

    parameters: Annotated[dict[str, Any], Meta(extra_json_schema={"maxProperties": 0})] | UnsetType | None = UNSET


class UnloadParameters(Struct, forbid_unknown_fields=True):
    """`unload_dependents` changes nothing: no model depends on another."""

    unload_dependents: Any | UnsetType = UNSET


class Unload(Struct):
    """What Triton's clients send with an unload."""

    parameters: UnloadParameters | UnsetType | None = UNSET


class ConfigTensor(Struct):
    """A tensor as Triton configures it; `dims` are without the batch where `max_batch_size` is above 0."""

    name: str
    data_type: str
    dims: list[int]
    is_shape_tensor: bool
    format: str | UnsetType = UNSET
    optional: bool | UnsetType = UNSET


class InstanceGroup(Struct):
    """What the live workers that hold the version run at once, by kind of device."""

    name: str
    kind: Literal["KIND_CPU", "KIND_GPU"]
    count: int


class DynamicBatching(Struct):
    """Present where rows of several requests share a run."""

    max_queue_delay_microseconds: int
    priority_levels: int
    default_priority_level: int


class WorkerHolding(Struct):
    """A live worker that holds the version; `configured`: with the options that the version has now."""

    instance: str
    engine: str
    provider: str
    threads: int
    configured: bool


class ModelConfig(Struct):
    """A part of Triton's `ModelConfig`, and `workers`."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, list[int]]]
    max_batch_size: Size
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    instance_group: list[InstanceGroup]
    default_model_filename: str
    model_transaction_policy: dict[str, bool]
    workers: list[WorkerHolding]
    parameters: dict[str, dict[str, str]] | UnsetType = UNSET
    optimization: OptimizationOptions | UnsetType = UNSET
    dynamic_batching: DynamicBatching | UnsetType = UNSET


class NoRegions(Struct):
    """No shared memory is registered."""

    registered: Annotated[list[Any], Meta(max_length=0)]


class NoRegion(Struct):
    """The region is not registered."""

    name: str
    registered: bool


class TraceSettings(Struct):
    """Off."""

    trace_level: list[str]


class LogSettings(Struct):
    """Those that the gateway started with, in Triton's words."""

    log_file: str
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int
    log_format: str
