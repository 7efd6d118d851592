"""What `locum serve` is told: one YAML file at the coordinator, with every key explained in deploy/coordinator.yaml."""

import os
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError

from coordinator.home import Home
from coordinator.keys import ServerKeys, server_keys
from coordinator.store import sqlite_url
from coordinator.superlink import SuperLinkConfig
from pages.credentials import TOKEN_FILE
from pages.serving import Address
from pages.shield import is_loopback
from protos import strict_yaml
from protos.plan import Record


class ConfigError(ValueError):
    """A configuration that cannot be used; one sentence: where, what, remedy."""


class Listening(Record):
    """Where a server listens; 0.0.0.0 stands for every address of the machine."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)]

    @property
    def address(self) -> str:
        """host:port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class DashboardConfig(Listening):
    """Where the overview is shown, and who is let in."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8002
    token: Path | None = None  # what people sign in with; default: dashboard.token in the home folder; made if need be
    tls: bool | None = None  # with the service's own certificate; default: where others than this machine reach it


class ServeConfig(Record):
    """The keys of a coordinator's file. Paths are relative to the file's folder."""

    home: Path  # all state: database, artifacts, keys, the SuperLink's files
    database: str | None = None  # SQLAlchemy URL; LOCUM_DATABASE goes before it; default: SQLite in the home folder
    superlink: Listening = Listening(port=8000)
    control: Listening = Listening(port=8001)
    names: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")], ...] = ()  # of this machine, for others
    token: Path | None = None  # what clients show; default: token in the home folder; made if it is not there
    dashboard: DashboardConfig | None = DashboardConfig()  # the overview in a browser; null: none
    workers: Annotated[int, Field(ge=1, le=64)] = 2  # runs that are carried out side by side

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file at `path`; raises ConfigError."""
        try:
            config = cls.model_validate(strict_yaml.load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; give the coordinator's configuration file.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid YAML; see {' '.join(str(error).split())}.") from error
        except ValidationError as error:
            first = error.errors(include_input=False)[0]  # a value may be a password
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(f"{path}: {where}: {first['msg']}; see deploy/coordinator.yaml.") from error
        folder = path.absolute().parent
        token = folder / config.token if config.token is not None else None
        dashboard = config.dashboard
        if dashboard is not None and dashboard.token is not None:
            dashboard = dashboard.model_copy(update={"token": folder / dashboard.token})
        return config.model_copy(update={"home": folder / config.home, "token": token, "dashboard": dashboard})

    @property
    def place(self) -> Home:
        """The home folder with its database."""
        return Home(self.home, os.environ.get("LOCUM_DATABASE") or self.database or sqlite_url(self.home))

    @property
    def token_file(self) -> Path:
        """Where the token lies."""
        return self.token or self.home / "token"

    def keys(self) -> ServerKeys:
        """The certificate of both servers, in the home's `keys`, made if need be. Raises keys.UnusableKey."""
        shown = set() if self.dashboard is None else {self.dashboard.host}
        hosts = {self.superlink.host, self.control.host} | shown
        hosts -= {"0.0.0.0", "::"}  # noqa: S104 (not bound to here)
        return server_keys(self.home / "keys", sorted({*self.names, *hosts, "localhost", "127.0.0.1"}))

    def dashboard_address(self, keys: ServerKeys) -> Address | None:
        """Where the overview listens; None where there is none."""
        shown = self.dashboard
        if shown is None:
            return None
        tls = not is_loopback(shown.host) if shown.tls is None else shown.tls
        certificate, key = (keys.certificate, keys.key) if tls else (None, None)
        return Address(shown.host, shown.port, certificate, key, plain=not tls)

    @property
    def dashboard_token(self) -> Path:
        """Where the token of the overview lies."""
        return (self.dashboard and self.dashboard.token) or self.home / TOKEN_FILE

    def superlink_config(self, keys: ServerKeys) -> SuperLinkConfig:
        """Flower's SuperLink, with its files in the home's `superlink`."""
        return SuperLinkConfig(self.home / "superlink", keys, self.superlink.host, self.superlink.port)
