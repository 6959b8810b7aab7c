"""The obvious way to do what a benchmark measures, written once and not tuned."""

__all__: list[str] = []
