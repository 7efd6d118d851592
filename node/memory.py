"""The cases that a site keeps for rehearsal in one run: chosen once, decoded once, and never a test case."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice

import numpy as np
import torch
from safetensors.numpy import load, save

from node.data.cache import SiteCache
from node.data.samples import Sample, SiteSamples, samples_of
from node.data.site import SiteData
from node.data.source import Scan
from node.data.splits import tables_digest
from node.memory_store import Index, Kept, MemoryStore, unusable
from node.settings import SiteSettings
from protos.messages import Request
from protos.refusals import Refusal, RefusalCode

_cache: SiteCache[SiteSamples] = SiteCache(budget=2**30)  # there may be a rehearsal per step


class SiteMemory:
    """What a site keeps for one run, below the node's home; see strategies.visit.Memory.

    `data` opens the site's data, which only `keep` needs. `most` is the site's own limit on the cases that a run keeps,
    None for none; with 0 both methods raise Refusal (POLICY).
    """

    def __init__(
        self, settings: SiteSettings, request: Request, data: Callable[[], SiteData], most: int | None
    ) -> None:
        self._settings = settings
        self._request = request
        self._data = data
        self._most = most
        self._store = MemoryStore(settings.home)

    def keep(self, cases: int, seed: int) -> None:
        """Copy at most `cases` training cases, unless this run keeps some already.

        A case's rank follows from the seed and its name alone, so that a case that cannot be read moves no other.
        """
        self._check_allowed()
        if self._store.keeps(self._request.run):
            return
        data = self._data()
        scans = data.training_scans(lambda name: hashlib.sha256(_bytes(f"{seed}:{name}")).digest())
        with self._store.writing():
            kept = tuple(
                Kept(case=_bytes(scan.name).decode(errors="replace"), sha256=self._store.put(_packed(scan)))
                for scan in islice(scans, cases if self._most is None else min(cases, self._most))
            )
            if kept or not cases:  # else the visit ends for want of cases, and a later one may find some
                now, split = datetime.now(UTC), self._request.plan.split
                self._store.write(self._request.run, Index(kept=now, split=split, tables=data.tables, cases=kept))

    def samples(self) -> SiteSamples:
        """The samples of the cases kept, decoded once.

        Raises Refusal (MEMORY) if nothing was ever kept, if some of it was removed or damaged, or if it was chosen
        under another split, or by other tables of the site, where a case that is kept may be a test case.
        """
        self._check_allowed()
        plan = self._request.plan
        index = self._store.index(self._request.run)
        whose = self._settings.home / "memory"
        if index.split != plan.split:
            raise unusable(whose, "was kept under another split of the cases", remedy="")
        if index.tables != tables_digest(self._settings.data, plan.split):
            why = "was kept before a CSV file was changed that the split follows"
            raise unusable(whose, why, "restore that file, or ")
        self._store.check_there(index)
        key = (self._settings.home, self._request.run, index, plan.task, plan.training.augment)
        samples = _cache.get(key, lambda: SiteSamples(self._decoded(index), plan.task, plan.training.augment))
        return samples.on(torch.device(self._settings.device))

    def _check_allowed(self) -> None:
        if self._most == 0:
            raise Refusal(RefusalCode.POLICY, "The policy's memory.cases is 0, so there is no rehearsal here.")

    def _decoded(self, index: Index) -> list[Sample]:
        return [sample for kept in index.cases for sample in samples_of(self._scan(kept), self._request.plan.task)]

    def _scan(self, kept: Kept) -> Scan:
        arrays = load(self._store.read(kept))
        return Scan(kept.case, arrays["image"], arrays["label"], tuple(arrays["spacing"].tolist()))


def _packed(scan: Scan) -> bytes:
    arrays = {"image": scan.image, "label": scan.label, "spacing": np.array(scan.spacing, dtype=np.float64)}
    # copies: readers may hand out views that are flipped or big-endian
    data: bytes = save({name: np.array(a, dtype=a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()})
    return data


def _bytes(name: str) -> bytes:
    """A file's name may hold bytes that are no text."""
    return name.encode(errors="surrogatepass")
