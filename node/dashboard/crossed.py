"""The page What crossed: the ledger, entry by entry, what it comes to, and whether its chain is sound."""

from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from node.dashboard.entries import (
    EntryOpened,
    EntryShown,
    Filter,
    Way,
    count_entries,
    entries_page,
    entry_opened,
    exported,
    head,
)
from node.dashboard.house import House
from node.dashboard.sentences import sentence
from node.dashboard.traffic import ChartShown
from pages.paging import MOST, PAGE
from protos.handover import Kind

CHAIN = "chain"  # the job that recomputes the ledger's hashes
_LARGEST = 2**63 - 1

Seq = Annotated[int, Field(ge=0, le=_LARGEST)] | None


def _nothing(value: object) -> object:
    """What a form sends for a choice that was not made."""
    return None if value == "" else value


class Chosen(BaseModel):
    """Which entries, and from where: with numbers below `before` or above `after`, else the newest."""

    way: Annotated[Way | None, BeforeValidator(_nothing)] = None
    kind: Annotated[Kind | None, BeforeValidator(_nothing)] = None
    run: Annotated[Annotated[str, Field(max_length=80)] | None, BeforeValidator(_nothing)] = None
    refused: bool = False
    before: Seq = None
    after: Seq = None

    @property
    def filter(self) -> Filter:
        """Which entries."""
        return Filter(self.way, self.kind, self.run, self.refused)

    def address(self, path: str, **place: int) -> str:
        """The address of `path` for these entries."""
        kept = self.model_dump(mode="json", exclude_defaults=True, exclude={"before", "after", "limit"}) | place
        words = {name: "true" if value is True else str(value) for name, value in kept.items()}
        return f"{path}?{urlencode(words)}"


class ChosenPage(Chosen):
    """The same, and how many at once."""

    limit: Annotated[int, Field(ge=1, le=MOST)] = PAGE


class LedgerPage(BaseModel):
    """Some entries, newest first. For the pages beside it `before` is `older`, or `after` is `newer`."""

    entries: list[EntryShown]
    older: int | None
    newer: int | None
    total: int


class ChainShown(BaseModel):
    """The state of the ledger's chain of hashes, as of the last time that it was recomputed."""

    entries: int
    head: str | None
    checking: bool
    checked_entries: int | None = Field(description="how many entries there were when it was recomputed last")
    sound: bool | None
    faults: list[str]


def crossed_router(house: House) -> APIRouter:
    """The pages below `/crossed` and what they are made of."""
    router = APIRouter()
    reader, look = house.reader, house.look

    def table(chosen: Chosen) -> dict[str, Any]:
        page = entries_page(reader, chosen.filter, chosen.before, chosen.after, PAGE)
        return {
            "page": page,
            "chosen": chosen,
            "sentence": sentence,
            "older": None if page.older is None else chosen.address("/crossed", before=page.older),
            "newer": None if page.newer is None else chosen.address("/crossed", after=page.newer),
            "exports": {sort: chosen.address(f"/crossed.{sort}") for sort in ("csv", "json")},
            "newest": chosen.before is None and chosen.after is None,
            "again": chosen.address("/crossed/entries"),
        }

    @router.get("/crossed", include_in_schema=False)
    def crossed(request: Request, chosen: Annotated[Chosen, Query()]) -> Response:
        check_chain(house)
        totals, chain = house.traffic.totals(), chain_shown(house)
        return look.render(request, "crossed.html", **table(chosen), kinds=list(Kind), totals=totals, chain=chain)

    @router.get("/crossed/entries", include_in_schema=False)
    def entries(request: Request, chosen: Annotated[Chosen, Query()]) -> Response:
        return look.render(request, "_entries.html", **table(chosen))

    @router.get("/crossed/chain", include_in_schema=False)
    def chain_part(request: Request) -> Response:
        return look.render(request, "_chain.html", chain=chain_shown(house))

    @router.post("/crossed/chain", include_in_schema=False)
    def check(request: Request) -> Response:
        check_chain(house, anew=True)
        return RedirectResponse("/crossed", status_code=HTTPStatus.SEE_OTHER)

    @router.get("/crossed/{seq}", include_in_schema=False)
    def opened(request: Request, seq: int) -> Response:
        found = _opened(house, seq)
        return look.render(request, "entry.html", entry=found, sentence=sentence)

    @router.get("/crossed.{sort}", include_in_schema=False)
    def export(sort: Literal["csv", "json"], chosen: Annotated[Chosen, Query()]) -> Response:
        media = "text/csv; charset=utf-8" if sort == "csv" else "application/json"
        headers = {"content-disposition": f'attachment; filename="ledger.{sort}"'}
        lines = exported(reader, chosen.filter, sort)
        return StreamingResponse(lines, media_type=media, headers=headers)

    @router.get("/api/ledger")
    def ledger(chosen: Annotated[ChosenPage, Query()]) -> LedgerPage:
        """Entries of the ledger, newest first."""
        page = entries_page(reader, chosen.filter, chosen.before, chosen.after, chosen.limit)
        return LedgerPage(entries=list(page.rows), older=page.older, newer=page.newer, total=count_entries(reader))

    @router.get("/api/ledger/chain")
    def chain() -> ChainShown:
        """Whether the ledger's hashes fit each other, as of the last time that they were recomputed."""
        return chain_shown(house)

    @router.get("/api/ledger/traffic")
    def traffic() -> ChartShown:
        """Bytes per kind and way over time."""
        return house.traffic.chart()

    @router.get("/api/ledger/{seq}")
    def entry(seq: int) -> EntryOpened:
        """One entry with its tensors."""
        return _opened(house, seq)

    return router


def _opened(house: House, seq: int) -> EntryOpened:
    found = entry_opened(house.reader, seq) if 0 < seq <= _LARGEST else None
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "The ledger has no entry of this number.")
    return found


def check_chain(house: House, anew: bool = False) -> None:
    """Recompute the chain in a process of its own, if the ledger grew by much since, or was not looked at yet."""
    job, count = house.jobs.get(CHAIN), count_entries(house.reader)
    known = 0 if job.result is None else int(job.result["entries"])
    if count and (anew or job.result is None or count > known + max(100, known // 10)):
        house.jobs.start(CHAIN, ["node", "ledger", "--verify", "--json", "--home", str(house.home)], {})


def chain_shown(house: House) -> ChainShown:
    """What is known of the chain."""
    job = house.jobs.get(CHAIN)
    result = job.result or {}
    return ChainShown(
        entries=count_entries(house.reader),
        head=head(house.reader),
        checking=job.running,
        checked_entries=result.get("entries"),
        sound=result.get("sound"),
        faults=list(result.get("faults", []))[:20] + ([job.failed] if job.failed else []),
    )
