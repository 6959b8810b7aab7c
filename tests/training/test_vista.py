"""VISTA3D's network, prompts and weights, small: patches of 32³ and 8 features, random weights."""

import random
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from monai.networks.nets.vista3d import vista3d132
from torch.utils.data import DataLoader

from datamodules.plan import Plan
from datamodules.sample import normalised
from training.download import sha256_of
from training.errors import TrainingError
from training.module import Batch
from training.modules import module
from training.network import network
from training.sizing import suited
from training.vista import Vista3DModule, prompted_loss
from training.vista_classes import CLASSES, class_indices
from training.vista_net import NOT_A_POINT, Vista3D
from training.vista_prompts import Clicks, drawn, prompting, with_next

pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_lightning")  # its advice on workers and devices
BASE = {
    "task": "vista3d",
    "network": "VISTA3D",
    "network_args": {"embed": 8},
    "spacing": (2.0, 2.0, 2.0),
    "structures": ("Liver", "wart", "left_kidney"),
    "values": (1, 2, 3),
    "patch": (32, 32, 32),
    "learning_rate": 5e-3,
}


def plan(**changes: object) -> Plan:
    return Plan.from_dict({**BASE, **changes})


def batch(size: int = 32, *, annotated: tuple[bool, bool, bool] = (True, True, True)) -> Batch:
    """A bright block (structure 1) and a dark one (2); structure 3 is absent."""
    mask = torch.zeros(1, size, size, size, dtype=torch.uint8)
    mask[:, 6:18, 5:20, 8:22] = 1
    mask[:, 22:30, 20:30, 3:13] = 2
    image = torch.tensor([0.0, 2.0, -2.0])[mask.long()][:, None]
    image += 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([annotated])
    return {"image": image, "mask": mask, "annotated": known, "present": known, "counted": torch.tensor([True])}


@pytest.fixture(scope="module")
def net() -> Vista3D:
    torch.manual_seed(0)
    return Vista3D(plan()).eval()


def test_the_table_is_the_published_one_without_what_it_does_not_support() -> None:
    some = {"liver": 1, "bladder": 15, "lung": 20, "vertebrae L5": 33, "vertebrae T12": 38, "vertebrae C1": 56, "airway": 132}
    ribs = {"left rib 1": 63, "left rib 12": 74, "right rib 1": 75, "right rib 12": 86, "vertebrae S1": 127}
    assert {**CLASSES, **some, **ribs} == CLASSES
    assert sorted(CLASSES.values()) == sorted(set(range(1, 133)) - {16, 18, 129, 130, 131})


