"""Benchmarks: `python -m benchmarks.<name>`. Comparisons are ratios within one run.

Results are recorded in docs/performance.md, docs/scale.md, docs/serving.md and docs/cluster.md.
"""
