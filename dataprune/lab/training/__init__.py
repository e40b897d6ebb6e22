"""What the command line and the experiments train with: data, models, augmentation, optimizers, runs."""
