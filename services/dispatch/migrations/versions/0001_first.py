"""The first version of the schema dispatch."""

from alembic import op

from services.dispatch import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables.metadata.create_all(op.get_bind())
    for statement in tables.EXTRAS:
        op.execute(statement)
