"""The mathematics: processes, parametrizations, walks, windows and noise."""
