"""Alembic's entry point: coordinator/store.py hands in an open connection."""

from alembic import context

from coordinator.store import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
