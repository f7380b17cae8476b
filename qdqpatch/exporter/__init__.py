"""From a calibrated model to what an engine runs: traced, rewritten for the target, checked, written."""
