"""Record batches byte by byte, for what no well-behaved client would send and a broker takes all the same.

Format: https://kafka.apache.org/documentation/#recordbatch (magic 2). `produce` sends one as it is.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cramjam
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint

if TYPE_CHECKING:
    from collections.abc import Sequence

CODECS = {
    "none": (0, bytes),
    "gzip": (1, gzip.compress),
    "snappy": (2, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "lz4": (3, lambda data: bytes(cramjam.lz4.compress(data))),
    "zstd": (4, lambda data: bytes(cramjam.zstd.compress(data))),
}


@dataclass(frozen=True)
class Raw:
    """One record; everything that a client library would choose is open."""

    value: bytes | None = b"value"
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    offset_delta: int | None = None
    timestamp_delta: int = 0
    attributes: int = 0
    lie_bytes: int = 0
    """Added to the record's length as it says it."""


def malformed() -> bytes:
    """A batch of three records that every broker takes and no reader may stand still at."""
    return batch(
        Raw(key=b"k", headers=[(b"ce_type\xff", b"x")]), Raw(key=b"k", attributes=0x80), Raw(key=b"k", offset_delta=99)
    )


def batch(
    *records: Raw,
    codec: str = "none",
    first_timestamp: int = 1_700_000_000_000,
    base_offset: int = 0,
    after: bytes = b"",
) -> bytes:
    number, compress = CODECS[codec]
    payload = compress(b"".join(_record(index, record) for index, record in enumerate(records))) + after
    last = max(range(len(records)))
    stamps = [first_timestamp + record.timestamp_delta for record in records]
    after_crc = struct.pack(">hiqqqhii", number, last, first_timestamp, max(stamps), -1, -1, -1, len(records)) + payload
    return struct.pack(">qiibI", base_offset, 9 + len(after_crc), -1, 2, calc_crc32c(after_crc)) + after_crc


async def produce(settings, topic: str, partition: int, content: bytes) -> int:
    """Append a batch as it is; returns the offset of its first record.

    Raises:
        KafkaError: the broker refused it.
    """
    client = AIOKafkaClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        [node] = {broker.nodeId for broker in client.cluster.brokers()}
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, content)])]
        )
        response = await client.send(node, request)
    finally:
        await client.close()
    [(_, [(_, code, offset, *_)])] = response.topics
    if code:
        raise for_code(code)
    return offset


def _record(index: int, record: Raw) -> bytes:
    body = struct.pack(">B", record.attributes) + _varint(record.timestamp_delta)
    body += _varint(index if record.offset_delta is None else record.offset_delta)
    body += _nullable(record.key) + _nullable(record.value) + _varint(len(record.headers))
    for name, value in record.headers:
        body += _varint(len(name)) + name + _nullable(value)
    return _varint(len(body) + record.lie_bytes) + body


def _nullable(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    encode_varint(value, encoded.append)
    return bytes(encoded)
