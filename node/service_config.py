"""What `locum-node serve` is told: one YAML file at the hospital, with every key explained in deploy/node.yaml."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import ByteSize, Field, ValidationError

from node.settings import SiteSettings
from protos import strict_yaml
from protos.plan import PhantomSite, Record, SiteName


class ConfigError(ValueError):
    """A configuration that cannot be used; one sentence: where, what, remedy."""


class ServiceConfig(Record):
    """The keys of a node's file. Paths are relative to the file's folder."""

    site: SiteName
    home: Path  # the node's own folder: key, ledger, policy.yaml, checkpoints
    data: Path | None = None
    labels: dict[int, str] | None = None
    phantom: PhantomSite | None = None
    coordinator: Annotated[str, Field(pattern=r"^\S+:[0-9]{1,5}$")]  # host:port of its gateway
    authority: Path  # the coordinator's ca.crt
    key: Path | None = None  # default: node.key in the home folder; made if it is not there
    device: str = "auto"
    idle_minutes: Annotated[float, Field(gt=0)] = 10  # after which PyTorch's memory is given back
    keep: ByteSize = ByteSize(2 * 10**9)  # of artifacts, so that they need not be sent again
    durable: bool = True

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file at `path`; raises ConfigError."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; give the node's configuration file.") from error
        return cls.parse(text, str(path), path.parent)

    @classmethod
    def parse(cls, text: str, source: str, folder: Path) -> Self:
        """Read YAML or JSON; raises ConfigError, naming `source`."""
        try:
            config = cls.model_validate(strict_yaml.load(text))
            config.settings("cpu")
        except yaml.YAMLError as error:
            raise ConfigError(f"{source}: not valid YAML; see {' '.join(str(error).split())}.") from error
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(f"{source}: {where}: {first['msg'].removeprefix('Value error, ')}.") from error
        paths = {
            name: folder / value for name in ("home", "data", "authority", "key") if (value := getattr(config, name))
        }
        return config.model_copy(update=paths)

    @property
    def key_file(self) -> Path:
        """Where the node's private key lies."""
        return self.key or self.home / "node.key"

    def settings(self, device: str) -> SiteSettings:
        """What the node's own work needs to know."""
        return SiteSettings(
            name=self.site,
            home=self.home,
            data=self.data,
            labels=self.labels,
            phantom=self.phantom,
            device=device,
            durable=self.durable,
        )
