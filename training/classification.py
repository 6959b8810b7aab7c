"""Which structures an image shows: the module that learns it from what labels say is present, and the predictor."""

from collections.abc import Callable, Sequence

import highdicom as hd
import torch
from scipy.stats import mannwhitneyu
from torch import nn
from torch.nn import functional

from datamodules.plan import Plan
from datamodules.prepare import prepare
from training.loss import processes, total
from training.module import Batch, PlanModule
from training.network import autocast, device, network

__all__ = ["ClassificationModule", "ClassificationPredictor", "measured"]


class ClassificationModule(PlanModule):
    """Image → structures present: exactly one where ``plan.exclusive``, else each on its own.

    The plan's patch is what the network sees of an image, normally all of it; at validation its centre. Logs ``val_loss``,
    ``val_accuracy`` and ``val_accuracy_<structure>``, ``val_auroc_<structure>`` where both answers occur, and ``val_score``:
    the mean AUROC, or the accuracy where no structure has one.
    """

    def __init__(self, plan: Plan, make: Callable[[Plan], nn.Module] = network) -> None:
        super().__init__(plan, make)
        self.measures = ("val_loss",)
        self._answers: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, *patch) → (B, structures) logits, float32."""
        return _scores(self.net, image, self.plan)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) prepared images of any size → (B, structures) probabilities, of their centres."""
        return _probabilities(self(_centre(image, self.plan)), self.plan)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of what is annotated; the mean of the processes' gradients is that of one process with all cases."""
        present, annotated = batch["present"], batch["annotated"]
        if self.plan.exclusive:
            return _exclusive(self(batch["image"]), present, annotated)
        losses = functional.binary_cross_entropy_with_logits(self(batch["image"]), present.float(), reduction="none")
        return (losses * annotated).sum() * processes() / total(annotated.sum()).clamp_min(1)

    def validation_step(self, batch: Batch, index: int) -> None:
        """One case's probabilities."""
        logits = self(_centre(batch["image"], self.plan))
        present, annotated = batch["present"], batch["annotated"]
        if self.plan.exclusive:
            loss = _exclusive(logits, present, annotated)
        else:
            losses = functional.binary_cross_entropy_with_logits(logits, present.float(), reduction="none")
            loss = losses[annotated].mean()  # nan where nothing is annotated: tally leaves that out
        self.tally(loss[None], batch["counted"])
        known = annotated & batch["counted"][:, None]
        self._answers.append(torch.stack([_probabilities(logits, self.plan)[0], present[0].float(), known[0].float()]))

    def on_validation_epoch_end(self) -> None:
        """Measure over the cases of all processes."""
        if not self._answers:
            return
        gathered = self.all_gather(torch.stack(self._answers)).reshape(-1, 3, len(self.plan.structures)).cpu()
        self._answers = []
        self.log_dict(self.means() | measured(gathered, self.plan))


class ClassificationPredictor:
    """Trained networks with their plan, answering together; on the GPU where there is one."""

    def __init__(self, nets: nn.Module | Sequence[nn.Module], plan: Plan) -> None:
        self.plan = plan
        self._device = device()
        self._nets = [net.to(self._device).eval() for net in ([nets] if isinstance(nets, nn.Module) else nets)]

    def predict(self, image: hd.Volume | Sequence[hd.Volume]) -> dict[str, float]:
        """The probability (0…1) of each of the plan's structures in ``image``, a volume a channel (LPS, mm)."""
        seen = _centre(prepare(image, self.plan, device=self._device).image[None], self.plan)
        with torch.inference_mode(), autocast(self.plan, self._device):
            said = [_probabilities(_scores(net, seen, self.plan), self.plan)[0] for net in self._nets]
        return dict(zip(self.plan.structures, torch.stack(said).mean(0).tolist(), strict=True))


def _scores(net: nn.Module, image: torch.Tensor, plan: Plan) -> torch.Tensor:
    scores: torch.Tensor = net(image[:, :, 0] if plan.dimensions == 2 else image)
    return scores.float()


def _probabilities(logits: torch.Tensor, plan: Plan) -> torch.Tensor:
    return logits.softmax(1) if plan.exclusive else logits.sigmoid()


def _exclusive(logits: torch.Tensor, present: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Cross-entropy where a case may leave structures out: what is present is the answer; where that is not said, any of the
    structures that nothing is said of. A case that is said to show none teaches nothing.
    """
    shown = present & annotated
    possible = torch.where(shown.any(1, keepdim=True), shown, ~annotated)
    some = possible.any(1)
    log_p = logits.log_softmax(1).masked_fill(~(possible | ~some[:, None]), -torch.inf)
    return -(log_p.logsumexp(1) * some).mean()


def _centre(image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(B, C, D, H, W) cut or padded with its lowest value to (B, C, *patch), about its centre."""
    sides: list[int] = []
    for size, side in reversed(list(zip(image.shape[2:], plan.patch, strict=True))):
        before = (side - size) // 2
        sides += [before, side - size - before]
    return functional.pad(image, sides, value=float(image.min()))


def measured(answers: torch.Tensor, plan: Plan) -> dict[str, float]:
    """``val_accuracy`` and ``val_auroc``, by structure too where both answers occur, and ``val_score``, of (cases, 3,
    structures) probabilities, presence and whether that is known."""
    p, present, known = answers[:, 0], answers[:, 1] > 0, answers[:, 2] > 0
    said = functional.one_hot(p.argmax(1), p.shape[1]) > 0 if plan.exclusive else p > 0.5
    measured, accuracies, areas = {}, [], []
    for index, name in enumerate(plan.structures):
        asked = known[:, index]
        if not asked.any():
            continue
        accuracies.append(float((said == present)[asked, index].float().mean()))
        measured[f"val_accuracy_{name}"] = accuracies[-1]
        yes, no = (p[asked & (present[:, index] == answer), index] for answer in (True, False))
        if len(yes) and len(no):
            areas.append(float(mannwhitneyu(yes, no).statistic) / (len(yes) * len(no)))
            measured[f"val_auroc_{name}"] = areas[-1]
    if not accuracies:
        return {}
    shown = (present & known).any(1)
    exact = plan.exclusive and bool(shown.any())
    accuracy = float((said & present & known)[shown].any(1).float().mean()) if exact else sum(accuracies) / len(accuracies)
    return measured | {"val_accuracy": accuracy, "val_score": sum(areas) / len(areas) if areas else accuracy}
