"""The page Policy: what this site lets out, in words; changing it; and what waits here until a person releases it."""

from collections import defaultdict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import yaml
from fastapi import APIRouter
from pydantic import BaseModel, ByteSize, TypeAdapter, ValidationError
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from node.audit import Unsigned
from node.dashboard.entries import EntryShown
from node.dashboard.house import House
from node.decisions import LeakageSummary, Undecidable, held_handovers, leakage_summary, release, withhold
from node.ledger import DECIDED_HERE, Entry, LedgerUnwritable
from node.policy import Policy
from node.policy_change import PolicyFault, change_policy
from node.policy_file import PolicyFile
from node.policy_words import KINDS, policy_in_words
from pages.gate import form_of, session_of
from protos.handover import Kind
from protos.refusals import Refusal

DECISIONS = 20  # of people here, the newest
_BYTES = TypeAdapter(ByteSize)


class PolicyShown(BaseModel):
    """What this site lets out. `policy` holds the keys that are set, null where the file is not understood."""

    words: list[str]
    understood: bool
    policy: dict[str, Any] | None
    sha256: str
    waiting: list[LeakageSummary]


def policy_shown(house: House) -> PolicyShown:
    """The policy as it is now, and what waits."""
    waiting = [leakage_summary(house.home, held.handover) for held in held_handovers(house.home)]
    try:
        file = PolicyFile.of(house.home)
        digest = file.digest
        policy = Policy.said_in(file)
    except Refusal as refusal:
        words = [refusal.detail, "Nothing crosses until it is mended."]
        return PolicyShown(words=words, understood=False, policy=None, sha256="", waiting=waiting)
    return PolicyShown(
        words=policy_in_words(policy),
        understood=True,
        policy=policy.model_dump(mode="json", exclude_none=True),
        sha256=digest,
        waiting=waiting,
    )


class WrongForm(ValueError):
    """A form that says no policy; one sentence."""


