"""What makes this deployment this one: its secrets and how often it was restored. One row, made by the migration."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shared.db import Tx


@dataclass(frozen=True)
class Deployment:
    """`state` is open, or held after a restore (dispatch then sends nothing until somebody looked)."""

    node_namespace: UUID
    secret: bytes
    generation: int
    state: str


async def read_deployment(tx: Tx) -> Deployment:
    """Reads the row."""
    row = await tx.fetchrow("SELECT node_namespace, secret, generation, state FROM platform.deployment")
    return Deployment(row["node_namespace"], row["secret"], row["generation"], row["state"])
