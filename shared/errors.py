"""Every failure the platform can name.

    AiaasError
    ├── CallerError                     the request must change before it can succeed
    │   ├── InvalidInput                invalid_input        body, tensor or header breaks the contract
    │   ├── InvalidId                   invalid_id           `ce_id` empty, not ASCII or over 200 bytes
    │   ├── IdConflict                  id_conflict          the id names another request of this model
    │   ├── DuplicateUnresolved         duplicate_unresolved the first request of this id has no result in time
    │   ├── TooLarge                    too_large            above a configured size
    │   ├── UnsupportedEncoding         unsupported_encoding a body compressed in a way that is not read here
    │   ├── UnknownModel                unknown_model
    │   ├── UnknownVersion              unknown_version
    │   ├── UnknownRequest              unknown_request      never accepted, or its result has expired
    │   ├── UnknownExport               unknown_export       never asked for, or forgotten
    │   ├── Conflict                    conflict             version taken, or not in a state that allows this
    │   ├── ModelRejected               model_rejected       the optimizer refused the upload
    │   ├── ModelRetired                model_retired
    │   ├── Unauthorized                unauthorized         API key missing or unknown
    │   ├── Stalled                     stalled              a body did not arrive in time
    │   ├── Unsupported                 unsupported          a part of the protocol that is not here
    │   ├── ArtifactNotFound            artifact_not_found
    │   └── DigestMismatch              digest_mismatch      bytes are not those that were promised
    ├── Unavailable                     the same request may succeed later (retriable)
    │   ├── ModelNotReady               not_ready            uploaded, not yet through the gate
    │   ├── ModelNotLoaded              not_loaded           unloaded on purpose; loading it brings it back
    │   ├── Unfinished                  unfinished           it is recorded, and not yet seen to be done
    │   ├── Overloaded                  overloaded           an in-flight bound is reached, or the backlog is too long
    │   ├── QuotaExceeded               quota_exceeded       the tenant has used up what it may ask for now
    │   ├── LogUnavailable              log_unavailable      Kafka did not acknowledge
    │   ├── RepliesUnavailable          replies_unavailable  Redis did not answer
    │   ├── StoreUnavailable            store_unavailable    the artifact store did not answer
    │   └── Stopping                    stopping             this instance shuts down; another may answer
    └── RunError                        accepted, executed or due, and ended without an answer
        ├── DeadlineExceeded            deadline_exceeded
        ├── RequestCancelled            cancelled
        ├── ExecutionFailed             execution_failed     the model raised
        ├── RunTimeout                  run_timeout          the model ran longer than one run may
        └── WorkerCrashed               worker_crashed       the record killed the worker three times

`code` is stable and goes to callers, outcomes and dead letters; the message is for people and may change. The
gateway alone maps codes to HTTP. Third-party failures become these at the edge, `raise … from err`.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

LEAST_RETRY_AFTER_S: Final = 1
MOST_RETRY_AFTER_S: Final = 60


class AiaasError(Exception):
    """Base of all errors: a stable `code`, whether a retry can help, and a sentence for people."""

    code: ClassVar[str] = "internal"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CallerError(AiaasError):
    """The caller must change something."""


class InvalidInput(CallerError):
    code = "invalid_input"


class InvalidId(CallerError):
    code = "invalid_id"


class IdConflict(CallerError):
    code = "id_conflict"


class DuplicateUnresolved(CallerError):
    code = "duplicate_unresolved"


class TooLarge(CallerError):
    code = "too_large"


class UnsupportedEncoding(CallerError):
    code = "unsupported_encoding"


class UnknownModel(CallerError):
    code = "unknown_model"


class UnknownVersion(CallerError):
    code = "unknown_version"


class UnknownRequest(CallerError):
    code = "unknown_request"


class UnknownExport(CallerError):
    code = "unknown_export"


class Conflict(CallerError):
    code = "conflict"


class ModelRejected(CallerError):
    code = "model_rejected"


class ModelRetired(CallerError):
    code = "model_retired"


class Unauthorized(CallerError):
    code = "unauthorized"


class Stalled(CallerError):
    code = "stalled"


class Unsupported(CallerError):
    code = "unsupported"


class ArtifactNotFound(CallerError):
    code = "artifact_not_found"


class DigestMismatch(CallerError):
    code = "digest_mismatch"


class Unavailable(AiaasError):
    """The same request may succeed later; `retry_after_s` says when to try, in whole seconds within fixed bounds."""

    retriable = True

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = math.ceil(min(max(LEAST_RETRY_AFTER_S, retry_after_s), MOST_RETRY_AFTER_S))


class ModelNotReady(Unavailable):
    code = "not_ready"


class ModelNotLoaded(Unavailable):
    code = "not_loaded"


class Unfinished(Unavailable):
    code = "unfinished"


class Overloaded(Unavailable):
    code = "overloaded"


class QuotaExceeded(Unavailable):
    code = "quota_exceeded"


class LogUnavailable(Unavailable):
    code = "log_unavailable"


class RepliesUnavailable(Unavailable):
    code = "replies_unavailable"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class Stopping(Unavailable):
    code = "stopping"


class RunError(AiaasError):
    """The request was accepted and ended without an answer."""


class DeadlineExceeded(RunError):
    code = "deadline_exceeded"


class RequestCancelled(RunError):
    code = "cancelled"


class ExecutionFailed(RunError):
    code = "execution_failed"


class RunTimeout(RunError):
    code = "run_timeout"


class WorkerCrashed(RunError):
    code = "worker_crashed"
