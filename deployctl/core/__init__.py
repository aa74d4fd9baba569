"""Everything that decides. Pure: no files, sockets, clock, randomness or logging in here."""
