"""Side-by-side timings, each a ratio in one run: `python -m benchmarks.<name>`. Figures go to docs/performance.md."""
