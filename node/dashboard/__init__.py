"""The node's dashboard: what happens in this house, for the people of this house. It sends nothing anywhere else."""
