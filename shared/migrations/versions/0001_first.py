"""Schemas platform and bus."""

from alembic import op

from shared import tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    tables.metadata.create_all(op.get_bind())
    tables.bus_metadata.create_all(op.get_bind())
    for statement in tables.BUS_EXTRAS:
        op.execute(statement)
