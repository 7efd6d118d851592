"""The configurations of an exported MONAI bundle: how MONAI segments a folder of images as a node does.

MONAI evaluates the expressions in them. They are built from the numbers and choices of a validated scenario, never
from its text.
"""

from typing import Any, Literal

from protos.plan import Plan, Task
from strategies import networks

AXES = {"axial": "RAS", "coronal": "RSA", "sagittal": "ASR"}  # the order in which slices of a plane lie along the last
SUFFIXES = {"pictures": (".png", ".jpg", ".jpeg", ".tif", ".tiff"), "volumes": (".nii", ".nii.gz")}
WINDOWS = {2: 16, 3: 2}  # that go through the network together, by dimensions, as when a node scores

# What lies in the folder to segment; slices are volumes that a 2D network sees plane by plane.
Data = Literal["pictures", "slices", "volumes"]
Config = dict[str, Any]


def configurations(plan: Plan) -> dict[str, Config]:
    """By file name: MONAI's configurations for inference, and one that holds the network alone.

    A 2D task has two for inference, since pictures and slices of volumes are read differently.
    """
    # `monai.bundle.load` looks for the network in train.json unless it is told otherwise
    configs = {"train.json": {"network_def": _network(plan)}}
    if plan.task.dims == 3:
        return configs | {"inference.json": _inference(plan, "volumes")}
    return configs | {
        "inference.json": _inference(plan, "pictures"),
        "inference_slices.json": _inference(plan, "slices"),
    }


def _network(plan: Plan) -> Config:
    network, arguments = networks.definition(plan.task, plan.network)
    return {"_target_": network.__name__, **arguments}


def _inference(plan: Plan, data: Data) -> Config:
    """MONAI's configuration that segments a folder of `data`."""
    task = plan.task
    suffixes = SUFFIXES["pictures" if data == "pictures" else "volumes"]
    return {
        "imports": ["$from pathlib import Path", "$import PIL.ImageOps as ImageOps"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/segmentations'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network(plan),
        "network": "$@network_def.to(@device).eval()",
        "grid": _grid(task),
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(task, data)},
        "datalist": f"$sorted(str(p) for p in Path(@dataset_dir).iterdir() if p.name.lower().endswith({suffixes}))",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": _inferer(task, data),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(task, data)},
        "outputs": f"$lambda images: {_outputs(task)}",
        "prediction": "$torch.inference_mode()(lambda image: @inferer(image[None].to(@device), @outputs)[0])",
        # a plain loop: MONAI's evaluators need ignite, which nothing else here does
        "run": [
            "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', weights_only=True))",
            "$sum(1 for case in @dataset if @postprocessing({**case, 'pred': @prediction(case['image'])}))",
        ],
    }


def _outputs(task: Task) -> str:
    """What the network says of a window: logits, for soft tasks shares by the normalised ReLU of that window."""
    if not task.soft:
        return "@network(images)"
    axes = tuple(range(2, 2 + task.dims))
    return f"(lambda z: z / z.amax({axes}, True).clamp(torch.finfo(z.dtype).tiny))(@network(images).relu())"


def _grid(task: Task) -> str:
    """From an image to the shape that the network works on."""
    if task.fit == "resize":
        return f"$lambda image: {list(task.size)}"
    if task.spacing is None:
        return "$lambda image: image.meta['native']"
    # six digits, since headers hold float32
    return (
        "$lambda image: [max(1, round(n * float(f'{have:.6g}') / want)) for n, have, want in "
        f"zip(image.meta['native'], image.pixdim.tolist(), {list(task.spacing)})]"
    )


