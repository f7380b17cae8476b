"""The best int8 form of a model for one engine: a ladder of steps, judged there on texts held back."""