def test_structures_get_their_own_index_or_a_free_one() -> None:
    assert class_indices(plan()) == (1, 133, 14)
    assert class_indices(plan(network_args={"classes": {"Liver": 133}})) == (133, 134, 14)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"classes": {"wart": 1}}, "Liver, wart are all class 1"),
        ({"classes": {"wart": 512}}, "wart is 512"),
        ({"classes": {"unicorn": 3}}, "unicorn"),
        ({"strides": [2]}, "strides"),
        ({"freeze": "all"}, "freeze"),
        ({"embed": 6}, "embed"),
    ],
)
def test_arguments_that_do_not_fit_are_named(args: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        network(plan(network_args=args))


@pytest.mark.parametrize("patch", [(1, 32, 32), (24, 32, 32), (16, 16, 16)])
def test_a_patch_that_it_cannot_take_is_refused(patch: tuple[int, int, int]) -> None:
    with pytest.raises(TrainingError, match="patch"):
        network(plan(patch=patch))


def test_a_plan_that_leaves_it_open_gets_what_vista3d_takes() -> None:
    start = Plan.from_dict({**{k: v for k, v in BASE.items() if not k.startswith("network")}, "patch": (24, 96, 8)})
    small, large = (suited(start, torch.device(on), {"learning_rate"}) for on in ("cpu", "cuda"))
    assert (small.patch, large.patch) == ((32, 96, 32), (32, 128, 32))
    assert (small.network, small.network_args, small.learning_rate) == ("VISTA3D", {}, 5e-3)
    assert suited(plan(), torch.device("cpu"), {"patch", "network_args"}).network_args == {"embed": 8}


def test_it_answers_as_monais_network_on_an_image_turned_as_that_was_trained(net: Vista3D) -> None:
    monais = vista3d132(8, 1).eval()
    monais.load_state_dict(net.state_dict())
    image = torch.randn(1, 1, 32, 48, 32)
    turned = image[:, :, :, ::1].permute(0, 1, 4, 3, 2).flip(2, 3)  # (H, P, L) → (R, A, S)
    point, (z, y, x) = torch.tensor([[[5, 40, 9]]]), (5, 40, 9)
    with torch.no_grad():
        by_class = monais(turned, class_vector=net.indices)[:, 0].flip(1, 2).permute(0, 3, 2, 1)
        at = {"point_coords": torch.tensor([[[31 - x, 47 - y, z]]]), "point_labels": torch.tensor([[1]])}
        by_click = monais(turned, prompt_class=net.indices[1:2], **at)[:, 0].flip(1, 2).permute(0, 3, 2, 1)
        ours = net(image)
        clicked = net.by_clicks(net.encode(image), [1], point, torch.tensor([[1]]))
    assert ours.shape == (1, 4, 32, 48, 32)
    assert torch.equal(ours[:, 0], torch.zeros_like(ours[:, 0]))
    assert torch.allclose(ours[0, 1:], by_class, atol=1e-4)
    assert torch.allclose(clicked[:, 0], by_click, atol=1e-4)


def test_ct_comes_to_the_network_as_it_was_trained() -> None:
    made = plan(normalization=("ct",), intensities=((-963.8247715525971, 1053.678477684517, 50.0, 200.0),))
    image = torch.tensor([-2000.0, -963.8247715525971, 1053.678477684517]).view(1, 1, 1, 3)
    seen = normalised(image, torch.tensor([[1.0, *made.intensities[0]]]))
    inside = Vista3D(made)
    assert torch.allclose((seen * inside.scale + inside.shift).flatten(), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)


def test_only_what_is_annotated_is_asked_for(net: Vista3D) -> None:
    some = batch(annotated=(False, True, True))
    for key in range(30):
        with drawn(key):
            asked = prompting(some["mask"][0], some["annotated"][0])
        assert asked is not None and set(asked.structures) <= {1, 2} and asked.clicks is not None
        assert len(asked.clicks.points) == 1  # the third is absent: asked for by class, and answered with nothing
        assert asked.truth.sum((1, 2, 3, 4)).tolist() == [(some["mask"] == 2).sum(), 0][: len(asked.structures)]
    assert prompting(some["mask"][0], torch.zeros(3, dtype=torch.bool)) is None
    net.zero_grad()
    prompted_loss(net, some, (0,)).backward()
    grown = net.class_head.class_embeddings.weight.grad.abs().sum(1)
    assert grown[class_indices(plan())[0]] == 0 and grown[class_indices(plan())[1]] > 0


def test_clicks_lie_where_they_say() -> None:
    mask = batch()["mask"][0]
    outside = 0
    for key in range(20):
        with drawn(key):
            asked = prompting(mask, torch.tensor([True, True, True]))
        assert asked is not None and asked.clicks is not None
        for structure, points, signs in zip(asked.structures, asked.clicks.points, asked.clicks.inside, strict=False):
            for (z, y, x), sign in zip(points.tolist(), signs.tolist(), strict=True):
                assert sign == NOT_A_POINT or (mask[z, y, x] == structure + 1) == bool(sign)
            outside += int((signs == 0).sum())
    assert outside > 0


def test_draws_follow_from_the_key_alone() -> None:
    def draw(key: int) -> list[int]:
        with drawn(key):
            asked = prompting(batch()["mask"][0], torch.tensor([True, True, True]))
        assert asked is not None and asked.clicks is not None
        return [*asked.structures, *asked.clicks.points.flatten().tolist()]

    before = random.getstate()
    first = draw(1)
    random.random()
    after = random.getstate()
    assert draw(1) == first != draw(2)
    assert random.getstate() == after != before


def test_the_next_click_lies_in_the_larger_error() -> None:
    truth = torch.zeros(2, 1, 16, 16, 16)
    truth[:, :, 4:12, 4:12, 4:12] = 1
    logits = torch.where(truth > 0, 1.0, -1.0)
    logits[0, :, 4:9] = -1  # half of it is missed
    before = Clicks(torch.zeros(2, 1, 3, dtype=torch.long), torch.ones(2, 1, dtype=torch.long))
    after = with_next(before, logits, truth)
    z, y, x = after.points[0, 1].tolist()
    assert after.inside.tolist() == [[1, 1], [1, NOT_A_POINT]]  # the second has no error
    assert 4 < z < 8 and 4 < y < 11 and 4 < x < 11  # not at its border
    logits[0, :, :3] = 1  # more is too much
    assert with_next(before, logits, truth).inside[0].tolist() == [1, 0]


def test_every_parameter_that_learns_has_a_gradient_whatever_is_prompted(net: Vista3D) -> None:
    net.zero_grad()
    prompted_loss(net, batch(annotated=(False, False, False)), (0,)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_a_frozen_encoder_stays() -> None:
    frozen = Vista3D(plan(network_args={"embed": 8, "freeze": "encoder"}))
    prompted_loss(frozen, batch(), (0,)).backward()
    assert all(parameter.grad is None for parameter in frozen.image_encoder.encoder.parameters())
    assert frozen.image_encoder.up_layers_auto[0]["head"] is not None


def test_steps_on_one_sample_lower_its_loss_and_are_logged() -> None:
    tuned = module(plan(steps=6, validate_every=6))
    assert isinstance(tuned, Vista3DModule)
    sample = batch()
    with torch.no_grad():
        before = prompted_loss(tuned.net, sample, (7,))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=6, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(tuned, DataLoader([sample] * 6, batch_size=None), DataLoader([sample], batch_size=None))
    with torch.no_grad():
        assert prompted_loss(tuned.net, sample, (7,)) < 0.8 * before
    logged = trainer.callback_metrics
    assert {"train_loss", "val_loss", "val_dice", "val_score", "val_dice_Liver", "val_dice_left_kidney"} <= set(logged)
    assert tuned.classes(sample["image"]).shape == sample["mask"].shape


def test_published_weights_go_in_and_come_out(tmp_path: Path) -> None:
    published = vista3d132(8, 1)
    torch.save(published.state_dict(), tmp_path / "model.pt")
    tuned = module(plan(), weights=tmp_path / "model.pt").net
    assert all(torch.equal(tuned.state_dict()[name], tensor) for name, tensor in published.state_dict().items())
    torch.save({"model": tuned.state_dict()}, tmp_path / "again.pt")
    module(plan(network_args={"embed": 8, "weights_sha256": sha256_of(tmp_path / "again.pt")}), weights=tmp_path / "again.pt")
    with pytest.raises(TrainingError, match="not the weights that the plan names"):
        module(plan(network_args={"embed": 8, "weights_sha256": "00"}), weights=tmp_path / "again.pt")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path, state = tmp_path / "model.pt", vista3d132(8, 1).state_dict()
    refused = [
        ({**state, "extra.weight": torch.ones(1)}, "unknown: extra.weight"),
        ({k: v for k, v in state.items() if "conv_init" not in k}, "missing: image_encoder.encoder.conv_init.weight"),
        (vista3d132(8, 2).state_dict(), "another shape: image_encoder.encoder.conv_init.weight is"),
        ([1, 2], "no state dict"),
    ]
    for stored, said in refused:
        torch.save(stored, path)
        with pytest.raises(TrainingError, match=said):
            module(plan(), weights=path)
    path.write_bytes(b"not torch's")
    with pytest.raises(TrainingError, match="cannot be read as weights"):
        module(plan(), weights=path)
    torch.save({k: v for k, v in state.items() if k.startswith("image_encoder")}, path)
    module(plan(), weights=path)  # an encoder alone
