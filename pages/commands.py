"""What the commands of both dashboards share: their options, and giving persons passwords. Heavy imports wait."""

from pathlib import Path
from typing import Annotated

import typer

from pages.credentials import PEOPLE_FILE, People, UnusableSecret

HostOption = Annotated[str, typer.Option("--host", help="The address to listen at.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for any that is free.")]
NamesOption = Annotated[
    list[str] | None, typer.Option("--name", help="A name that browsers know this machine by; as often as wanted.")
]
CertificateOption = Annotated[
    Path | None, typer.Option("--certificate", metavar="FILE", help="A PEM file, for addresses beyond loopback.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The certificate's key.")]
NoTlsOption = Annotated[
    bool, typer.Option("--no-tls", help="Beyond loopback without a certificate: a proxy in front has it.")
]
NoTokenOption = Annotated[bool, typer.Option("--no-token", help="Let in everybody on this machine; on loopback only.")]
PersonArgument = Annotated[str, typer.Argument(metavar="NAME", help="The person, as changes are signed.")]
RemoveOption = Annotated[bool, typer.Option("--remove", help="Let this person in no more.")]


def let_in(name: str, home: Path, *, remove: bool) -> None:
    """Give a person a password for the dashboard of a home folder, asked for at the terminal; or take it away.

    A dashboard that is shown already knows it at once. Raises UnusableSecret.
    """
    if not home.is_dir():
        raise UnusableSecret(f"{home}: there is no such folder; give the one that the dashboard is of.")
    people = People(home / PEOPLE_FILE)
    if remove:
        people.remove(name)
        typer.echo(f"{name} is let in no more.")
        return
    people.set_password(name, typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    typer.echo(f"{name} signs in with this name and password from now on.")
