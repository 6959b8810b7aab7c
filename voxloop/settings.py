"""Settings, read once at the start of a command and handed down as plain arguments."""

import os
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from voxloop.errors import FrontDoorError

__all__ = ["Settings", "read", "sqlite_url"]


class Settings(BaseSettings):
    """Each can be set by an environment variable ``VOXLOOP_<NAME>``; a command's option goes before it."""

    model_config = SettingsConfigDict(env_prefix="VOXLOOP_", extra="ignore")

    home: Path = Field(default=Path(".voxloop"), description="the folder that holds all state")
    spark_master: str = Field(default="local[*]", description="Spark master URL; local[*] uses this machine's cores")
    spark_memory: str = Field(default="3g", description="the Spark driver's heap")
    tracking_uri: str = Field(default="", description="an MLflow server's URL; empty: one of our own on HOME/mlflow")
    index_url: str = Field(default="", description="the query index as an SQLAlchemy URL; empty: HOME/index.db")
    state_url: str = Field(default="", description="the rounds' durable state as an SQLAlchemy URL; empty: HOME/state.db")
    mlflow_port: int = Field(default=5000, ge=0, le=65535, description="`voxloop up`: MLflow's port; 0 takes a free one")
    viewer_url: str = Field(default="http://127.0.0.1:5002", description="the viewer's address, for links in runs")
    endpoint_port: int = Field(default=5001, ge=0, le=65535, description="the same for the endpoint")


def read(home: Path | None = None) -> Settings:
    """The settings of this process; ``home``, when given, goes before VOXLOOP_HOME.

    Raises FrontDoorError naming the variable whose value is not usable, or the home that cannot be one.
    """
    try:
        settings = Settings()
    except ValidationError as problem:
        first = problem.errors()[0]
        variable = "VOXLOOP_" + "_".join(str(part) for part in first["loc"]).upper()
        raise FrontDoorError(first["msg"], about=variable, remedy="correct the environment variable") from None
    chosen = (home or settings.home).expanduser().resolve()
    there = next(path for path in (chosen, *chosen.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise FrontDoorError("not a folder that can be written to", about=str(there), remedy="choose another --home")
    return settings.model_copy(update={"home": chosen})


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file, whatever its name holds."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
