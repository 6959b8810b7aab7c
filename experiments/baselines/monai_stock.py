"""The stock MONAI way to train a segmentation and to run one over a large volume, written once and not tuned.

    python -m experiments.baselines.monai_stock train FOLDER     FOLDER/images/*.nii.gz and FOLDER/labels of the same names
    python -m experiments.baselines.monai_stock infer

Each prints a JSON object an epoch or a run; the first of them warms up.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai import transforms
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.networks.nets.vista3d import vista3d132
from torch import nn
from torch.nn import functional

__all__ = ["infer", "setting", "train"]

BOTH = ("image", "label")
WORKERS = 2


def train(folder: Path, *, batch: int = 8, patch: int = 32, epochs: int = 3, cases: int = 200) -> Iterator[dict[str, Any]]:
    """Train a SegResNet in float32 on cubes of ``patch`` voxels, cut and augmented on the CPU; yields after each epoch.

    ``patches`` in ``seconds`` (end to end, the workers' start with it), ``patches_per_s``, and ``losses``, one a step.
    """
    device = _device()
    torch.manual_seed(0)
    dataset = CacheDataset(_cases(folder, cases), _pipeline(patch), num_workers=WORKERS, progress=False)
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=WORKERS, drop_last=True)
    net = SegResNet(3, 32, 1, 3, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    for epoch in range(epochs):
        started, patches, losses = _now(), 0, []
        for step in loader:
            optimizer.zero_grad()
            loss = criterion(net(step["image"].to(device)), step["label"].to(device))
            loss.backward()
            optimizer.step()
            patches += len(step["image"])
            losses.append(loss.detach())
        seconds = _now() - started
        rate = {"patches": patches, "seconds": seconds, "patches_per_s": patches / seconds}
        yield {"epoch": epoch, "device": device, **rate, "losses": [float(loss) for loss in losses]}


def setting(size: Sequence[int], *, embed: int = 48, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """VISTA3D's network with random weights and a smooth random (1, 1, *size) volume, on the CPU; both follow from ``seed``."""
    torch.manual_seed(seed)
    net = vista3d132(encoder_embed_dim=embed, in_channels=1).eval()
    coarse = torch.randn(1, 1, *(side // 8 for side in size))
    return net, functional.interpolate(coarse, size=tuple(size), mode="trilinear")


def infer(
    net: nn.Module, volume: torch.Tensor, *, classes: int = 10, window: int = 128, overlap: float = 0.625, stitch: str = ""
) -> torch.Tensor:
    """(1, classes, *size) logits of VISTA3D's first classes, window by window in float32, blended by a Gaussian.

    ``stitch`` names the device that windows are put together on; none: the network's.
    """
    device = next(net.parameters()).device
    home = stitch or device
    prompts = torch.arange(1, classes + 1, device=device)[:, None]

    def predict(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(one[None], class_vector=prompts).transpose(0, 1) for one in windows])

    with torch.no_grad():
        blended = sliding_window_inference(
            volume.to(home), (window,) * 3, 1, predict, overlap=overlap, mode="gaussian", sw_device=device, device=home
        )
    assert isinstance(blended, torch.Tensor)
    return blended


def _cases(folder: Path, most: int) -> list[Mapping[str, str]]:
    images = sorted((folder / "images").glob("*.nii.gz"))[:most]
    return [{"image": str(image), "label": str(folder / "labels" / image.name)} for image in images]


def _pipeline(patch: int) -> Any:
    size, by_kind = (patch,) * 3, ("bilinear", "nearest")
    return transforms.Compose(
        [
            transforms.LoadImaged(BOTH),
            transforms.EnsureChannelFirstd(BOTH),
            transforms.Orientationd(BOTH, axcodes="RAS"),
            transforms.Spacingd(BOTH, pixdim=(1, 1, 1), mode=by_kind),
            transforms.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
            transforms.SpatialPadd(BOTH, size),
            transforms.RandCropByPosNegLabeld(BOTH, "label", size, num_samples=1),
            transforms.RandFlipd(BOTH, prob=0.5, spatial_axis=0),
            transforms.RandAffined(BOTH, prob=1.0, rotate_range=0.2, scale_range=0.1, mode=by_kind),
            transforms.RandGaussianNoised("image", prob=0.3, std=0.05),
            transforms.RandScaleIntensityd("image", 0.15, prob=0.5),
        ]
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _now() -> float:
    """Seconds, once the device has done what it was told to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Train or infer the stock MONAI way.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    for name, default in (("batch", 8), ("patch", 32), ("epochs", 3), ("cases", 200)):
        training.add_argument(f"--{name}", type=int, default=default)
    inference = commands.add_parser("infer")
    inference.add_argument("--size", type=int, nargs=3, default=(320, 320, 256))
    for name, default in (("classes", 10), ("window", 128), ("embed", 48), ("seed", 0), ("runs", 2)):
        inference.add_argument(f"--{name}", type=int, default=default)
    inference.add_argument("--stitch", default="", help="the device that windows are put together on")
    asked = vars(parser.parse_args())
    ways: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"train": train, "infer": _runs}
    for line in ways[asked.pop("command")](**asked):
        print(json.dumps(line), flush=True)


def _runs(*, size: Sequence[int], embed: int, seed: int, runs: int, **asked: Any) -> Iterator[dict[str, Any]]:
    net, volume = setting(size, embed=embed, seed=seed)
    net = net.to(_device())
    for run in range(runs):
        started = _now()
        blended = infer(net, volume, **asked)
        yield {"run": run, "device": _device(), "shape": list(blended.shape), "seconds": _now() - started}


if __name__ == "__main__":
    _main()
