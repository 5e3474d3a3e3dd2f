"""Alembic's environment, shared by all histories; the connection and the schema come from `shared.migrations`."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema=context.config.attributes["schema"])
with context.begin_transaction():
    context.run_migrations()
