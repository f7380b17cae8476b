"""The searches over a histogram: each finds how many bins a quantizer's range should reach over."""
