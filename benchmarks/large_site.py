"""What a large site of volumes costs in memory and time: prepared samples in memory against samples on the disk.

Writes a site of NIfTI volumes into a temporary folder and draws the same batches of 64^3 windows in three processes:
with everything in memory, with the samples put on the disk, and with those that are there already. The batches must be
equal. Prints one JSON document per process: seconds to prepare, milliseconds per window, the peak of resident memory.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

MEBIBYTE = 2**20


def write_site(folder: Path, volumes: int, edge: int) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(volumes):
        image = rng.integers(0, 1000, (edge,) * 3).astype(np.int16)
        label = (rng.random((edge,) * 3) < 0.002).astype(np.uint8)
        for kind, array in (("images", image), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / kind / f"case{number:03d}.nii")


def draw(folder: Path, in_memory: int, batches: int) -> dict[str, object]:
    import torch

    from node.data.site import SiteData
    from node.settings import SiteSettings
    from protos.plan import Plan

    torch.set_num_threads(1)
    plan = Plan.model_validate(
        {
            "task": {"dims": 3, "classes": ["background", "lesion"], "fit": "patch"},
            "strategy": {"name": "finetune"},
            "split": {"train": 1, "val": 0, "test": 0},
            "sites": ["site"],
        }
    )
    settings = SiteSettings(name="site", home=folder / "home", data=folder)
    begun = time.perf_counter()
    samples = SiteData(settings, plan, in_memory=in_memory).samples("train")
    prepared = time.perf_counter()
    digest = hashlib.sha256()
    for number in range(batches):
        batch = samples.batch([(4 * number + place) % len(samples) for place in range(4)], range(4))
        digest.update(batch.image.numpy().tobytes() + batch.label.numpy().tobytes())
    drawn = time.perf_counter()
    return {
        "samples": len(samples),
        "MiB held": round(samples.nbytes / MEBIBYTE),
        "seconds to prepare": round(prepared - begun, 1),
        "ms per window": round((drawn - prepared) / (4 * batches) * 1000, 2),
        "peak MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "batches": digest.hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=60)
    parser.add_argument("--edge", type=int, default=160, help="voxels per axis")
    parser.add_argument("--limit", type=int, default=256, help="MiB that the site may hold where it uses the disk")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw is not None:
        sys.stdout.write(json.dumps(draw(options.draw, options.limit * MEBIBYTE, options.batches)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_site(Path(folder), options.volumes, options.edge)
        found = []
        for name, limit in (
            ("in memory", 2**40 // MEBIBYTE),
            ("put on disk", options.limit),
            ("on disk", options.limit),
        ):
            command = [sys.executable, __file__, "--draw", folder, f"--limit={limit}", f"--batches={options.batches}"]
            document = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found.append(document["batches"])
            sys.stdout.write(json.dumps({"samples are": name} | document) + "\n")
    if len(set(found)) > 1:
        raise SystemExit("the batches differ")


if __name__ == "__main__":
    main()
