"""Sites that rehearse at a stop."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them; nobody rehearsed before."""
    with op.batch_alter_table("stops") as stops:
        stops.add_column(sa.Column("rehearsing", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Forget them."""
    with op.batch_alter_table("stops") as stops:
        stops.drop_column("rehearsing")
