"""Alembic's environment, shared by all histories; the connection and the schema come from `shared.migrations`."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table_schema=context.config.attributes["schema"],
    # A migration's locks go with it: what waits for them waits for one migration, not for all that are due.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
