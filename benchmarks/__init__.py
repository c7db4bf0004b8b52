"""What the study's own code costs beside the bare libraries it stands on: `python -m benchmarks`."""
