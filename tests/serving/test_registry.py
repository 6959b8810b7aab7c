"""Registering, judging, promoting and rolling back on a real MLflow server."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from serving.errors import ServingError
from serving.gate import evaluate
from serving.registry import ALIAS, ARTIFACT, ROLLED_BACK, Registry

pytestmark = pytest.mark.slow


def gate(world: Any, model: str, version: str) -> Any:
    return evaluate(world.archive, replace(world.project, model=model), world.registry, version)


def test_a_run_has_one_version(world: Any) -> None:
    first = world.registry.register(world.trained, model="once", home=world.archive.home)
    assert world.registry.register(world.trained, model="once") == first == "1"
    stored = mlflow.MlflowClient(world.registry.tracking_uri).get_model_version("once", "1")
    assert stored.run_id == world.trained


def test_the_logged_model_carries_the_rooms_and_its_run(world: Any) -> None:
    folder = world.registry.fetch("once", world.registry.register(world.trained, model="once"), world.archive.home / "models")
    assert sorted(path.name for path in (folder / "code").iterdir()) == ["catalog", "datamodules", "serving", "training"]
    assert not list(folder.rglob("__pycache__"))
    assert {"plan.json", "label_set.json", "label_ids.json", "weights.pt"} <= {
        p.name for p in (folder / "artifacts/run").iterdir()
    }


def test_a_run_that_did_not_finish_is_refused(world: Any) -> None:
    killed = world.run("killed", tiny_net(), status="KILLED")
    with pytest.raises(ServingError, match="KILLED"):
        world.registry.register(killed, model="once")


def tiny_net() -> Any:
    from datamodules.plan import Plan
    from training.network import network

    return network(Plan((2.0,) * 3, ("ball",), (3,), (16,) * 3))


def test_the_champion_moves_with_evidence_and_back(world: Any) -> None:
    registry, model = world.registry, "moves"
    assert registry.champion(model) is None
    weak = registry.register(world.untrained, model=model)
    first = gate(world, model, weak)
    assert first.verdict == "champion"
    assert first.patients == 5
    assert not first.unproven
    assert registry.promote(model, weak, first)
    strong = registry.register(world.trained, model=model)
    second = gate(world, model, strong)
    assert second.champion == weak
    assert second.comparisons[0].lower > 0
    assert second.means[strong] > 0.8
    assert registry.evidence(model, strong) == second
    assert registry.promote(model, strong)
    assert registry.promote(model, strong)
    assert gate(world, model, strong) == second
    assert registry.champion(model) == registry.best(model) == strong
    assert registry.rollback(model) == weak == registry.champion(model)
    assert registry.best(model) == weak
    client = mlflow.MlflowClient(registry.tracking_uri)
    client.set_registered_model_alias(model, ALIAS, strong)
    with pytest.raises(ServingError, match="by hand to version 2, which was rolled back"):
        registry.champion(model)
    client.set_registered_model_alias(model, ALIAS, weak)
    with pytest.raises(ServingError, match="no previous champion"):
        registry.rollback(model)


def test_a_rollback_that_was_killed_is_finished_by_the_next(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, model = Registry(world.registry.tracking_uri), "killed rollback"
    weak, strong = (registry.register(run, model=model) for run in (world.untrained, world.trained))
    for version in (weak, strong):
        assert registry.promote(model, version, gate(world, model, version))
    tag = registry._client.set_model_version_tag
    monkeypatch.setattr(registry._client, "set_model_version_tag", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        registry.rollback(model)
    assert registry.champion(model) == weak
    monkeypatch.setattr(registry._client, "set_model_version_tag", tag)
    assert registry.rollback(model) == weak == registry.champion(model)
    assert ROLLED_BACK in registry._client.get_model_version(model, strong).tags


def test_a_quote_in_a_models_name_is_no_filter(world: Any) -> None:
    for model in ("children's", 'the "best"'):
        version = world.registry.register(world.trained, model=model)
        assert world.registry.register(world.trained, model=model) == version
        assert world.registry.best(model) is None


def test_a_worse_candidate_stays_where_it_is(world: Any) -> None:
    registry, model = world.registry, "stays"
    strong = registry.register(world.trained, model=model)
    registry.promote(model, strong, gate(world, model, strong))
    weak = registry.register(world.untrained, model=model)
    evidence = gate(world, model, weak)
    assert evidence.verdict == "rejected"
    assert not registry.promote(model, weak, evidence)
    assert registry.champion(model) == strong
    tags = mlflow.MlflowClient(registry.tracking_uri).get_model_version(model, weak).tags
    assert tags["voxloop.verdict"] == "rejected"
    assert "Not shown to be as good" in tags["voxloop.reason"]


def test_an_alias_moved_by_hand_is_refused(world: Any) -> None:
    registry, model = world.registry, "by-hand"
    version = registry.register(world.trained, model=model)
    mlflow.MlflowClient(registry.tracking_uri).set_registered_model_alias(model, ALIAS, version)
    with pytest.raises(ServingError, match="moved by hand to version 1"):
        registry.champion(model)
    with pytest.raises(ServingError, match="no matching evidence"):
        registry.promote(model, version)
    assert gate(world, f"{model} judged", registry.register(world.trained, model=f"{model} judged")).verdict == "champion"
    mlflow.MlflowClient(registry.tracking_uri).set_registered_model_alias(f"{model} judged", ALIAS, version)
    with pytest.raises(ServingError, match="never promoted"):
        registry.champion(f"{model} judged")


def test_changed_or_stale_evidence_is_refused(world: Any) -> None:
    registry, model = world.registry, "stale"
    client = mlflow.MlflowClient(registry.tracking_uri)
    weak, strong = (registry.register(run, model=model) for run in (world.untrained, world.trained))
    before = gate(world, model, weak)
    registry.promote(model, strong, gate(world, model, strong))
    with pytest.raises(ServingError, match="champion is now 2"):
        registry.promote(model, weak, before)
    kept = client.get_model_version(model, weak).tags[ARTIFACT]
    client.log_dict(world.untrained, {**before.to_dict(), "patients": 99}, kept)
    with pytest.raises(ServingError, match=f"evidence was changed.*voxloop gate PROJECT {weak}"):
        registry.promote(model, weak)
    assert gate(world, model, weak).patients == 5
    client.log_text(world.untrained, "{", client.get_model_version(model, weak).tags[ARTIFACT])
    assert gate(world, model, weak) == registry.evidence(model, weak)


def test_evidence_is_recorded_whole_or_not_at_all(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, model = Registry(world.registry.tracking_uri), "interrupted"
    version = registry.register(world.trained, model=model)
    before = gate(world, model, version)
    tag, calls = registry._client.set_model_version_tag, 6
    for survived in range(calls):
        left = iter([tag] * survived)
        monkeypatch.setattr(registry._client, "set_model_version_tag", lambda *given, left=left: next(left)(*given))
        with pytest.raises(StopIteration):
            registry.record(replace(before, reason=f"stopped after {survived}"))
        assert registry.evidence(model, version) == before
    monkeypatch.setattr(registry._client, "set_model_version_tag", tag)
    registry.record(replace(before, reason="done"))
    assert registry.evidence(model, version) == replace(before, reason="done")


def test_an_unreachable_registry_is_one_line() -> None:
    mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    try:
        with pytest.raises(ServingError) as refused:
            Registry("http://127.0.0.1:9").champion("any")
    finally:
        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
    assert "\n" not in str(refused.value)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'm.db'}")
    registry._client.get_model_version = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(ServingError, match=r"No space left.*free some space"):
        registry.evidence("any", "1")
