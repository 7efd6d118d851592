"""What a queued run waits for, and since when the sites that it needs are away."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add it; of runs that are queued the next look finds out."""
    op.add_column("queue", sa.Column("waits_for", sa.String()))
    op.add_column("queue", sa.Column("away_since", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("queue", "away_since")
    op.drop_column("queue", "waits_for")
