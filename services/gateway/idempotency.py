"""`Idempotency-Key`: a request that is sent again has the answer of the first, and nothing runs twice.

The header is that of draft-ietf-httpapi-idempotency-key-header-07: a structured string (`"8e03978e"`); what many
clients send, the same without quotes, is the same key. It makes the request's id: a hash of tenant, model and key. So
everything that holds for ids holds for keys, on any gateway and beside any upstream producer: the worker runs one
record of an id, and every waiter gets the one answer.

Before a record is appended, the digest of what is asked for (the record's value and the version that the path names)
is set in Redis if nothing is there; another digest is a conflict (409). Then, if the id has an owner, the request is
already in the log and the caller joins it. If not, it is appended: the first of this key, or one at the same moment on
another gateway, or what the first could not get acknowledged. Of these the worker runs the first and repeats its
outcome for the others (`duplicate_of`).

A refused request (400, 503, …) was not accepted and leaves its key free. An accepted one holds it beyond its deadline
for as long as answers are kept; its answer is repeated whatever it was, a failure too. While a first request is under
way the draft allows 409; here the second waits for the same answer, which is what its caller wants.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from shared.codec import pack
from shared.errors import IdConflict, InvalidInput

if TYPE_CHECKING:
    from services.gateway.infer import Call
    from shared.replies import Claim, Replies
    from shared.results import Result

HEADER: Final = "idempotency-key"
MAX_CHARS: Final = 255
_STRING: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')
"""RFC 8941, section 3.3.3, without the empty string."""
_BARE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x7e]+")
"""Visible ASCII but quotes, and commas, which are how several headers look that were joined."""


def key_of(value: str) -> str:
    """The key out of the value of `Idempotency-Key`; of several headers, joined as HTTP joins them.

    Raises:
        InvalidInput: several, or not 1 to 255 printable ASCII characters in the form that the draft gives them.
    """
    if quoted := _STRING.fullmatch(value.strip()):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    else:
        key = value.strip() if _BARE.fullmatch(value.strip()) else ""
    if not 1 <= len(key) <= MAX_CHARS:
        raise InvalidInput(
            f"Idempotency-Key must be one string of 1 to {MAX_CHARS} printable ASCII characters, such as "
            '"8e03978e-40d5-43dd-bc93-6894a57f9324"'
        )
    return key


def request_id(tenant: str | None, model: str, key: str) -> str:
    """The id of the request that the key stands for: 64 hex digits."""
    return hashlib.sha256(pack([tenant, model, key])).hexdigest()


async def join(
    replies: Replies, call: Call, value: bytes, timeout_s: float
) -> tuple[Claim | None, Result | None] | None:
    """The record in the log that has this key and its answer, as far as known; None if this is to be appended.

    `value` is the record's that would be, `timeout_s` how long its answer may take. An answer is kept a little longer
    than the claim on its id.

    Raises:
        IdConflict: the key stands for another request.
        RepliesUnavailable: Redis does not tell.
    """
    input_sha256 = hashlib.sha256(value).hexdigest()
    digest = hashlib.sha256(f"{call.version} {input_sha256}".encode()).hexdigest()
    reserved = await replies.reserve(call.model, call.id, digest, timeout_s)
    owner = reserved.owner
    if reserved.digest != digest or (owner is not None and owner.input_sha256 != input_sha256):
        raise IdConflict("this Idempotency-Key was used for another request of this model: a new one needs a new key")
    return None if owner is None and reserved.result is None else (owner, reserved.result)
