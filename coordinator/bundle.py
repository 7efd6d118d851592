"""A run's final weights as a MONAI bundle: a folder that MONAI's own loader reads and runs, without Locum.

This is the one place where PyTorch's own file format is written (`models/model.pt`, tensors only), because
`monai.bundle.load` reads nothing else, with `torch.load(weights_only=True)`. Locum never reads it; the same tensors lie
beside it as safetensors.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from safetensors.torch import save_file

from coordinator.bundle_config import configurations
from coordinator.scenario import Scenario
from coordinator.store import Run, StopRow
from coordinator.vault import Vault
from protos.handover import Handover, HandoverSchema, Kind
from protos.plan import Plan
from strategies import networks
from strategies.registry import strategy_for
from strategies.strategy import specs

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_RANGES = {"minmax": [0, 1], "percentile": [0, 1], "symmetric": [-1, 1]}  # of the values that a network sees


class NotExportable(ValueError):
    """There is no single model to export, or no place for it; one sentence."""


def export_bundle(run: Run, vault_folder: Path, folder: Path) -> Path:
    """Write the model that a run has come to as a MONAI bundle into `folder`, which is returned.

    Raises NotExportable when no stop is done, when sites have models of their own, when the weights are not those of
    the scenario's network, when MONAI would misread a class's name, or when `folder` is not empty; MissingArtifact
    when the vault has not got the weights.
    """
    plan = Scenario.model_validate(run.scenario).plan()
    stop = _last_stop(run, plan)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise NotExportable(f"{folder} is there already and not an empty folder; name a folder that does not exist.")
    for name in plan.task.classes:
        if name.startswith(("$", "@", "%")):
            raise NotExportable(
                f"task.classes: MONAI would not take {name!r} for a name but for an instruction; "
                "make a run with a name that begins with a letter."
            )
    handover = Handover.from_bytes(Vault(vault_folder).get(str(stop.artifact)))
    # MONAI's loader leaves out in silence what does not fit
    weights = HandoverSchema({Kind.WEIGHTS: specs(networks.outline(plan.task, plan.network))})
    if HandoverSchema({Kind.WEIGHTS: HandoverSchema.of(handover).tensors[Kind.WEIGHTS]}) != weights:
        raise NotExportable(
            f"The weights of run {run.id} are not those of network {plan.network.name} alone, and MONAI could not "
            f"use them; export a run of another strategy than {plan.strategy.name}."
        )
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    state = handover.state(Kind.WEIGHTS)
    torch.save(state, folder / "models" / "model.pt")
    save_file(state, folder / "models" / "model.safetensors", {"format": "pt"})
    _write_json(folder / "configs" / "metadata.json", _metadata(run, plan, stop))
    for file, config in configurations(plan).items():
        _write_json(folder / "configs" / file, config)
    (folder / "docs" / "README.md").write_text(_readme(run, plan, stop, folder.name), encoding="utf-8")
    (folder / "LICENSE").write_text(_licence(run), encoding="utf-8")
    return folder


def _last_stop(run: Run, plan: Plan) -> StopRow:
    done = [stop for stop in run.stops if stop.status == "done"]
    if not done:
        raise NotExportable(f"Run {run.id} has no finished stop; `locum resume {run.id}` goes on with it.")
    last = done[-1]
    strategy = strategy_for(plan)
    if len({strategy.model_for(site, last.index) for site in plan.sites}) > 1:
        raise NotExportable(
            f"Run {run.id} has a model per site ({plan.strategy.name}) and none for all; "
            "export a run of another strategy, or of one site."
        )
    return last


def _metadata(run: Run, plan: Plan, stop: StopRow) -> dict[str, Any]:
    """What MONAI's schema for bundles asks for, and under `locum` where the weights come from."""
    task = plan.task
    visited = _visited(run, stop)
    image = {
        "type": "image",
        "spatial_shape": list(task.size),
        "dtype": "float32",
        "is_patch_data": task.fit == "patch",
    }
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from run {run.id}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {
            "nibabel": importlib.metadata.version("nibabel"),
            "pillow": importlib.metadata.version("pillow"),
        },
        "name": run.id,
        "task": f"{task.dims}D segmentation of {', '.join(task.classes[1:])}",
        "description": f"{plan.network.name} of run {run.id}, trained by strategy {plan.strategy.name} at "
        f"{', '.join(visited)}; seed {plan.seed}, weights {stop.weights_sha256}.",
        "authors": f"whoever made run {run.id}",
        "copyright": "see LICENSE",
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": image
                | {
                    "format": "magnitude",
                    "num_channels": task.channels,
                    "value_range": _RANGES.get(task.intensity, []),
                    "channel_def": {str(channel): f"image {channel}" for channel in range(task.channels)},
                }
            },
            "outputs": {
                "pred": image
                | {
                    "format": "segmentation",
                    "num_channels": len(task.classes) - task.soft,
                    "value_range": [],  # logits; of soft tasks without the background
                    "channel_def": {str(number): name for number, name in enumerate(task.classes[task.soft :])},
                }
            },
        },
        "locum": {
            "run": run.id,
            "software": run.software,
            "strategy": plan.strategy.name,
            "parameters": json.dumps(plan.strategy.parameters),  # as text, in which MONAI looks for no instructions
            "sites": visited,
            "seed": plan.seed,
            "stop": stop.index,
            "weights_sha256": stop.weights_sha256,  # of names, shapes and values, not of a file
        },
    }


def _visited(run: Run, last: StopRow) -> list[str]:
    """The sites that the weights come from, in order."""
    return [site for stop in run.stops if stop.status == "done" and stop.index <= last.index for site in stop.sites]


def _readme(run: Run, plan: Plan, stop: StopRow, name: str) -> str:
    classes = "\n".join(f"- {number}: {label}" for number, label in enumerate(plan.task.classes))
    scores = [(row.site, row.metrics) for row in run.scores if row.stop == stop.index]
    table = "\n".join(f"| {site} | {found['dsc']:.3f} | {found['asd']:.2f} |" for site, found in scores if found)
    images = "PNG, JPEG or TIFF pictures" if plan.task.dims == 2 else "NIfTI volumes"
    slices = "\n`configs/inference_slices.json` segments NIfTI volumes slice by slice.\n" if plan.task.dims == 2 else ""
    return f"""# {run.id}

The network {plan.network.name} that Locum's run `{run.id}` came to with strategy {plan.strategy.name} at
{", ".join(_visited(run, stop))}, as a MONAI bundle. For research; not a medical device.

Segment a folder of {images} (`pip install "monai[nibabel,pillow]"`):

```python
from monai.bundle import load, run

run(
    config_file="{name}/configs/inference.json",
    bundle_root="{name}",
    dataset_dir="path/to/images",
    output_dir="path/to/segmentations",
)
network = load("{name}", bundle_dir=".")  # the network with its weights, in the folder that holds the bundle
```

The segmentations hold class numbers on the grid of each image:

{classes}
{slices}
Scores of these weights on each site's {plan.scored_cases} (mean over foreground classes and cases; ASD in mm, for
pictures in pixels):

| site | DSC | ASD |
|---|---|---|
{table}
"""


def _licence(run: Run) -> str:
    return (
        "The configurations and the documentation of this bundle were written by Locum and may be used under the\n"
        "Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).\n\n"
        f"The weights were learnt from the data of the sites that docs/README.md names. Whoever made run {run.id}\n"
        "decides with those sites on what terms they may be used, and writes so here before passing them on.\n"
    )


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
