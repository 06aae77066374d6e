"""What the outside world needs from us; knows nothing of models or modalities."""
