"""Run configurations, the synthetic cohort, the benchmark harness."""

__all__: list[str] = []
