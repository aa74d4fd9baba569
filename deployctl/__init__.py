"""deployctl puts a new model version into production without hurting anyone."""

__version__ = "0.1.0"
