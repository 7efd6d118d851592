"""One site's data as a run sees it: split, decoded once, prepared, held in memory or, where they are many, on disk."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import chain
from typing import Literal

from node.data.samples import Prepared, Sample, SiteSamples, TestCase, samples_of
from node.data.source import Problem, Scan, Source, Unreadable
from node.data.splits import Part, split_cases, tables_digest
from node.data.stored import Shelf
from node.settings import SiteSettings
from protos.plan import Plan, Split, Task

log = logging.getLogger(__name__)

IN_MEMORY = 2**30  # bytes of samples and cases that a site may hold


class EmptySite(Exception):
    """A part of a site that is needed holds no usable case; the text is one sentence with the remedy."""


class SiteData:
    """The cases of one site under one plan.

    Opening reads no image. A part is decoded when it is first asked for and then stays in memory, so every file is
    decoded once; drop the object to free the memory (`nbytes`). Samples that take more than `in_memory` bytes are kept
    below the node's home instead, with the same bits, and the cases to be scored that do not fit beside the samples
    are decoded whenever they are scored. A case that cannot be read is left out, logged and listed in `problems`.
    `source` replaces the one that the settings name.
    """

    def __init__(
        self,
        settings: SiteSettings,
        plan: Plan,
        unseen: bool = False,
        source: Source | None = None,
        in_memory: int = IN_MEMORY,
    ) -> None:
        self._site = settings.name
        self._cache = settings.home / "cache"
        self._in_memory = in_memory
        self._plan = plan
        split = plan.split.at(unseen)
        self.tables = tables_digest(settings.data, split)  # before they are read: a change meanwhile is a change
        self._source = _source_of(settings, plan.task, split) if source is None else source
        published = None if split.table is None else self._source.part
        parts = split_cases(self._source.names, self._source.patient, split, unseen=unseen, published=published)
        self._listed = parts
        self._names = {part: list(names) for part, names in parts.items()}
        self._dropped: list[Problem] = []
        self._samples: dict[Part, SiteSamples] = {}
        self._tests: dict[str, TestCase] = {}

    @property
    def synthetic(self) -> bool:
        """Whether the cases are made up, so that pictures of them may leave the node."""
        return self._source.synthetic

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was left out, or is doubtful, and why, as far as is known by now."""
        return tuple(dict.fromkeys((*self._source.problems, *self._dropped)))

    @property
    def scored(self) -> Part:
        """The part whose cases the plan scores."""
        return self._plan.scored

    @property
    def nbytes(self) -> int:
        """Bytes of memory that decoded cases hold at present."""
        samples = sum(part.nbytes for part in self._samples.values())
        return samples + sum(case.nbytes for case in self._tests.values())

    def counts(self) -> dict[str, int]:
        """Cases per part, less those found unreadable so far."""
        return {part: len(names) for part, names in self._names.items()}

    def fingerprint(self, part: Part) -> str:
        """SHA-256 over the names of a part's usable cases; decode the part first, which finds the unusable ones."""
        return hashlib.sha256("\0".join(self._names[part]).encode()).hexdigest()

    def origin(self, part: Part) -> str:
        """SHA-256 of what a part's samples are prepared from, the state of the files included, and how."""
        whole = f"{self._source.fingerprint(self._listed[part])} {self._slot(part)} {self._plan.training.augment}"
        return hashlib.sha256(whole.encode()).hexdigest()

    def samples(self, part: Literal["train", "val"]) -> SiteSamples:
        """All samples of a part, which may be none for "val"; raises EmptySite if no training case is left."""
        if part not in self._samples:
            self._samples[part] = SiteSamples(self._prepared(part), self._plan.task, self._plan.training.augment)
        if part == "train":
            self._require(part)
        return self._samples[part]

    def training_scans(self, rank: Callable[[str], bytes]) -> Iterator[Scan]:
        """The training cases on their native grid, by rising `rank` of their names; unreadable ones are left out.

        Cases are decoded one by one as the iteration comes to them, and not kept.
        """
        for name in sorted(self._names["train"], key=rank):
            if (scan := self._load("train", name)) is not None:
                yield scan

    def scored_cases(self) -> Iterator[TestCase]:
        """All cases of the part that the plan scores, in the order of their names; raises EmptySite if none is left.

        Cases are decoded one by one as the iteration comes to them.
        """
        for name in tuple(self._names[self.scored]):
            case = self._tests.get(name)
            if case is None:
                scan = self._load(self.scored, name)
                if scan is None:
                    continue
                case = TestCase.of(scan, self._plan.task, self.synthetic)
                if self.nbytes + case.nbytes <= self._in_memory:
                    self._tests[name] = case
            yield case
        self._require(self.scored)

    def _prepared(self, part: Part) -> Sequence[Prepared]:
        """The part's samples: in memory while they fit, else on disk, where an earlier process may have put them."""
        shelf = None
        if (self._cache / self._slot(part)).exists():
            shelf = self._shelf(part)
            if (stored := shelf.read()) is not None:
                left_out = [name for number, name in enumerate(self._listed[part]) if number not in stored.cases]
                # a file may have been out of reach only for a while: all are asked, and named, again
                if not [name for name in left_out if name in self._names[part] and self._load(part, name)]:
                    return stored.samples
                shelf.clear()
        cases = self._decoded(part)
        first: deque[tuple[int, list[Sample]]] = deque()
        held = 0
        for number, samples in cases:
            first.append((number, samples))
            held += sum(sample.nbytes for sample in samples)
            if held > self._in_memory:
                break
        else:
            return [sample for _, samples in first for sample in samples]
        emptied = (first.popleft() for _ in range(len(first)))
        (shelf or self._shelf(part)).write(chain(emptied, cases))
        return self._prepared(part)

    def _shelf(self, part: Part) -> Shelf:
        return Shelf(self._cache / self._slot(part), self._source.fingerprint(self._listed[part]))

    def _slot(self, part: Part) -> str:
        """The name of the place for prepared samples: what they depend on beside the files that they come from."""
        plan = self._plan
        software = [metadata.version(name) for name in ("locum", "torch", "monai", "numpy")]
        task = plan.task.model_dump_json()
        threads = plan.training.threads  # sums change with it in the last bit
        return hashlib.sha256(repr((self._site, part, task, threads, software)).encode()).hexdigest()[:16]

    def _decoded(self, part: Part) -> Iterator[tuple[int, list[Sample]]]:
        for number, name in enumerate(self._listed[part]):
            if name in self._names[part] and (scan := self._load(part, name)) is not None:
                yield number, samples_of(scan, self._plan.task)

    def _load(self, part: Part, name: str) -> Scan | None:
        try:
            return self._source.load(name)
        except Unreadable as error:
            log.warning("site %s leaves out a case: %s", self._site, error)
            self._dropped.append(Problem(name, str(error)))
            self._names[part].remove(name)
            return None

    def _require(self, part: Part) -> None:
        if not self._names[part]:
            word = {"train": "training", "val": "validation", "test": "test"}[part]
            table = self._plan.split.table
            share = f"raise split.{part}" if table is None else f"name some {part} in {table.csv}"
            raise EmptySite(
                f"Site {self._site} has no usable {word} case among its {len(self._source.names)}; "
                f"add cases, repair those that `locum-node check` names, or {share}."
            )


def _source_of(settings: SiteSettings, task: Task, split: Split) -> Source:
    if settings.phantom is not None:
        from node.phantoms import PhantomSource

        return PhantomSource(settings.phantom, task)
    from node.data.layouts import FolderSource

    return FolderSource(settings, task, split)
