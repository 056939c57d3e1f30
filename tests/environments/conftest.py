"""Makes `fakes` importable for the folders below."""
