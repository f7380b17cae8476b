"""What is quantized and how, as frozen data."""
