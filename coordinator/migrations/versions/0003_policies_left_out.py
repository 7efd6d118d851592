"""What the sites' policies changed, and rehearsals that were left out."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add them; of earlier runs nobody knows, and their policies count as having changed nothing."""
    # plain, since a batch would drop `runs` for a moment, to which other tables refer
    op.add_column("runs", sa.Column("policies", sa.JSON(), nullable=False, server_default="[{}]"))
    op.add_column("stops", sa.Column("left_out", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Forget them."""
    op.drop_column("stops", "left_out")
    op.drop_column("runs", "policies")
