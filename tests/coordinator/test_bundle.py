"""The exported bundle: MONAI's own loader and runner, held to the weights and to the segmentations of a node."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from coordinator.bundle import NotExportable, export_bundle
from coordinator.scenario import Scenario
from coordinator.vault import MissingArtifact
from node.data import samples
from node.data.pictures import read_picture, to_channels
from node.data.source import Scan
from node.data.volumes import read_volume, read_volume_label
from protos.handover import Handover, Kind
from protos.plan import Plan
from strategies.registry import strategy_for

# MONAI says so of every configuration
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

# by MONAI's meta_schema_20240725.json
REQUIRED = {
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
}
PICTURES = """
name: pictures
task: {size: [16, 32], classes: [background, organ]}
sites:
  - {name: north, phantom: {task: organ, cases: 6, size: 16}}
  - {name: east, phantom: {task: organ, appearance: 1, cases: 7, size: 16}}
network: {channels: [2, 4, 8]}
training: {steps: 2, batch_size: 2}
"""
VOLUMES = (
    PICTURES.replace("pictures", "volumes").replace("[16, 32]", "[16, 8, 16]").replace("size:", "dims: 3, size:", 1)
)
VOLUMES = VOLUMES.replace("organ", "lesions")
SOFT = ["task.soft=true", "training.loss=dice"]


@pytest.fixture(scope="module")
def exported(shared_desk, tmp_path_factory) -> Callable[..., tuple[Path, Plan, samples.LogitsFn]]:
    """Exports a run of a scenario: the bundle, the plan, and the network as a node would use it."""

    @functools.cache
    def export(text: str, *overrides: str) -> tuple[Path, Plan, samples.LogitsFn]:
        row = shared_desk.row(shared_desk.simulate(*overrides, text=text))
        bundle = export_bundle(row, shared_desk.vault.folder, tmp_path_factory.mktemp("bundles") / "bundle")
        plan = Scenario.model_validate(row.scenario).plan()
        handover = Handover.from_bytes(shared_desk.vault.get(row.stops[-1].artifact))
        return bundle, plan, strategy_for(plan).predictor(handover, torch.device("cpu"))

    return export


@pytest.fixture(scope="module")
def finished(shared_desk) -> str:
    """A finished run, to be exported or refused."""
    return shared_desk.simulate(text=PICTURES)


def segmented(bundle: Path, images: Path, config: str = "inference.json") -> Path:
    """The folder of what MONAI makes of a folder of images."""
    folder = images.parent / "segmentations"
    monai.bundle.run(
        config_file=str(bundle / "configs" / config),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(folder),
    )
    return folder


def predicted(
    image: NDArray[np.float32], spacing: tuple[float, ...], plan: Plan, network: samples.LogitsFn
) -> NDArray[np.uint8]:
    """What a node makes of an image, [channels, *space]."""
    shares = (len(plan.task.classes) - 1,) if plan.task.soft else ()
    scan = Scan("case", image, np.zeros(shares + image.shape[1:], np.uint8), spacing)
    return samples.TestCase.of(scan, plan.task, synthetic=True).predict(network)


def draw_pictures(folder: Path) -> None:
    """Pictures of several sizes (the network's own, larger, smaller) and of every kind that both sides read."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    grey16 = rng.integers(0, 60000, (16, 32)).astype(np.uint16)
    colour = rng.integers(0, 256, (40, 27, 3)).astype(np.uint8)
    Image.fromarray(grey16).save(folder / "own-size.png")
    Image.fromarray(grey16[:9, :11]).save(folder / "smaller.tif")
    Image.fromarray(colour).save(folder / "colour.png")
    Image.fromarray(np.dstack([colour, colour[..., 0]])).save(folder / "alpha.png")
    Image.fromarray(colour).quantize(16).save(folder / "palette.png")
    Image.fromarray(colour[..., 0] > 128).save(folder / "bits.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(colour).save(folder / "turned.jpg", exif=turned)


def draw_volumes(folder: Path) -> None:
    """Volumes that lie askew in their files, with voxels that are not cubes."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name, code, shape in (("ras", "RAS", (16, 8, 16)), ("psr", "PSR", (12, 21, 10)), ("las", "LAS", (20, 7, 33))):
        data = rng.integers(0, 1000, shape).astype(np.int16)
        ras = np.diag([11.0, 8.5, 13.3, 1.0])
        ras[:3, 3] = [-30, 12, 5]
        upright = nibabel.Nifti1Image(data, ras)
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
        )
        nibabel.save(upright.as_reoriented(turn), folder / f"{name}.nii.gz")


class TestLoad:
    def test_gives_the_network_with_the_very_weights(self, exported):
        bundle, _, network = exported(PICTURES)
        loaded = monai.bundle.load(bundle.name, bundle_dir=bundle.parent).eval()
        image = torch.from_numpy(np.random.default_rng(2).standard_normal((3, 1, 16, 32), dtype=np.float32))
        with torch.inference_mode():
            assert torch.equal(loaded(image), network(image))

    def test_state_is_bitwise_that_of_the_vault_in_both_files(self, exported, shared_desk):
        bundle, _, _ = exported(PICTURES)
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        for state in (
            torch.load(bundle / "models" / "model.pt", weights_only=True),
            load_file(bundle / "models" / "model.safetensors"),
            dict(monai.bundle.load(bundle.name, bundle_dir=bundle.parent, workflow_type="inference").state_dict()),
        ):
            assert Handover.of(weights=state).digest(Kind.WEIGHTS).hex() == metadata["locum"]["weights_sha256"]


class TestRun:
    """Exactly what a node predicts, from the same files; networks of two steps leave many close calls."""

    @pytest.mark.parametrize(
        "overrides",
        [
            [],
            ["task.channels=3", "task.intensity=percentile"],
            ["task.intensity=minmax", "task.fit=patch"],
            ["task.intensity=symmetric", "task.fit=patch"],
            ["task.intensity=none", "task.fit=patch", "task.spacing=[1.5, 0.7]", "network.norm=group"],
            SOFT,
            [*SOFT, "task.fit=patch"],
        ],
    )
    def test_pictures(self, exported, tmp_path, overrides):
        bundle, plan, network = exported(PICTURES, *overrides)
        draw_pictures(tmp_path / "images")
        found = segmented(bundle, tmp_path / "images")
        for path in sorted((tmp_path / "images").iterdir()):
            image = to_channels(read_picture(path), plan.task.channels, path)
            expected = predicted(image, (1.0, 1.0), plan, network)
            with Image.open(found / f"{path.stem}_seg.png") as picture:
                assert np.array_equal(np.asarray(picture), expected), path.name
        assert len(list(found.iterdir())) == len(list((tmp_path / "images").iterdir()))

    @pytest.mark.parametrize(
        ("text", "config", "overrides"),
        [
            (VOLUMES, "inference.json", []),
            (VOLUMES, "inference.json", ["task.fit=patch", "task.spacing=[14, 7.5, 12]", "network.residual_units=1"]),
            (VOLUMES, "inference.json", ["task.fit=patch"]),
            (PICTURES, "inference_slices.json", []),
            (PICTURES, "inference_slices.json", ["task.fit=patch", "task.spacing=[15, 6]"]),
            (PICTURES, "inference_slices.json", ["task.plane=coronal", "task.fit=patch", "task.spacing=[15, 6]"]),
            (PICTURES, "inference_slices.json", ["task.plane=sagittal", *SOFT]),
            (VOLUMES, "inference.json", ["task.fit=patch", *SOFT]),
        ],
    )
    def test_volumes_however_they_lie(self, exported, tmp_path, text, config, overrides):
        bundle, plan, network = exported(text, *overrides)
        draw_volumes(tmp_path / "images")
        found = segmented(bundle, tmp_path / "images", config)
        for path in sorted((tmp_path / "images").iterdir()):
            volume = read_volume(path)
            expected = predicted(volume.data, volume.spacing, plan, network)
            result = found / path.name.replace(".nii.gz", "_seg.nii.gz")
            assert np.array_equal(read_volume_label(result).data[0], expected), path.name
            given, written = nibabel.load(path), nibabel.load(result)
            assert written.shape == given.shape
            assert np.allclose(written.affine, given.affine, atol=1e-5)

    def test_in_a_process_that_knows_nothing_of_locum(self, exported, tmp_path):
        # MONAI falls back to its other readers in silence when what ours needs has not been imported
        bundle, plan, network = exported(PICTURES)
        draw_pictures(tmp_path / "images")
        arguments = {"bundle_root": ".", "dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "found")}
        code = (
            "import sys, monai.bundle\n"
            f"monai.bundle.run(config_file='configs/inference.json', **{arguments})\n"
            "assert not {'coordinator', 'node', 'strategies', 'protos'} & sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-I", "-c", code], cwd=bundle, check=True, capture_output=True, timeout=120)
        for name in ("turned.jpg", "palette.png", "bits.png"):
            path = tmp_path / "images" / name
            expected = predicted(to_channels(read_picture(path), 1, path), (1.0, 1.0), plan, network)
            with Image.open(tmp_path / "found" / f"{path.stem}_seg.png") as picture:
                assert np.array_equal(np.asarray(picture), expected), name


class TestMetadata:
    def test_says_what_monai_asks_for_and_where_the_weights_come_from(self, exported):
        bundle, _, _ = exported(PICTURES, "order=reversed", "seed=3")
        configs = bundle / "configs"
        found = json.loads((configs / "metadata.json").read_text())
        assert found.keys() >= REQUIRED
        assert found["locum"]["sites"] == ["east", "north"]
        assert (found["locum"]["seed"], found["locum"]["strategy"]) == (3, "finetune")
        assert found["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "organ"}
        self.verify(configs)

    def test_of_a_soft_task_has_no_background(self, exported):
        bundle, _, _ = exported(PICTURES, *SOFT)
        configs = bundle / "configs"
        found = json.loads((configs / "metadata.json").read_text())
        assert found["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "organ"}
        self.verify(configs)

    def verify(self, configs):
        for config in ("train.json", "inference.json", "inference_slices.json"):
            # raises when the network does not take and give what the metadata say
            monai.bundle.verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / config))

    def test_nothing_of_the_machine_is_in_the_bundle(self, exported, shared_desk):
        bundle, _, _ = exported(PICTURES)
        for path in bundle.rglob("*"):
            assert path.is_dir() or str(shared_desk.folder).encode() not in path.read_bytes()


class TestRefusals:
    def test_no_finished_stop(self, shared_desk, tmp_path):
        row = shared_desk.row(shared_desk.begin())
        with pytest.raises(NotExportable, match="no finished stop"):
            export_bundle(row, shared_desk.vault.folder, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_a_folder_that_holds_something(self, shared_desk, finished, tmp_path):
        row = shared_desk.row(finished)
        (tmp_path / "notes.txt").write_text("mine")
        for folder in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(NotExportable, match="not an empty folder"):
                export_bundle(row, shared_desk.vault.folder, folder)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        (tmp_path / "empty").mkdir()
        assert export_bundle(row, shared_desk.vault.folder, tmp_path / "empty") == tmp_path / "empty"

    def test_a_model_per_site_unless_there_is_one_site(self, shared_desk, tmp_path):
        row = shared_desk.row(shared_desk.simulate("strategy=individual", text=PICTURES))
        with pytest.raises(NotExportable, match="a model per site"):
            export_bundle(row, shared_desk.vault.folder, tmp_path / "bundle")
        alone = shared_desk.simulate(
            "strategy=individual", "sites=[{name: north, phantom: {task: organ}}]", text=PICTURES
        )
        assert export_bundle(shared_desk.row(alone), shared_desk.vault.folder, tmp_path / "bundle").is_dir()

    def test_weights_that_are_not_the_network_s(self, shared_desk, finished, tmp_path):
        row = shared_desk.row(finished)
        row.scenario["network"]["channels"] = [2, 4, 16]
        with pytest.raises(NotExportable, match="not those of network unet"):
            export_bundle(row, shared_desk.vault.folder, tmp_path / "bundle")

    def test_a_class_that_monai_would_evaluate(self, shared_desk, tmp_path):
        name = "$__import__('pathlib').Path('evaluated').touch()"
        row = shared_desk.row(shared_desk.simulate(f'task.classes=[background, "{name}"]', text=PICTURES))
        with pytest.raises(NotExportable, match="MONAI would not take"):
            export_bundle(row, shared_desk.vault.folder, tmp_path / "bundle")

    def test_a_missing_artifact(self, shared_desk, finished, tmp_path):
        row = shared_desk.row(finished)
        with pytest.raises(MissingArtifact):
            export_bundle(row, tmp_path / "elsewhere", tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
