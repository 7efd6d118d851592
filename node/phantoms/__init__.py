"""Synthetic hospitals: patients and scanners that are computed, for the demo and the tests."""

from node.phantoms.anatomy import TASKS
from node.phantoms.appearance import APPEARANCES
from node.phantoms.source import PhantomSource, check_phantom, write_phantoms

__all__ = ["APPEARANCES", "TASKS", "PhantomSource", "check_phantom", "write_phantoms"]