def _preprocessing(task: Task, data: Data) -> list[Config]:
    """The readers, channels, intensities and grid of a node's data, by MONAI's transforms and PyTorch's resampling."""
    if data == "pictures":
        steps = [
            _on_image("LoadImaged", reader=_picture_reader(), ensure_channel_first=True),
            _on_image("Transposed", indices=[0, 2, 1]),  # MONAI reads columns first, the network saw rows first
            _on_image("Lambdad", func=f"$lambda image: {_channels(task.channels)}"),
        ]
    else:
        steps = [
            _on_image("LoadImaged", reader="NibabelReader", ensure_channel_first=True),
            _on_image("Orientationd", axcodes=AXES[task.plane], labels=None),
        ]
    # the shape is kept for the way back; in C order sums over the image round as they did in training
    keep = "$lambda image: image.meta.update(native=list(image.shape[1:])) or image.contiguous()"
    steps.append(_on_image("Lambdad", func=keep))
    if task.intensity == "zscore":
        steps.append(_on_image("NormalizeIntensityd", channel_wise=True))
    if task.intensity == "percentile":
        steps.append(_on_image("ClipIntensityPercentilesd", lower=1, upper=99, channel_wise=True))
    if task.intensity in ("percentile", "minmax", "symmetric"):
        steps.append(_on_image("ScaleIntensityd", channel_wise=True))
    if task.intensity == "symmetric":
        steps.append(_on_image("Lambdad", func="$lambda image: 2 * image - 1"))
    if _resamples(task):
        # MONAI's own anti-aliasing darkens the border, PyTorch's takes planes only: rows and columns, then depth
        planes, back = ("image[None]", "[0]") if data == "pictures" else ("image.movedim(-1, 1)", ".movedim(1, -1)")
        steps.append(_on_image("Lambdad", func=f"$lambda image: {_resampled(planes, '@grid(image)[:2]')}{back}"))
        if data == "volumes":
            steps.append(_on_image("Lambdad", func=f"$lambda image: {_resampled('image', '@grid(image)[1:]')}"))
    return steps


def _postprocessing(task: Task, data: Data) -> list[Config]:
    """Logits go back to the image's own grid before the largest is chosen, and lie as the file does.

    So do shares, among which the background, the first on a tie, counts one half.
    """
    steps: list[Config] = []
    if _resamples(task):
        mode = "trilinear" if data == "volumes" else "bilinear"
        resized = f"torch.nn.functional.interpolate(pred[None], pred.meta['native'], mode='{mode}')[0]"
        if data == "slices":
            planes = "torch.nn.functional.interpolate(pred.movedim(-1, 0), pred.meta['native'][:2], mode='bilinear')"
            resized = f"{planes}.movedim(0, -1)"
        steps.append({"_target_": "Lambdad", "keys": "pred", "func": f"$lambda pred: {resized}"})
    steps.append({"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"})
    if task.soft:
        background = "$lambda pred: torch.cat([torch.full_like(pred[:1], 0.5), pred])"
        steps.append({"_target_": "Lambdad", "keys": "pred", "func": background})
    return [
        *steps,
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_ext": ".png" if data == "pictures" else ".nii.gz",
            "output_dtype": "$np.uint8",
            "separate_folder": False,
            "resample": False,
        },
    ]


def _inferer(task: Task, data: Data) -> Config:
    windows = {"roi_size": list(task.size), "sw_batch_size": WINDOWS[task.dims]}
    if task.fit == "patch":
        windows |= {"overlap": 0.5, "mode": "gaussian", "cval": task.padding}
    if data == "slices":
        return {"_target_": "SliceInferer", "spatial_dim": 2, **windows}
    return {"_target_": "SlidingWindowInferer", **windows} if task.fit == "patch" else {"_target_": "SimpleInferer"}


def _resamples(task: Task) -> bool:
    return task.fit == "resize" or task.spacing is not None


def _on_image(target: str, **arguments: Any) -> Config:
    return {"_target_": target, "keys": "image", **arguments}


def _resampled(image: str, grid: str) -> str:
    return f"torch.nn.functional.interpolate({image}, {grid}, mode='bilinear', antialias=True)"


def _picture_reader() -> Config:
    """Upright, palettes resolved, everything but grey and RGB turned into RGB; 16 bits stay."""
    modes = {"1": "L"} | dict.fromkeys(("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"), "RGB")
    upright = f"ImageOps.exif_transpose(picture).convert({modes}.get(picture.mode, picture.mode))"
    return {"_target_": "PILReader", "converter": f"$lambda picture: {upright}"}


def _channels(channels: int) -> str:
    """Alpha is dropped, grey repeated, colour becomes ITU-R 601's luma."""
    if channels == 1:
        luma = "torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), image[:3], 1)[None]"
        return f"image[:1] if len(image) < 3 else {luma}"
    return "image[:3] if len(image) > 2 else image[:1].repeat(3, 1, 1)" if channels == 3 else "image"
