"""What is how fast: ``python -m benchmarks [NAME ...]`` (make bench) writes RECORDS.md and records.json."""
