"""What a node knows about itself: its site's name, data, home folder and device. Never sent anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import model_validator

from protos.plan import PhantomSite, Record, SiteName

SITE_FILE = "site.json"  # in the home of a node that is served: its settings, for its dashboard


class SiteSettings(Record):
    """One node's own settings. `data` (a folder) or `phantom`, not both."""

    name: SiteName
    home: Path  # the node's database, checkpoints and policy.yaml
    data: Path | None = None
    labels: dict[int, str] | None = None  # value in the files -> class name; None: values are class numbers
    phantom: PhantomSite | None = None
    device: str = "cpu"
    durable: bool = True  # what the node writes survives a power cut, not only the death of the process

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.phantom is None):
            raise ValueError("give a site either a data folder or a phantom")
        return self

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> Self:
        """Read Flower's node configuration, which holds these settings as JSON under the key `site`."""
        return cls.model_validate_json(str(node_config["site"]))
