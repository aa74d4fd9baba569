"""What crosses a process border, said once for both ends."""
