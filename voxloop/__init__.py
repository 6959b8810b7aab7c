"""The front door: settings, the command line, starting and stopping processes."""

__all__: list[str] = []
