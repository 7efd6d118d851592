"""The commands by which people at a site decide what leaves it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

HomeOption = Annotated[Path, typer.Option("--home", help="The node's folder: .locum/nodes/SITE in a simulation.")]
HandoverArgument = Annotated[
    str, typer.Argument(metavar="HANDOVER", help="Its name as `locum-node held` prints it, or a beginning of that.")
]
ByOption = Annotated[str, typer.Option("--by", help="Who decides this.")]
WhyOption = Annotated[str, typer.Option("--why", help="The reason, for the ledger.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def held(
    home: HomeOption,
    handover: Annotated[
        str | None, typer.Argument(metavar="[HANDOVER]", help="Only this one, also when it waits no more.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what waits to leave until a person decides, and what it would carry out."""
    from node.held_view import show_held

    raise typer.Exit(show_held(home, handover, json=as_json))


def release(handover: HandoverArgument, *, home: HomeOption, by: ByOption, why: WhyOption) -> None:
    """Let a handover that waits leave, in somebody's name: it does when the coordinator asks again."""
    from node.held_view import decide

    raise typer.Exit(decide(home, handover, "release", by=by, why=why))


def withhold(handover: HandoverArgument, *, home: HomeOption, by: ByOption, why: WhyOption) -> None:
    """Keep a handover that waits from leaving, for good, in somebody's name."""
    from node.held_view import decide

    raise typer.Exit(decide(home, handover, "withhold", by=by, why=why))


def policy(
    action: Annotated[
        Literal["show", "set"], typer.Argument(metavar="show|set", help="Say what leaves, or change it.")
    ] = "show",
    pairs: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="With set: keys of the policy; nothing after = takes a key away."),
    ] = None,
    *,
    home: HomeOption,
    by: Annotated[str | None, typer.Option("--by", help="With set: who decides this.")] = None,
    why: Annotated[str, typer.Option("--why", help="With set: the reason, for the ledger.")] = "",
    seen: Annotated[
        str | None,
        typer.Option("--seen", metavar="SHA256", help="With set: refuse if the file is no longer the one with this."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say in plain words what the site's policy lets out, or change it in somebody's name."""
    from node.policy_view import set_policy, show_policy

    if (action == "set") != bool(pairs) or (action == "set") != (by is not None):
        raise typer.BadParameter("`set` takes KEY=VALUE and --by, `show` takes neither.", param_hint="show|set")
    if not home.is_dir():
        typer.echo(f"locum-node: There is no node in {home}: --home names another folder.", err=True)
        raise typer.Exit(2)
    if pairs and by is not None:
        raise typer.Exit(set_policy(home, pairs, by=by, why=why, seen=seen))
    raise typer.Exit(show_policy(home, json=as_json))


COMMANDS = (held, release, withhold, policy)
