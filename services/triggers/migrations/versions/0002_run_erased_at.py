"""When a run's person was erased: a run that had ended before keeps how it ended.

It is absent in what the version before wrote, and writes beside this one: there a run is erased that `ended_as` says so.
Adding it changes the catalogue only, whatever the table's size.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("run", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True), schema="triggers")
