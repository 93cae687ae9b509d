"""Benchmarks, each a comparison within one run: `python -m benchmarks.<name>`. Results are recorded in docs/performance.md."""
