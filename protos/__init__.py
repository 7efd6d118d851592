"""What may cross a boundary: the handover, its manifest and schema, and the plan every node is told."""
