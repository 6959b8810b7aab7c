"""VISTA3D answering by classes, and by a reader's clicks where there are any."""

from collections.abc import Iterator, Mapping
from typing import Any

import highdicom as hd
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from datamodules.prepare import Prepared
from training.errors import TrainingError
from training.network import autocast
from training.predictor import NetPredictor, Point, Prompts, asked_classes
from training.vista_net import Vista3D

__all__ = ["Vista3DPredictor", "merged"]

REACH = 2  # voxels around a click in which the region that it means may begin
Clicks = list[tuple[tuple[int, int, int], bool]]  # voxel (z, y, x), and whether it is inside


class Vista3DPredictor(NetPredictor):
    """Fine-tuned VISTA3D networks: every structure by its class, in overlapping windows as any network; then a window around
    each click, whose encoding serves the clicks of all structures in it, and the mask changes where a click meant it to.

    MONAI's ``point_based_window_inferer`` does one object at a time, encodes a window anew for each, loses clicks in the first
    voxel of an axis, and needs scikit-image.
    """

    def _asked(self, prompts: Prompts) -> tuple[str, ...]:
        """The structures that are asked for, those of clicks among them."""
        asked = asked_classes(prompts, self.plan.structures)
        if unknown := sorted({point.structure for point in prompts.points} - set(asked)):
            remedy = f"click on {', '.join(asked)}" + (", or ask for its class too" if prompts.classes else "")
            raise TrainingError(f"a click on {', '.join(unknown)}, which is not asked for", remedy=remedy)
        return asked

    def _refined(self, said: torch.Tensor, prepared: Prepared, prompts: Prompts) -> torch.Tensor:
        if not prompts.points:
            return said
        with autocast(self.plan, prepared.image.device):
            if len(self._members) > 1:
                return torch.cat([self._clicked(said[:-1].clone(), prepared, prompts), said[-1:]])
            return self._clicked(said.softmax(0), prepared, prompts).clamp_min(1e-12).log()

    def _clicked(self, p: torch.Tensor, prepared: Prepared, prompts: Prompts) -> torch.Tensor:
        """(K, D, H, W) probabilities with the windows around the clicks answered anew."""
        clicks = self._voxels(prompts, prepared)
        short = [max(0, size - there) for size, there in zip(self.plan.patch, p.shape[1:], strict=True)]
        image = functional.pad(prepared.image[None], (0, short[2], 0, short[1], 0, short[0]), mode="replicate")
        for window in self._around(clicks, image.shape[2:]):
            nets = [frozen.net for frozen in self._nets if isinstance(frozen.net, Vista3D)]
            features = [net.encode(image[(slice(None), slice(None), *window)], classes=False) for net in nets]
            log_p = p[(slice(None), *window)].clamp_min(1e-12).log()
            scores = log_p[1:] - log_p[:1]
            for structure, points in _within(clicks, window).items():
                at = torch.tensor([[place for place, _ in points]], device=image.device)
                inside = torch.tensor([[int(positive) for _, positive in points]], device=image.device)
                said = [net.by_clicks(f, [structure], at, inside) for net, f in zip(nets, features, strict=True)]
                answer = torch.stack(said).float().mean(0)[0, 0][tuple(slice(size) for size in scores.shape[1:])].to(p.device)
                own, won = merged(scores[structure], answer, points)
                scores = torch.where(won, scores.clamp_max(0), scores)  # a voxel has one structure: the clicked one
                scores[structure] = own
            p[(slice(None), *window)] = functional.pad(scores, (0, 0, 0, 0, 0, 0, 1, 0)).softmax(0)
        return p

    def _voxels(self, prompts: Prompts, prepared: Prepared) -> Mapping[int, Clicks]:
        """Each structure's clicks on the prepared grid; TrainingError for one that lies outside of the image."""
        clicks: dict[int, Clicks] = {}
        old, new = np.array(prepared.canonical.spatial_shape), np.array(prepared.image.shape[1:])
        for point in prompts.points:
            where = _indices(prepared.canonical, point)
            if (where < -0.5).any() or (where > old - 0.5).any():
                remedy = "give its position in LPS mm"
                raise TrainingError(f"the click at {tuple(point[:3])} is outside of the image", remedy=remedy)
            z, y, x = np.clip(np.round((where + 0.5) * new / old - 0.5), 0, new - 1).astype(int).tolist()
            clicks.setdefault(self.plan.structures.index(point.structure), []).append(((z, y, x), point.positive))
        return clicks

    def _around(self, clicks: Mapping[int, Clicks], shape: torch.Size) -> Iterator[tuple[slice, ...]]:
        """A window of the plan's patch around each click, in the order of the clicks, each once."""
        seen = set()
        for place in (place for points in clicks.values() for place, _ in points):
            sides = zip(place, self.plan.patch, shape, strict=True)
            starts = tuple(min(max(0, at - size // 2), there - size) for at, size, there in sides)
            if starts not in seen:
                seen.add(starts)
                yield tuple(slice(start, start + size) for start, size in zip(starts, self.plan.patch, strict=True))


def merged(scores: torch.Tensor, answer: torch.Tensor, points: Clicks) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, H, W) ``scores`` of one structure with ``answer``, its scores by clicks, where a click asks for it; and the voxels
    that clicks inside have won, bool.

    Of the voxels that ``answer`` adds, a connected part (26 neighbours) is taken where a click inside lies in it or within two
    voxels of it; of those that it takes away, where a click outside does. If a click lies in the mask already, what it adds may
    be connected through the mask. As VISTA3D combines them (``connected_components_combine`` of MONAI).
    """
    found, said = (scores > 0).cpu().numpy(), (answer > 0).cpu().numpy()
    within = any(bool(found[place]) for place, _ in points)
    added = said & (~found | within)
    taken = found & ~said
    won = torch.from_numpy(_parts(added, [place for place, positive in points if positive])).to(scores.device)
    lost = torch.from_numpy(_parts(taken, [place for place, positive in points if not positive])).to(scores.device)
    return torch.where(lost, answer, torch.where(won, torch.maximum(scores, answer), scores)), won


def _parts(region: "np.ndarray[Any, Any]", places: list[tuple[int, int, int]]) -> "np.ndarray[Any, Any]":
    """The connected parts of ``region`` nearest to ``places``, of those that come as near as REACH."""
    labels, _ = ndimage.label(region, np.ones((3, 3, 3)))
    wanted: set[int] = set()
    for place in places:
        for reach in range(REACH + 1):
            near = labels[tuple(slice(max(0, at - reach), at + reach + 1) for at in place)]
            if near.any():
                wanted |= set(near[near > 0].tolist())
                break
    found: np.ndarray[Any, Any] = np.isin(labels, sorted(wanted)) & region
    return found


def _within(clicks: Mapping[int, Clicks], window: tuple[slice, ...]) -> Mapping[int, Clicks]:
    """The clicks that lie in a window, by its own voxels."""
    inside: dict[int, Clicks] = {}
    for structure, points in clicks.items():
        for place, positive in points:
            if all(part.start <= at < part.stop for at, part in zip(place, window, strict=True)):
                z, y, x = (at - part.start for at, part in zip(place, window, strict=True))
                inside.setdefault(structure, []).append(((z, y, x), positive))
    return inside


def _indices(grid: hd.VolumeGeometry, point: Point) -> "np.ndarray[Any, Any]":
    """(3,) array indices, not whole, of a click."""
    indices: np.ndarray[Any, Any] = grid.map_reference_to_indices(np.array([point[:3]], np.float64))[0]
    return indices
