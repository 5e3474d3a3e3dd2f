"""The first version of the schema dispatch, and of its views in platform."""

from pathlib import Path

from alembic import op

from shared.migrations.sql import execute_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    execute_file(op.get_bind(), Path(__file__).with_suffix(".sql"))
