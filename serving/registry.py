"""Versions of a model in MLflow's registry: made from runs, promoted with evidence, rolled back.

The alias ``champion`` says which version is served. It is moved only by ``promote`` and ``rollback``; a version that it names
without having been promoted, or that was rolled back, was put there by hand and is refused (``champion``). Every step may be
repeated: a run has one version, evidence and promotion are written over by the same values, what a killed rollback began is
finished by the next.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from serving.errors import ServingError
from serving.gate import Evidence

__all__ = ["ALIAS", "Registry", "fetched"]

ALIAS = "champion"
VERDICT, ARTIFACT = "voxloop.verdict", "voxloop.evidence"
PREVIOUS, ROLLED_BACK, PROMOTED = "voxloop.previous_champion", "voxloop.rolled_back", "voxloop.promoted"
HOLDOUT_DICE = "voxloop.holdout_dice"
JUDGE = "voxloop gate PROJECT {}"  # of a version
NAMED = "registered_model_meta"  # the file that MLflow adds to what it downloads from a registry

P = ParamSpec("P")
R = TypeVar("R")


def _said(call: Callable[P, R]) -> Callable[P, R]:
    """MLflow's exceptions, and those of files and connections, as ServingError: one line, with what to do."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        from mlflow.exceptions import MlflowException

        try:
            return call(*args, **kwargs)
        except (MlflowException, OSError) as problem:
            line = str(problem).partition("\n")[0]
            remedy = (
                "free some space, then repeat" if "No space left" in line else "is the MLflow server up, are the names right?"
            )
            raise ServingError(line, about="registry", remedy=remedy) from problem

    return guarded


