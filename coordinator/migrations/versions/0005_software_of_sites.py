"""Which software sites said is at work there."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_COLUMNS = {"software": 40, "torch": 40, "code_sha256": 64}


def upgrade() -> None:
    """Add it; of earlier descriptions nobody knows."""
    for name, length in _COLUMNS.items():
        op.add_column("sites", sa.Column(name, sa.String(length)))


def downgrade() -> None:
    """Drop it."""
    for name in _COLUMNS:
        op.drop_column("sites", name)
