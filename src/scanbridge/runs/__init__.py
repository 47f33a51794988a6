"""The run folder: configuration, checkpoints, lock and log."""
