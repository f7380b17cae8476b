"""What a person reads or looks at after quantizing."""
