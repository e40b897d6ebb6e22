"""Datasets by name or folder, as splits of images, texts or features, and their augmentation."""
