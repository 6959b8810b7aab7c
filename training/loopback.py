"""Where the processes of one machine meet: a store that listens on 127.0.0.1 alone, as torch's own rendezvous do not."""

import os
import socket

import psutil
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

__all__ = ["BACKEND", "stay_on_loopback"]

BACKEND, ADDRESS = "loopback", "127.0.0.1"


def stay_on_loopback() -> None:
    """Let this process's gloo and NCCL talk over the loopback interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == ADDRESS for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name


class _Loopback(RendezvousHandler):  # type: ignore[misc]
    """One agent, which finds nobody but itself; its processes use its store."""

    def __init__(self, run_id: str) -> None:
        self._run_id, self._closed = run_id, False
        listener = socket.create_server((ADDRESS, 0))
        self._port = listener.getsockname()[1]
        self._store = TCPStore(ADDRESS, self._port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(ADDRESS, self._port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return _Loopback(parameters.run_id)


rendezvous_handler_registry.register(BACKEND, _create)
