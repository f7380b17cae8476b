"""TensorRT's own compiler as a witness: TensorRT for RTX compiles ahead of time on any CPU, without a GPU."""
