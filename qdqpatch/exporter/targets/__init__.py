"""The engines to export for, one a file."""
