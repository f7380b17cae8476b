"""What computes: the quantizer, and the modules that use it."""
