"""`python -m newer_version up …`, in a copy of the source tree beside which this file lies: the program as a later version of it
would be. Its records carry a field and a header that this version has never heard of, and it says another version of itself.
The copy's histories have one migration more, each (tests/faults/test_rolling_upgrade.py writes them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

VERSION = "99.0.0"
FIELD, HEADER = b'"field_of_a_later_version":{"a":[1,2]}', "ce_laterextension"


def with_field(value: bytes) -> bytes:
    """A JSON object with one more field."""
    return value[:-1] + (b"," if len(value) > 2 else b"") + FIELD + b"}"


def main() -> None:
    from services import __main__ as program
    from services import run
    from shared.bus.kafka_writer import KafkaWriter
    from shared.bus.postgres import PostgresBus

    run.dripline_version = lambda: VERSION
    PostgresBus.append = _extended(PostgresBus.append)  # type: ignore[method-assign]
    PostgresBus.publish = PostgresBus.append  # type: ignore[method-assign]
    KafkaWriter.write = _extended(KafkaWriter.write)  # type: ignore[method-assign]
    program.main()


def _extended(append: Callable[..., Any]) -> Callable[..., Any]:
    async def appended(self: Any, records: Sequence[Any], **options: Any) -> None:
        later = [
            msgspec.structs.replace(
                record, value=with_field(record.value), headers={**record.headers, HEADER: VERSION.encode()}
            )
            for record in records
        ]
        await append(self, later, **options)

    return appended


if __name__ == "__main__":
    main()
