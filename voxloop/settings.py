"""Settings, read once at the start of a command and handed down as plain arguments."""

import ipaddress
import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from voxloop.errors import FrontDoorError

__all__ = ["Settings", "read", "sqlite_url"]

SHORTEST_TOKEN = 16
"""Characters; a shorter one could be tried out."""


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
    endpoint_port: int = Field(default=5001, ge=0, le=65535, description="the same for the endpoint")
    viewer_port: int = Field(default=5002, ge=0, le=65535, description="the same for the web server")
    host: str = Field(default="127.0.0.1", description="where the web server listens; beyond loopback it asks for a token")
    viewer_url: str = Field(default="", description="the web server's address as browsers know it; empty: host and port")
    viewer_folder: str = Field(default="", description="OHIF's build; empty: where set-up put it, in the environment")
    token: SecretStr = Field(default=SecretStr(""), description="what a client of the web server must know; empty: nothing")
    trusted_proxy: str = Field(default="", description="addresses of reverse proxies that say who asks, with commas between")
    identity_header: str = Field(default="X-Forwarded-User", description="the header in which they say it")

    @field_validator("token")
    @classmethod
    def _long_enough(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < SHORTEST_TOKEN or not token.get_secret_value().isascii():
            raise ValueError(f"a token has {SHORTEST_TOKEN} ASCII characters or more (openssl rand -hex 24 makes one)")
        return token

    @field_validator("trusted_proxy")
    @classmethod
    def _networks(cls, addresses: str) -> str:
        for address in filter(None, (part.strip() for part in addresses.split(","))):
            ipaddress.ip_network(address)
        return addresses

    @property
    def viewer(self) -> str:
        """The web server's address, for links in runs."""
        return self.viewer_url.rstrip("/") or f"http://127.0.0.1:{self.viewer_port}"

    def environment(self) -> dict[str, str]:
        """These settings as the variables of a child process, which ``read`` takes them from."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        told = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()}
        return {f"VOXLOOP_{name.upper()}": str(value) for name, value in told.items()}


def read(home: Path | None = None) -> Settings:
    """The settings of this process; ``home``, when given, goes before VOXLOOP_HOME.

    Raises FrontDoorError naming the variable whose value is not usable, or the home that cannot be one.
    """
    try:
        settings = Settings()
    except ValidationError as problem:
        first = problem.errors()[0]
        variable = "VOXLOOP_" + "_".join(str(part) for part in first["loc"]).upper()
        said = str(first["msg"]).removeprefix("Value error, ")
        raise FrontDoorError(said, about=variable, remedy="correct the environment variable") from None
    chosen = (home or settings.home).expanduser().resolve()
    there = next(path for path in (chosen, *chosen.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise FrontDoorError("not a folder that can be written to", about=str(there), remedy="choose another --home")
    return settings.model_copy(update={"home": chosen})


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file, whatever its name holds."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
