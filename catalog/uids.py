"""UIDs that follow from what they name (PS3.5 §B.2: a UUID as one decimal number under 2.25)."""

import uuid

__all__ = ["deterministic_uid"]

_NAMESPACE = uuid.UUID("6f0c6a5e-6a0b-5d0c-9a3c-0d6f5b1c7e11")


def deterministic_uid(*parts: str) -> str:
    """The UID of the thing that ``parts`` name; the same parts give the same UID on every machine."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"
