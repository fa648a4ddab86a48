"""What a model is made of, and what the paper's theory says about it."""
