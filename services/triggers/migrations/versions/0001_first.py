"""The first tables of triggers."""

from alembic import op

from services.triggers import tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    tables.metadata.create_all(op.get_bind())
    for statement in tables.EXTRAS:
        op.execute(statement)
