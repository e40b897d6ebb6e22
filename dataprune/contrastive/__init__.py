"""Contrastive learning on fewer samples: two views of every image, a loss per sample, and evaluation of the features.

views = contrastive.Views(mean=mean, std=std)
model = contrastive.SimCLR(encoder, features=512)
pruner = dataprune.emp_contrastive(len(images), keep=0.3, epochs=100)
for epoch in range(100):
    for index in pruner.batches(epoch, 256):
        features, projections = model(*views(images[index], index, seed=0, epoch=epoch))
        loss = pruner.loss(index, contrastive.nt_xent(*projections, reduction="none"), features)
"""

from __future__ import annotations

from .evaluation import knn_accuracy, linear_probe
from .loss import nt_xent
from .simclr import SimCLR
from .views import Views

__all__ = ["SimCLR", "Views", "knn_accuracy", "linear_probe", "nt_xent"]
