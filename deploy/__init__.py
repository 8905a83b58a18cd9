"""From a trained model to a running camera: export, runtimes, camera loop, benchmark and report."""
