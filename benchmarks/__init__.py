"""What Piggyback costs against doing without it, as ratios: ``python -m benchmarks.run``."""