class Registry:
    """The registry of one MLflow server. Cheap to make; safe in any process."""

    @_said
    def __init__(self, tracking_uri: str) -> None:
        from mlflow import MlflowClient
        from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
        self.tracking_uri = tracking_uri
        self._client = MlflowClient(tracking_uri, tracking_uri)

    @_said
    def register(self, run_id: str, *, model: str, home: str | Path = "", index_url: str | None = None) -> str:
        """The version of ``model`` made from a finished run: our pyfunc with the run's weights, plan and label set; the same
        run gives the same version. ``home`` and ``index_url`` say where it looks up a series unless told otherwise; of the
        labels in ``home`` the model keeps the digest."""
        from serving.model import log_model

        versions = [int(version.version) for version in self._versions(model) if version.run_id == run_id]
        if versions:
            return str(min(versions))
        run = self._client.get_run(run_id)
        if run.info.status != "FINISHED":
            raise ServingError(f"the run is {run.info.status}", about=f"run {run_id}", remedy="register a run that finished")
        logged = log_model(self.tracking_uri, run, home=str(home), index_url=index_url or "")
        self._ensure(model)
        return str(
            self._client.create_model_version(model, f"models:/{logged}", run_id, model_id=logged, await_creation_for=0).version
        )

    @_said
    def champion(self, model: str) -> str | None:
        """The version that is to be served; None before the first promotion. ServingError if put there by hand."""
        version = self._aliased(model)
        if version is not None and not _promoted(version):
            said = "which was rolled back" if ROLLED_BACK in version.tags else "which was never promoted"
            raise ServingError(
                f"alias {ALIAS} was moved by hand to version {version.version}, {said}",
                about=f"model {model}",
                remedy=f"voxloop promote {model} {version.version}, or move the alias back",
            )
        return None if version is None else str(version.version)

    @_said
    def best(self, model: str) -> str | None:
        """The version with the highest holdout Dice of those ever promoted and not rolled back."""
        ever = [(float(v.tags[HOLDOUT_DICE]), int(v.version)) for v in self._versions(model) if _promoted(v)]
        return str(max(ever)[1]) if ever else None

    @_said
    def record(self, evidence: Evidence) -> None:
        """Keep the gate's evidence: a JSON artifact of the candidate's run, named by its digest; its Dice as the run's metrics;
        tags on its version. The last tag names the artifact: until then the evidence before counts."""
        version = self._client.get_model_version(evidence.model, evidence.candidate)
        path = f"gate/{evidence.digest}.json"
        self._client.log_dict(version.run_id, evidence.to_dict(), path)
        for name, dice in evidence.structures.items():
            self._client.log_metric(version.run_id, f"holdout_dice_{name}", dice)
        if evidence.candidate in evidence.means:
            self._client.log_metric(version.run_id, "holdout_dice", evidence.means[evidence.candidate])
        tags = {
            HOLDOUT_DICE: f"{evidence.means.get(evidence.candidate, 0.0):.6f}",
            "voxloop.unproven": str(evidence.unproven).lower(),
            "voxloop.holdout_patients": str(evidence.patients),
            "voxloop.reason": evidence.reason,
            VERDICT: evidence.verdict,
            ARTIFACT: path,
        }
        for key, value in tags.items():
            self._client.set_model_version_tag(evidence.model, evidence.candidate, key, value)

    @_said
    def evidence(self, model: str, version: str) -> Evidence | None:
        """The evidence kept with a version; None where it was never judged. ServingError where it was changed since."""
        stored = self._client.get_model_version(model, version)
        if ARTIFACT not in stored.tags:
            return None
        with tempfile.TemporaryDirectory() as scratch, suppress(ValueError, TypeError, KeyError):
            path = Path(self._client.download_artifacts(stored.run_id, stored.tags[ARTIFACT], scratch))
            evidence = Evidence.from_dict(json.loads(path.read_text()))
            if (evidence.digest, evidence.model, evidence.candidate) == (path.stem, model, version):
                return evidence
        raise ServingError("its evidence was changed", about=f"{model} version {version}", remedy=JUDGE.format(version))

    @_said
    def promote(self, model: str, version: str, evidence: Evidence | None = None) -> bool:
        """Move the alias to ``version`` if its recorded evidence says so; whether it is the champion now. ServingError where
        there is none, it is not ``evidence``, or it was gathered against another champion than the present one."""
        recorded = self.evidence(model, version)
        about = f"{model} version {version}"
        if recorded is None or (evidence is not None and evidence.digest != recorded.digest):
            raise ServingError("no matching evidence is recorded", about=about, remedy=JUDGE.format(version))
        if recorded.verdict != "champion":
            return False
        current = self._aliased(model)
        if current is not None and str(current.version) == version:
            return True
        if (None if current is None else str(current.version)) not in (recorded.champion, None):
            raise ServingError(
                f"was judged against champion {recorded.champion}, the champion is now {current and current.version}",
                about=about,
                remedy=JUDGE.format(version),
            )
        self._client.delete_model_version_tag(model, version, ROLLED_BACK)
        self._client.set_model_version_tag(model, version, PREVIOUS, recorded.champion or "")
        self._client.set_model_version_tag(model, version, PROMOTED, _now())
        self._client.set_registered_model_alias(model, ALIAS, version)
        return True

    @_said
    def rollback(self, model: str) -> str:
        """Put the previous champion back and return its version; the one taken down is tagged and stays."""
        current = self._aliased(model)
        if current is not None and (taken := self._left(model, current)) is not None:
            self._client.set_model_version_tag(model, taken.version, ROLLED_BACK, _now())
            return str(current.version)
        previous = current.tags.get(PREVIOUS, "") if current is not None else ""
        if current is None or not previous:
            raise ServingError("there is no previous champion", about=f"model {model}", remedy="promote another version")
        self._client.set_registered_model_alias(model, ALIAS, previous)  # first: a champion that has the tag is refused
        self._client.set_model_version_tag(model, current.version, ROLLED_BACK, _now())
        return str(previous)

    @_said
    def fetch(self, model: str, version: str, models: Path) -> Path:
        """The version's files, downloaded once under ``models``; the folder appears complete or not at all."""
        import mlflow

        folder = fetched(models, model, version, self._client.get_model_version(model, version).run_id)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
                uri = self._client.get_model_version_download_uri(model, version)
                got = Path(mlflow.artifacts.download_artifacts(uri, dst_path=f"{part}/model", tracking_uri=self.tracking_uri))
                (got / NAMED).write_text(json.dumps({"model_name": model, "model_version": version}))
                try:
                    got.rename(folder)
                except OSError:
                    if not folder.is_dir():  # another process may have put the same files there
                        raise
        return folder

    def _versions(self, model: str) -> list[Any]:
        quote = '"' if "'" in model else "'"  # MLflow's filters know no escape
        return [v for v in self._client.search_model_versions(f"name={quote}{model}{quote}") if v.name == model]

    def _left(self, model: str, current: Any) -> Any:
        """The version that a killed rollback to ``current`` has not tagged yet."""
        since, after = current.tags.get(PROMOTED, ""), str(current.version)
        left = [v for v in self._versions(model) if _promoted(v) and v.tags.get(PREVIOUS) == after and v.tags[PROMOTED] > since]
        return left[0] if left else None

    def _aliased(self, model: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(model, ALIAS)
        except MlflowException as problem:
            if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _ensure(self, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def fetched(models: Path, model: str, version: str, run_id: str) -> Path:
    """Where ``Registry.fetch`` keeps a version made from ``run_id``."""
    return models / model / f"{version}-{run_id[:12]}"


def _promoted(version: Any) -> bool:
    return PROMOTED in version.tags and ROLLED_BACK not in version.tags


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
