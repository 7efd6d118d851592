"""The cases that a site keeps for rehearsal: copies in the node's own store, so that they outlast the site's archive.

A case is one safetensors file under the SHA-256 of its bytes, shared by all runs that keep it; what one run keeps
stands in an index, which is written last and never changed.
"""

import hashlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError
from safetensors.numpy import load, save

from node.data.cache import SiteCache
from node.data.samples import Sample, SiteSamples, samples_of
from node.data.site import SiteData
from node.data.source import Scan
from node.files import replace_file, sync_folder
from protos.messages import Request
from protos.plan import Record, Split
from protos.refusals import Refusal, RefusalCode

_cache: SiteCache[SiteSamples] = SiteCache(budget=2**30)  # there may be a rehearsal per step


class _Kept(Record):
    case: str  # its name, for the site's own people
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Index(Record):
    """What one run keeps, in the order of its samples, and the split under which these were training cases."""

    split: Split
    cases: tuple[_Kept, ...]


class SiteMemory:
    """What a site keeps for one run, below the node's home; see strategies.visit.Memory.

    `data` opens the site's data, which only `keep` needs.
    """

    def __init__(self, home: Path, request: Request, data: Callable[[], SiteData]) -> None:
        self._home = home
        self._request = request
        self._data = data
        self._folder = home / "memory"
        self._index = self._folder / f"{request.run}.json"

    def keep(self, cases: int, seed: int) -> None:
        """Copy at most `cases` training cases, unless this run keeps some already.

        A case's rank follows from the seed and its name alone, so that a case that cannot be read moves no other.
        """
        if self._index.exists():
            return
        folder = self._folder / "cases"
        for made in (self._folder, folder):  # the mode is that of the last one made
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        scans = self._data().training_scans(lambda name: hashlib.sha256(_bytes(f"{seed}:{name}")).digest())
        kept = []
        for scan in islice(scans, cases):
            data = _packed(scan)
            digest = hashlib.sha256(data).hexdigest()
            if not (path := self._case(digest)).exists():
                replace_file(path, data)
            kept.append(_Kept(case=_bytes(scan.name).decode(errors="replace"), sha256=digest))
        sync_folder(folder)
        replace_file(self._index, _Index(split=self._request.plan.split, cases=tuple(kept)).model_dump_json().encode())
        sync_folder(self._folder)
        sync_folder(self._home)

    def samples(self) -> SiteSamples:
        """The samples of the cases kept, decoded once; none if there are none.

        Raises Refusal if what was kept is damaged, or was chosen under another split, where a case that is kept may be
        a test case.
        """
        task, augment = self._request.plan.task, self._request.plan.training.augment
        try:
            index = _Index.model_validate_json(self._index.read_bytes())
        except FileNotFoundError:
            return SiteSamples([], task, augment)
        except (ValidationError, OSError) as error:
            raise _unusable(self._index, "is damaged") from error
        if index.split != self._request.plan.split:
            raise _unusable(self._index, "was kept under another split of the cases")
        key = (self._index, index, task, augment)
        return _cache.get(key, lambda: SiteSamples(self._decoded(index), task, augment))

    def _decoded(self, index: _Index) -> list[Sample]:
        return [sample for kept in index.cases for sample in samples_of(self._read(kept), self._request.plan.task)]

    def _read(self, kept: _Kept) -> Scan:
        path = self._case(kept.sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unusable(path, f"cannot be read ({type(error).__name__})") from error
        if hashlib.sha256(data).hexdigest() != kept.sha256:
            raise _unusable(path, "is damaged")
        arrays = load(data)
        return Scan(kept.case, arrays["image"], arrays["label"], tuple(arrays["spacing"].tolist()))

    def _case(self, digest: str) -> Path:
        return self._folder / "cases" / f"{digest}.safetensors"


def _packed(scan: Scan) -> bytes:
    arrays = {"image": scan.image, "label": scan.label, "spacing": np.array(scan.spacing, dtype=np.float64)}
    # copies: readers may hand out views that are flipped or big-endian
    data: bytes = save({name: np.array(a, dtype=a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()})
    return data


def _bytes(name: str) -> bytes:
    """A file's name may hold bytes that are no text."""
    return name.encode(errors="surrogatepass")


def _unusable(path: Path, why: str) -> Refusal:
    return Refusal(
        RefusalCode.SITE_DATA,
        f"The site's memory {path} {why}; restore it from a backup or begin the run anew.",
    )
