"""Recorded steps: record, schema, store, exchange with other formats."""
