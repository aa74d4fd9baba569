"""YAML to Manifest: strict, with the position of every problem."""
