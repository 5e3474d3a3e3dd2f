"""The first version of the schema `profile` and of the views in `cdp`."""

from __future__ import annotations

from alembic import op

from services.profile import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates all tables, partitions and views."""
    tables.metadata.create_all(op.get_bind())
    for statement in tables.EXTRAS:
        op.execute(statement)
