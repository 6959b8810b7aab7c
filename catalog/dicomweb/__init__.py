"""DICOMweb (PS3.18) on a home's catalog: an ASGI application that can be mounted at any path."""

from catalog.dicomweb.app import application

__all__ = ["application"]
