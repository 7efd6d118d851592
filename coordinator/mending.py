"""Artifacts that were damaged or lost on the disk: their stops are made again, and end with the same bits."""

from collections.abc import Mapping
from pathlib import Path

from coordinator.store import Run, StopRow, Store
from coordinator.vault import MissingArtifact, Vault


def damaged_ends(run: Run, vault: Vault) -> dict[int, MissingArtifact]:
    """Of the done stops that no other stop sets out from, and so end the run, those whose artifacts are not whole.

    The artifacts of other stops matter only when they are sent, and are looked at then.
    """
    followed = {row.follows for row in run.stops}
    found = {}
    for row in run.stops:
        if row.status == "done" and row.index not in followed:
            try:
                vault.get(str(row.artifact))
            except MissingArtifact as damaged:
                found[row.index] = damaged
    return found


def reopen(store: Store, run: str, stop: int) -> Mapping[str, int]:
    """Let a done stop be made again from its first round; returns the samples that its rounds were dealt out by.

    The row keeps the artifact that it has to come to.
    """
    with store.transaction() as session:
        row = session.get_one(StopRow, (run, stop))
        if row.status == "done":  # one that was reopened before goes on where it is
            row.status, row.rounds_done, row.rounds_state = "pending", 0, None
        return dict(row.samples or {})


def other_bits(path: Path, stop: int) -> MissingArtifact:
    """What to raise when a stop that was made again came to another artifact than the one at `path`."""
    return MissingArtifact(
        f"{path}: the artifact is damaged, and stop {stop}, made again, came to other bits, so data, policy, device or "
        "software are not what they were; restore it from a backup, or begin the run anew."
    )
