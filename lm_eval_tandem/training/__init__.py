"""What is done once per pair: collecting, fitting, choosing thresholds."""
