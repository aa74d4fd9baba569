"""The built-in data plane: its own process, a hot path that knows nothing of rollouts."""
