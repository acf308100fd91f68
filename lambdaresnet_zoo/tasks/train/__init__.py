"""Training and fine-tuning of classifiers."""