def changes_of(form: Mapping[str, str], now: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the policy that a form changes, with their new values; None takes a key away. Raises WrongForm."""
    wanted: dict[str, Any] = {
        "kinds": _chosen(form, "kinds") if form.get("kinds") == "some" else None,
        "max_bytes": _max_bytes(form),
        "copies": _copies(form),
        "hold": {"all": True, "some": _chosen(form, "hold")}.get(form.get("hold", "none")),
    }
    if wanted["hold"] == []:
        raise WrongForm("Choose the kinds that wait for a person, or that everything or nothing does.")
    before = {key: now.get(key) for key in wanted}
    if isinstance(before["kinds"], list):
        before["kinds"] = sorted(before["kinds"], key=_order)
    if isinstance(before["hold"], list):
        before["hold"] = sorted(before["hold"], key=_order)
    if before["hold"] is False:
        before["hold"] = None
    return {key: value for key, value in wanted.items() if value != before[key]}


def _chosen(form: Mapping[str, str], name: str) -> list[str]:
    return [str(kind) for kind in Kind if form.get(f"{name}.{kind}") == "on"]


def _order(kind: str) -> int:
    return [str(one) for one in Kind].index(kind)


def _max_bytes(form: Mapping[str, str]) -> int | dict[str, int] | None:
    whole = _size(form.get("max_bytes", ""))
    each = {str(kind): size for kind in Kind if (size := _size(form.get(f"max_bytes.{kind}", ""))) is not None}
    if whole is not None and each:
        raise WrongForm("Give a number of bytes for all kinds together, or one per kind, and not both.")
    return each or whole


def _size(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        return int(_BYTES.validate_python(text.strip()))
    except ValidationError as error:
        raise WrongForm(f"{text!r} is no number of bytes; write it like 5MB or 5000000.") from error


def _copies(form: Mapping[str, str]) -> dict[str, float] | None:
    text = form.get("copies", "").strip().removesuffix("%").strip()
    if not text:
        return None
    try:
        share = round(float(text) / 100, 6)
    except ValueError as error:
        raise WrongForm(f"{text!r} is no share; write per cent, like 5.") from error
    if not 0 <= share <= 1:
        raise WrongForm("A share of near-copies lies between 0 and 100 per cent.")
    return {"most": share}


def policy_router(house: House) -> APIRouter:
    """The page `/policy` and what it is made of."""
    router = APIRouter()

    def show(request: Request, said: str = "", form: Mapping[str, str] | None = None, status: int = 200) -> Response:
        shown = policy_shown(house)
        query = select(*Entry.__table__.columns).where(text(DECIDED_HERE))
        decided = house.reader.rows(query.order_by(Entry.seq.desc()).limit(DECISIONS))
        return house.look.render(
            request,
            "policy.html",
            status=status,
            shown=shown,
            values=defaultdict(str, form if form is not None else _values(shown.policy or {})),
            kinds=KINDS,
            decided=[EntryShown.of(row) for row in decided],
            said=said,
        )

    @router.get("/policy", include_in_schema=False)
    def page(request: Request) -> Response:
        return show(request)

    @router.get("/policy/waiting", include_in_schema=False)
    def waiting(request: Request) -> Response:
        return house.look.render(request, "_waiting.html", shown=policy_shown(house))

    @router.post("/policy", include_in_schema=False)
    def change(request: Request) -> Response:
        form: dict[str, str] = {}
        try:
            form = form_of(request)
            now = policy_shown(house)
            changes = changes_of(form, now.policy or {})
            if not changes:
                raise WrongForm("Nothing was changed.")
            by, why = session_of(request).signed(form.get("by", "").strip()), form.get("why", "")
            change_policy(house.home, changes, by=by, why=why, seen=form.get("seen", ""))
        except (WrongForm, PolicyFault, Unsigned, ValueError, yaml.YAMLError) as fault:
            return show(request, str(fault), form, HTTPStatus.UNPROCESSABLE_ENTITY)
        except (LedgerUnwritable, SQLAlchemyError, OSError):
            said = "Nothing was changed, since the ledger or the policy's file cannot be written."
            return show(request, said, form, HTTPStatus.SERVICE_UNAVAILABLE)
        return RedirectResponse("/policy", status_code=HTTPStatus.SEE_OTHER)

    @router.post("/policy/held", include_in_schema=False)
    def decide(request: Request) -> Response:
        try:
            form = form_of(request)
            what = {"release": release, "withhold": withhold}[form.get("what", "")]
            by, why = session_of(request).signed(form.get("by", "").strip()), form.get("why", "")
            what(house.home, form.get("handover", ""), by=by, why=why)
        except KeyError:
            return show(request, "Choose whether it is released or withheld.", status=HTTPStatus.UNPROCESSABLE_ENTITY)
        except (Undecidable, Unsigned, ValueError) as fault:
            return show(request, str(fault), status=HTTPStatus.UNPROCESSABLE_ENTITY)
        except (LedgerUnwritable, SQLAlchemyError, OSError):
            said = "Nothing was decided, since the ledger cannot be written."
            return show(request, said, status=HTTPStatus.SERVICE_UNAVAILABLE)
        return RedirectResponse("/policy", status_code=HTTPStatus.SEE_OTHER)

    @router.get("/api/policy")
    def policy() -> PolicyShown:
        """What this site lets out, and what waits for a person's decision."""
        return policy_shown(house)

    return router


def _values(policy: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the form for a policy."""
    values: dict[str, str] = {}
    if "kinds" in policy:
        values |= {"kinds": "some", **{f"kinds.{kind}": "on" for kind in policy["kinds"]}}
    most = policy.get("max_bytes")
    if isinstance(most, Mapping):
        values |= {f"max_bytes.{kind}": str(count) for kind, count in most.items()}
    elif most is not None:
        values["max_bytes"] = str(most)
    if "copies" in policy:
        values["copies"] = f"{policy['copies']['most'] * 100:g}"
    hold = policy.get("hold")
    if hold is True:
        values["hold"] = "all"
    elif hold:
        values |= {"hold": "some", **{f"hold.{kind}": "on" for kind in hold}}
    return values
