"""Classification: it learns what labels say is present, measures it, and answers for a volume."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import distributed, multiprocessing
from torch.utils.data import DataLoader

from datamodules.plan import Plan
from training.classification import ClassificationModule, ClassificationPredictor
from training.errors import TrainingError
from training.module import Batch
from training.modules import module

pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_lightning")  # its advice on workers and devices
BASE = {"spacing": (2.0, 1.0, 1.0), "structures": ("bright", "striped"), "values": (1, 2), "task": "classification"}
RESNET = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 8, 8, 8]}


def plan(**changes: object) -> Plan:
    given = {**BASE, "network": "ResNet", "network_args": RESNET, "patch": (8, 16, 16), "steps": 25, "learning_rate": 0.01}
    return Plan.from_dict({**given, **changes})


def cases(shape: tuple[int, int, int], present: list[list[bool]], seed: int = 0) -> Batch:
    image = torch.randn(len(present), 1, *shape, generator=torch.Generator().manual_seed(seed)) / 2
    for one, (bright, striped) in zip(image, present, strict=True):
        one += 2.0 * bright
        one[..., ::2] += 3.0 * striped
    known = torch.ones(len(present), 2, dtype=torch.bool)
    return {"image": image, "present": torch.tensor(present), "annotated": known, "counted": torch.tensor([True])}


def trainer(steps: int = 1) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_steps=steps, num_sanity_val_steps=0, **quiet)


def loader(batches: list[Batch]) -> DataLoader[Batch]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


ANY = [[False, False], [True, False], [False, True], [True, True]] * 2
ONE = [[True, False], [False, True]] * 4


@pytest.mark.parametrize("patch", [(8, 16, 16), (1, 16, 16)])
@pytest.mark.parametrize("exclusive", [True, False])
def test_it_learns_to_tell_images_apart(patch: tuple[int, int, int], exclusive: bool) -> None:
    learner = module(plan(patch=patch, exclusive=exclusive))
    present = ONE if exclusive else ANY
    larger = (patch[0], 20, 15)
    validation = [cases(larger, [answer], seed=9 + n) for n, answer in enumerate(present)]
    run = trainer(25)
    run.fit(learner, loader([cases(patch, present, seed=n % 5) for n in range(25)]), loader(validation))
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    each = {f"val_{kind}_{name}" for kind in ("auroc", "accuracy") for name in ("bright", "striped")}
    assert set(logged) == {"train_loss", "val_loss", "val_accuracy", "val_score"} | each
    assert logged["val_score"] == (logged["val_auroc_bright"] + logged["val_auroc_striped"]) / 2 > 0.95
    assert logged["val_accuracy"] > 0.8


class Echo(torch.nn.Module):
    """Logits from the image's first voxels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, 0, 0, 0, :2]


def said(logits: list[float], present: list[bool], *, known: tuple[bool, bool] = (True, True), counted: bool = True) -> Batch:
    image = torch.zeros(1, 1, 8, 16, 16)
    image[..., 0, 0, :2] = torch.tensor(logits)
    return {
        "image": image,
        "present": torch.tensor([present]),
        "annotated": torch.tensor([known]),
        "counted": torch.tensor([counted]),
    }


def test_measures_are_over_what_is_known_and_counted() -> None:
    learner = ClassificationModule(plan(), make=lambda _: Echo())
    batches = [
        said([2, -1], [True, False]),
        said([1, -2], [False, False]),
        said([3, 9], [True, False], known=(True, False)),
        said([-9, 9], [True, False], counted=False),
    ]
    measured = trainer().validate(learner, loader(batches), verbose=False)[0]
    assert measured["val_accuracy_bright"] == pytest.approx(2 / 3)
    assert measured["val_accuracy_striped"] == 1
    assert measured["val_auroc_bright"] == measured["val_score"] == 1
    assert "val_auroc_striped" not in measured  # nobody has it
    only_yes = trainer().validate(learner, loader(batches[:1]), verbose=False)[0]
    assert only_yes["val_score"] == only_yes["val_accuracy"] == 1


def test_exclusive_accuracy_is_the_share_of_cases_answered_rightly() -> None:
    learner = ClassificationModule(plan(exclusive=True), make=lambda _: Echo())
    batches = [said([2, 1], [True, False]), said([2, 1], [False, True]), said([0, 1], [False, True])]
    assert trainer().validate(learner, loader(batches), verbose=False)[0]["val_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_is_not_annotated_teaches_nothing(exclusive: bool) -> None:
    learner = ClassificationModule(plan(exclusive=exclusive), make=lambda _: Echo())
    right, wrong = (learner.loss(said([2, 1], [False, striped], known=(True, False))) for striped in (True, False))
    assert right == wrong
    assert learner.loss(said([2, 1], [True, True], known=(False, False))) == 0


def test_exclusive_learns_from_one_absence_that_it_is_the_other() -> None:
    learner = ClassificationModule(plan(exclusive=True), make=lambda _: Echo())
    absent = learner.loss(said([2, 1], [False, False], known=(True, False)))
    assert absent == learner.loss(said([2, 1], [False, True]))
    assert learner.loss(said([2, 1], [False, False])) == 0  # nothing can be there: a contradiction teaches nothing


def test_a_predictor_gives_the_mean_of_its_networks_probabilities() -> None:
    array = np.zeros((8, 16, 16), np.float32)
    array[0, 0, 0] = 50
    image = hd.Volume(
        array, np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]), coordinate_system="PATIENT"
    )

    class Sure(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[30.0, -30.0]])

    class Unsure(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape == (1, 1, 8, 16, 16)
            return torch.zeros(1, 2)

    answer = ClassificationPredictor([Sure(), Unsure()], plan()).predict(image)
    assert answer == {"bright": pytest.approx(0.75), "striped": pytest.approx(0.25)}


def share(rank: int, store: str, found: Path) -> None:
    """A process's gradient of every other case, averaged as DDP does."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    together = torch.stack(learned(slice(rank, None, 2))) / 2
    distributed.all_reduce(together)
    if rank == 0:
        torch.save(together, found)
    distributed.destroy_process_group()


def learned(which: slice) -> list[torch.Tensor]:
    """Loss and gradient of some of four cases that are unevenly annotated."""
    batch = {name: value[which] for name, value in cases((8, 16, 16), ANY[:4]).items() if name != "counted"}
    batch["annotated"] = torch.tensor([[True, True], [True, False], [True, True], [False, False]])[which]
    learner = ClassificationModule(plan(), make=lambda _: Echo())
    weight = torch.ones((), requires_grad=True)
    loss = learner.loss({**batch, "image": batch["image"] * weight})
    loss.backward()
    assert weight.grad is not None
    return [loss.detach(), weight.grad]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(share, (str(tmp_path / "store"), tmp_path / "found.pt"), nprocs=2)
    assert torch.allclose(torch.load(tmp_path / "found.pt"), torch.stack(learned(slice(None))), atol=1e-6)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    begun = module(plan(seed=1))
    torch.save(begun.net.state_dict(), path)
    again = module(plan(seed=2), weights=path)
    assert all(torch.equal(a, b) for a, b in zip(begun.net.parameters(), again.net.parameters(), strict=True))
    with pytest.raises(TrainingError, match="does not fit resnet10"):
        module(plan(network="resnet10", network_args={}), weights=path)
