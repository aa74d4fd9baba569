"""The data plane beside what people run: `python -m benchmarks.dataplane` (see benchmarks/README.md)."""
