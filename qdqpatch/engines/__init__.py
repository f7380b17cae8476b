"""What runs exported files, and where."""
