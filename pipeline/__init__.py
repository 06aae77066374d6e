"""From bytes to a trained model."""
