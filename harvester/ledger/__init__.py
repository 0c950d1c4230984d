"""The record of what was observed and stored: SQLite, one writer, one transaction a write."""
