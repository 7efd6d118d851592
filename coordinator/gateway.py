"""`python -m coordinator.gateway`: the certificate of the gateway, which hospitals reach instead of the coordinator.

The gateway gets a key of its own, so that whoever takes it over cannot stand for the coordinator; the authority's key
stays where it is.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coordinator.keys import ServerKeys, UnusableKey, server_keys

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

COORDINATOR = "coordinator"  # the name by which the gateway, see deploy/gateway.conf, knows the coordinator


def gateway_keys(authority: Path, folder: Path, names: Sequence[str]) -> ServerKeys:
    """The gateway's certificate for `names` (host names and addresses), signed by the coordinator's authority.

    `authority` is the `keys` folder of the coordinator's home; what is not there yet is made. `folder` holds `ca.crt`,
    `server.crt` and `server.key` afterwards. A certificate that lasts and holds the names is kept. Raises UnusableKey
    and OSError.
    """
    if not (authority / "ca.key").exists():
        server_keys(authority, [COORDINATOR])
    made = server_keys(folder, names, authority)
    _publish(made.authority, folder)
    return ServerKeys(folder / "ca.crt", made.certificate, made.key)


def _publish(certificate: Path, folder: Path) -> None:
    shutil.copy(certificate, folder)
    (folder / certificate.name).chmod(0o644)


@app.command()
def main(
    keys: Annotated[Path, typer.Argument(metavar="KEYS", help="The folder `keys` in the coordinator's home.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the gateway's certificate is to lie.")],
    name: Annotated[list[str], typer.Option(help="A host name or address by which nodes reach the gateway.")],
    authority: Annotated[
        Path | None, typer.Option(help="A folder for one more copy of ca.crt, which every node needs.")
    ] = None,
) -> None:
    """Make the gateway's certificate, or make it anew if it soon ends or does not hold all the names."""
    try:
        made = gateway_keys(keys, folder, name)
        if authority is not None:
            authority.mkdir(parents=True, exist_ok=True)
            _publish(made.authority, authority)
    except (UnusableKey, OSError, ValueError) as error:
        typer.echo(f"coordinator.gateway: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{made.certificate} is for {', '.join(name)}.")


if __name__ == "__main__":
    app()
