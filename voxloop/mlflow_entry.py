"""MLflow's own command line with what Voxloop does not use switched off: telemetry and the job runner."""

import os

__all__ = ["main"]


def main() -> None:
    """Run ``mlflow`` with this process's arguments."""
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow.cli import cli

    cli()


if __name__ == "__main__":
    main()
