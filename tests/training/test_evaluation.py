"""Every validation case is measured once, and the worst are shown with a link to their study."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.plan import Plan
from datamodules.sample import Sample
from experiments.synthetic import LABEL_SET
from training.evaluation import Evaluation, Together, evaluate, predicted
from training.pictures import slices

PLAN = Plan(spacing=(2.0, 1.0, 1.0), structures=("liver", "spleen"), values=(1, 2), patch=(8, 16, 16))
CLASSES = Plan(
    spacing=(2.0, 1.0, 1.0), structures=("hip", "knee"), values=(1, 2), patch=(8, 16, 16), task="classification", exclusive=True
)


def sample(number: int, *, channels: int = 1, depth: int = 8, annotated: Sequence[bool] = (True, True)) -> Sample:
    """A case whose first channel is its label map with ``number`` rows of the liver taken away."""
    mask = torch.zeros(depth, 16, 16, dtype=torch.uint8)
    mask[:, 2:12, 2:8] = 1
    mask[:, 2:6, 10:14] = 2
    seen = mask.clone()
    seen[:, 2 : 2 + number, 2:8] = 0
    image = seen.to(torch.int16).repeat(channels, 1, 1, 1)
    plain = torch.tensor([[1.0, -9.0, 9.0, 0.0, 1.0]]).repeat(channels, 1)
    states = torch.tensor(annotated)
    told = {"study_uid": f"1.2.{number}", "patient_id": f"P{number}", "label_id": f"L{number}"}
    return Sample(
        f"case{number}", **told, image=image, intensity=plain, mask=mask, annotated=states, present=states, centres=mask[:0]
    )


class Seeing:
    """Predicts what is in the first channel."""

    device = torch.device("cpu")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def classes(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, 0].round().to(torch.uint8)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        share = (image == 1).float().mean((1, 2, 3, 4)) * 4
        return torch.stack([share, 1 - share], 1)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(Seeing(PLAN), [sample(n) for n in (3, 0, 7, 1, 9, 2, 5)], PLAN, LABEL_SET)


def test_the_summary_is_by_structure(evaluation: Evaluation) -> None:
    dices = [2 * (10 - n) / (20 - n) for n in (3, 0, 7, 1, 9, 2, 5)]
    assert evaluation.summary["dice_liver"] == pytest.approx(np.mean(dices))
    assert evaluation.summary["dice_spleen"] == 1.0
    assert evaluation.summary["dice"] == pytest.approx((np.mean(dices) + 1) / 2)
    assert evaluation.summary["hd95_liver"] > 0
    assert evaluation.summary["missed_liver"] == 0
    assert [case.case for case in evaluation.cases] == ["case3", "case0", "case7", "case1", "case9", "case2", "case5"]


def test_the_worst_five_are_shown_with_links(evaluation: Evaluation) -> None:
    page = evaluation.page("https://viewer.example/")
    links = [f'href="https://viewer.example/viewer?StudyInstanceUIDs=1.2.{n}"' for n in (9, 7, 5, 3, 2)]
    places = [page.index(link) for link in links]
    assert places == sorted(places)
    assert "1.2.1" not in page
    assert page.count("data:image/png;base64,") == 5
    assert 'href="/viewer?StudyInstanceUIDs=1.2.9"' in evaluation.page()


def test_what_is_not_annotated_is_not_measured() -> None:
    found = evaluate(Seeing(PLAN), [sample(4, annotated=(False, True)), sample(1, annotated=(False, False))], PLAN, LABEL_SET)
    assert "dice_liver" not in found.summary
    assert found.summary["dice"] == 1.0
    assert math.isnan(found.cases[1].score)


def test_names_are_not_taken_for_html() -> None:
    from dataclasses import replace

    page = evaluate(Seeing(PLAN), [replace(sample(1), patient_id="<b>O'Neil</b>")], PLAN, LABEL_SET).page()
    assert "<b>O" not in page


def test_classes_are_measured_and_the_least_sure_named() -> None:
    found = evaluate(
        Seeing(CLASSES), [sample(n, annotated=a) for n, a in ((0, (True, False)), (9, (True, False)))], CLASSES, LABEL_SET
    )
    assert found.summary["accuracy"] == 0.5
    assert [case.case for case in found.worst] == ["case9", "case0"]
    assert "<img" not in found.page()


@pytest.mark.parametrize(("channels", "depth", "panels"), [(1, 8, 3), (3, 8, 6), (1, 1, 1)])
def test_a_picture_has_a_panel_a_slice_and_channel(channels: int, depth: int, panels: int) -> None:
    case = sample(2, channels=channels, depth=depth)
    assert len(slices(case, case.mask, LABEL_SET, PLAN.spacing).axes) == panels


class Weighted(nn.Module):
    """A network whose one weight is the probability of the liver."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(0.5))


class Sure:
    """A module around it."""

    device, plan = torch.device("cpu"), PLAN

    def __init__(self) -> None:
        self.net = Weighted()

    def to(self, _: torch.device) -> "Sure":
        return self

    def eval(self) -> "Sure":
        return self

    def probabilities(self, image: torch.Tensor) -> torch.Tensor:
        p = self.net.p.detach().expand(1, 1, *image.shape[2:])
        return torch.cat([1 - p, p, 0 * p], 1)

    def classes(self, image: torch.Tensor) -> torch.Tensor:
        return self.probabilities(image).argmax(1)


def test_an_ensemble_is_evaluated_as_it_answers() -> None:
    states = [{"p": torch.tensor(p)} for p in (0.4, 0.9)]
    case, none, liver = sample(0), torch.zeros(8, 16, 16), torch.ones(8, 16, 16)
    assert torch.equal(predicted(Together(Sure(), states[:1]), case), none.long())
    assert torch.equal(predicted(Together(Sure(), states), case), liver.long())


def test_a_case_of_which_nothing_is_said_is_not_among_the_worst() -> None:
    found = evaluate(Seeing(PLAN), [sample(1), sample(3, annotated=(False, False))], PLAN, LABEL_SET)
    assert [case.case for case in found.worst] == ["case1"]
    assert found.cases[1].as_json()["score"] is None
