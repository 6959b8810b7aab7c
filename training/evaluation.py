"""What the kept weights are worth: every validation case predicted once, measured by structure, the worst shown."""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import torch

from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.plan import Plan
from datamodules.sample import Sample
from training.metrics import TOLERANCE, structure_metrics
from training.pictures import as_data_uri, slices, worst_slice

__all__ = ["CaseResult", "Evaluation", "Together", "evaluate", "predicted"]

WORST = 5


@dataclass(frozen=True)
class CaseResult:
    """One case: ``metrics`` are named ``<metric>_<structure>``, ``score`` (the more the better) orders the cases; ``picture``
    is a PNG as a data URI, of the worst cases alone."""

    case: str
    study_uid: str
    patient_id: str
    label_id: str
    score: float
    metrics: Mapping[str, float]
    picture: str = field(default="", repr=False)

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it, without the picture."""
        names = ("case", "study_uid", "patient_id", "label_id", "score")
        told = {name: getattr(self, name) for name in names} | {"metrics": dict(self.metrics)}
        return told if math.isfinite(self.score) else {**told, "score": None}


@dataclass(frozen=True)
class Evaluation:
    """``summary`` is the mean of each metric over the cases that have it, ``missed_<structure>`` how many cases; ``cases`` are
    in the order of their files, ``worst`` the lowest scores first."""

    summary: Mapping[str, float]
    cases: tuple[CaseResult, ...]
    worst: tuple[CaseResult, ...]
    structures: tuple[str, ...]

    def page(self, viewer_url: str = "") -> str:
        """The worst cases as an HTML page that needs no other file; a case with a study UID links to it in the viewer."""
        blocks = "\n".join(_block(rank, case, self.structures, viewer_url) for rank, case in enumerate(self.worst, 1))
        head = f"<h1>The {len(self.worst)} worst of {len(self.cases)} validation cases</h1>"
        note = f"Dashed: the label. Solid: the prediction. Surface Dice at {TOLERANCE:g} mm. Not a medical device."
        opened = f"<!doctype html><html lang=en><meta charset=utf-8><title>Worst cases</title>{_STYLE}"
        return f"{opened}{head}<p>{note}</p>{blocks}</html>"


def evaluate(
    module: Any, samples: Iterable[Sample], plan: Plan, labels: LabelSet, *, total: int = 0, progress: Progress | None = None
) -> Evaluation:
    """Predict ``samples`` with ``module`` (its kept weights, in evaluation mode) and measure them on the prepared grid.

    Segmentation and vista3d: ``dice``, ``hd95`` (mm), ``surface_dice``, ``missed`` and ``fp_ml`` by structure (see
    ``training.metrics``), and of each the mean over structures. Classification: ``accuracy`` and ``auroc``, by structure too.
    """
    if plan.task == "classification":
        return _classification(module, samples, plan, total, progress)
    results: list[CaseResult] = []
    worst: list[tuple[CaseResult, Sample, torch.Tensor]] = []
    for done, sample in enumerate(samples, 1):
        found = predicted(module, sample)
        results.append(_segmented(sample, found, plan))
        if math.isfinite(results[-1].score):  # something is annotated
            worst = sorted([*worst, (results[-1], sample, found)], key=lambda entry: entry[0].score)[:WORST]
        if progress:
            progress(done, total)
    shown = []
    for result, sample, found in worst:
        figure = slices(sample, found, labels, plan.spacing, [worst_slice(found, sample.mask.cpu())])
        shown.append(replace(result, picture=as_data_uri(figure)))
    return Evaluation(_summary(results, plan), tuple(results), tuple(shown), plan.structures)


class Together:
    """The kept weights of a run as one module to ``evaluate``: its network with each of ``states`` in turn, by the mean of
    their probabilities, as the run's predictor answers."""

    def __init__(self, made: Any, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        from training.network import device

        self._made, self._states, self.plan = made.to(device()).eval(), states, made.plan
        made.net.load_state_dict(states[0])

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        on: torch.device = self._made.device
        return on

    def classes(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) → (B, D, H, W)."""
        if len(self._states) == 1:
            found: torch.Tensor = self._made.classes(image)
            return found
        return self._mean(self._made.probabilities, image).argmax(1)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) → (B, structures) probabilities of a classification."""
        return self._mean(self._made.scores, image)

    def _mean(self, answer: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        for state in self._states:
            self._made.net.load_state_dict(state)
            total = total + answer(image).float()
        return total / len(self._states)


def predicted(module: Any, sample: Sample) -> torch.Tensor:
    """(D, H, W) classes of a case, on the CPU."""
    from training.network import autocast

    with torch.inference_mode(), autocast(module.plan, module.device):
        found: torch.Tensor = module.classes(sample.normalised()[None].to(module.device))[0]
    return found.cpu()


def _segmented(sample: Sample, found: torch.Tensor, plan: Plan) -> CaseResult:
    mask, dices = sample.mask.cpu(), []
    metrics: dict[str, float] = {}
    for index, name in enumerate(plan.structures):
        if not bool(sample.annotated[index]):
            continue
        measured = structure_metrics(found == index + 1, mask == index + 1, plan.spacing)
        dices.append(measured["dice"])
        metrics |= {f"{metric}_{name}": value for metric, value in measured.items()}
    return _result(sample, sum(dices) / len(dices) if dices else math.nan, metrics)


def _result(sample: Sample, score: float, metrics: Mapping[str, float]) -> CaseResult:
    return CaseResult(sample.case, sample.study_uid, sample.patient_id, sample.label_id, score, metrics)


def _summary(results: Sequence[CaseResult], plan: Plan) -> dict[str, float]:
    """Means over the cases; cases in which nothing was annotated have no part in them."""
    summary: dict[str, float] = {}
    for metric in ("dice", "hd95", "surface_dice", "fp_ml"):
        means = {}
        for name in plan.structures:
            known = [r.metrics[f"{metric}_{name}"] for r in results if f"{metric}_{name}" in r.metrics]
            known = [value for value in known if math.isfinite(value)]
            if known:
                means[f"{metric}_{name}"] = sum(known) / len(known)
        if means:
            summary |= {metric: sum(means.values()) / len(means), **means}
    for name in plan.structures:
        asked = [r.metrics[f"missed_{name}"] for r in results if f"missed_{name}" in r.metrics]
        if asked:
            summary[f"missed_{name}"] = sum(asked)
    return summary


def _classification(module: Any, samples: Iterable[Sample], plan: Plan, total: int, progress: Progress | None) -> Evaluation:
    from training.network import autocast

    results, rows = [], []
    for done, sample in enumerate(samples, 1):
        with torch.inference_mode(), autocast(plan, module.device):
            said = module.scores(sample.normalised()[None].to(module.device))[0].float().cpu()
        present, annotated = sample.present.cpu(), sample.annotated.cpu()
        rows.append((said, present, annotated))
        right = torch.where(present, said, 1 - said)[annotated]
        metrics = {f"p_{name}": float(p) for name, p in zip(plan.structures, said, strict=True)}
        results.append(_result(sample, float(right.min()) if len(right) else math.nan, metrics))
        if progress:
            progress(done, total)
    worst = sorted((r for r in results if math.isfinite(r.score)), key=lambda r: r.score)[:WORST]
    return Evaluation(_class_summary(rows, plan), tuple(results), tuple(worst), plan.structures)


def _class_summary(rows: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], plan: Plan) -> dict[str, float]:
    from training.classification import measured

    answers = torch.stack([torch.stack([said, present.float(), known.float()]) for said, present, known in rows])
    found = {name.removeprefix("val_"): value for name, value in measured(answers, plan).items()}
    areas = [value for name, value in found.items() if name.startswith("auroc_")]
    found.pop("score", None)
    return found | ({"auroc": sum(areas) / len(areas)} if areas else {})


_STYLE = """<style>body{font:15px/1.45 system-ui,sans-serif;margin:2em;max-width:60em;color:#222;background:#fff}
article{border-top:1px solid #ddd;padding:1em 0;display:flex;gap:1.5em;flex-wrap:wrap}img{max-width:24em}
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}h2{margin:.2em 0}</style>"""


_COLUMNS = {"dice": "Dice", "hd95": "HD95 (mm)", "surface_dice": "surface Dice", "fp_ml": "false (ml)", "p": "probability"}


def _block(rank: int, case: CaseResult, structures: Sequence[str], viewer_url: str) -> str:
    name, link = html.escape(case.patient_id or case.case), ""
    if case.study_uid:
        address = html.escape(f"{viewer_url.rstrip('/')}/viewer?StudyInstanceUIDs={quote(case.study_uid)}", quote=True)
        link = f'<p><a href="{address}" target="_blank" rel="noopener">open the study in the viewer</a>'
    picture = f'<img alt="the worst slice of {name}" src="{case.picture}">' if case.picture else ""
    told = f"<h2>{rank}. {name}</h2><p>case {html.escape(case.case)}<br>mean {case.score:.3f}</p>"
    return f"<article><div>{told}{_table(case.metrics, structures)}{link}</div>{picture}</article>"


def _table(metrics: Mapping[str, float], structures: Sequence[str]) -> str:
    """A row a structure, a column a metric that any of them has."""
    shown = {key: title for key, title in _COLUMNS.items() if any(f"{key}_{name}" in metrics for name in structures)}
    rows = ["<tr><th>" + "".join(f"<th>{title}" for title in shown.values())]
    for name in structures:
        cells = [f"{metrics[f'{key}_{name}']:.3f}" if f"{key}_{name}" in metrics else "–" for key in shown]
        missed = " (missed)" if metrics.get(f"missed_{name}") else ""
        rows.append(f"<tr><td>{html.escape(name)}{missed}" + "".join(f"<td>{cell}" for cell in cells))
    return f"<table>{''.join(rows)}</table>"
