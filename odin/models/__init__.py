"""Built-in CNNs; parameter names are those of torchvision."""
