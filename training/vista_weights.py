"""The published weights of VISTA3D: their licence, where they are, and how a training starts from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.disk import atomic_file
from training.download import sha256_of
from training.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["LICENCE", "PUBLISHED", "Licence", "Published", "accept", "load_weights"]

HEADS = ("class_head.", "point_head.")
NESTED = ("model", "state_dict")  # where some checkpoints keep the state dict


@dataclass(frozen=True)
class Licence:
    """What one must accept: its name, where its text is, and what it restricts, in a sentence."""

    name: str
    text: str
    restricts: str


@dataclass(frozen=True)
class Published:
    """A file of weights: its address, size in bytes and sha256 in hex."""

    url: str
    size: int
    sha256: str


_REVISION = "https://huggingface.co/MONAI/vista3d/{}/c6dbe159632a4767696e09f91d74d729b82e73e6"  # bundle 0.5.11

# docs/README.md of Project-MONAI/model-zoo's vista3d bundle names it; LICENSE.weights beside it, section 3.3, is what restricts
LICENCE = Licence(
    "NVIDIA License (NCLS v1)",
    _REVISION.format("blob") + "/LICENSE",
    "the weights, and whatever is trained from them, may be used for research or evaluation only, not commercially; "
    "who passes them on must pass on the licence with them",
)
# size and sha256 as Project-MONAI/MONAILabel pins this revision (packages/providers/src/monailabel/providers/vista3d.py)
PUBLISHED = Published(
    _REVISION.format("resolve") + "/models/model.pt",
    871_970_895,
    "c92bab26d00b4a5d89fa8a383900cdeb88302fd318e5e816df0bbec7106d9a1b",
)


def accept(folder: Path, by: str) -> None:
    """Keep in ``folder``/licence.json that ``by`` has accepted the licence now; who accepted first stays."""
    path = folder / "licence.json"
    told = {"licence": LICENCE.name, "text": LICENCE.text, "accepted_by": by, "accepted_at": datetime.now(UTC).isoformat()}
    if not path.exists():
        with atomic_file(path) as file:
            file.write(json.dumps(told, indent=2).encode())


def load_weights(net: "nn.Module", path: Path, *, sha256: str = "") -> None:
    """Put a file's tensors into ``net``, in place: the published weights, a run's ``weights.pt``, or an encoder's alone.

    Raises TrainingError where the file is not ``sha256`` (if given) or no file of weights, and names keys that ``net`` does not
    have, that are missing (heads may be, and stay untrained), or whose shape is another.
    """
    if sha256 and sha256_of(path) != sha256:
        raise TrainingError(
            "not the weights that the plan names", about=str(path), remedy="give the file whose sha256 it names"
        )
    _copy(net, _state(path), str(path))


def _state(path: Path) -> dict[str, "torch.Tensor"]:
    import torch

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch's readers raise whatever the bytes lead them to
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise TrainingError(f"cannot be read as weights: {reason}", about=str(path), remedy="check the file") from None
    for name in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TrainingError("holds no state dict", about=str(path), remedy="give a file that maps names to tensors")
    return dict(state)


def _copy(net: "nn.Module", state: dict[str, "torch.Tensor"], about: str) -> None:
    mine = net.state_dict()
    missing = [key for key in mine if key not in state and not key.startswith(HEADS)]
    other = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(mine[key].shape)}"
        for key in mine
        if key in state and state[key].shape != mine[key].shape
    ]
    unknown = [key for key in state if key not in mine]
    for what, keys in (("unknown", unknown), ("missing", missing), ("of another shape", other)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            remedy = "give weights of this network, or set network_args and channels to theirs"
            raise TrainingError(f"{what}: {', '.join(keys[:3])}{more}", about=about, remedy=remedy)
    net.load_state_dict(state, strict=False)
