"""Who is trained on, who validates, who tests: decided by patient, without state, or by a published table.

Without a table a patient's part follows from the patient's name and the split's seed alone, so that adding a case can
never move another, and so that a patient known under one name at two sites lands in the same part at both.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from protos.plan import CaseTable, Split

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


def tables_digest(folder: Path | None, split: Split) -> str:
    """SHA-256 over the CSV files in a site's folder that `split` reads; one that cannot be read counts as empty.

    None stands for a site without a folder.
    """
    digest = hashlib.sha256()
    for table in (split.table, split.group):
        if folder is not None and isinstance(table, CaseTable):
            try:
                found = (folder / table.csv).read_bytes()
            except OSError:
                found = b""
            digest.update(hashlib.sha256(found).digest())
    return digest.hexdigest()


def part_of(patient: str, split: Split) -> Part:
    """The part a patient belongs to: SHA-256 of seed and name gives a number in [0, 1), test cases come first."""
    digest = hashlib.sha256(f"{split.seed}:{patient}".encode(errors="surrogatepass")).digest()
    position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: exact as a float, and never 1
    if position < split.test:
        return "test"
    return "val" if position < split.test + split.val else "train"


def split_cases(
    names: Iterable[str],
    patient_of: Callable[[str], str],
    split: Split,
    *,
    unseen: bool = False,
    published: Callable[[str], Part] | None = None,
) -> dict[Part, tuple[str, ...]]:
    """Sort cases into parts, each sorted by name; at an unseen site every case is a test case.

    `published` names a case's part where split.table does; fractions, seed and patients are not looked at then.
    """
    parts: dict[Part, list[str]] = {part: [] for part in PARTS}
    for name in sorted(names):
        if unseen:
            part: Part = "test"
        else:
            part = part_of(patient_of(name), split) if published is None else published(name)
        parts[part].append(name)
    return {part: tuple(cases) for part, cases in parts.items()}
