"""Lightning on 30 % of the samples: a pruner, its callback, and pruner.loss in training_step.

    python examples/lightning_loop.py [--keep 0.3] [--epochs 20] [--devices 1] [--resume]

Trains a small perceptron on scikit-learn's digits. A checkpoint is written after every tenth step; stop the program at
any time, and --resume continues in the middle of the epoch.
"""

import argparse
import warnings

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import learning_rate
from dataprune.integrations.lightning import PruneCallback

BATCH = 32


class Digits(pl.LightningModule):
    def __init__(self, pruner):
        super().__init__()
        self.pruner = pruner
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        index, (x, y) = batch  # The positions of the samples come with the batch.
        logits = self.layers(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        return self.pruner.loss(index, losses, logits, y)  # Records scores, returns the mean.

    def validation_step(self, batch, batch_idx):
        x, y = batch
        right = (self.layers(x).argmax(dim=1) == y).float().mean()
        self.log("accuracy", right, batch_size=len(y), sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        # Pruned epochs have fewer steps than trainer.estimated_stepping_batches assumes.
        steps = self.pruner.planned_steps(BATCH, world_size=self.trainer.world_size, drop_last=True)
        shape = learning_rate.cosine()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="from runs/lightning_loop/last.ckpt")
    options = parser.parse_args()

    for expected in ("The '.*_dataloader' does not have many workers", "Checkpoint directory .* is not empty"):
        warnings.filterwarnings("ignore", expected)
    pl.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train_loader = DataLoader(TensorDataset(x[:1300], y[:1300]), batch_size=BATCH, shuffle=True, drop_last=True)
    test_loader = DataLoader(TensorDataset(x[1300:], y[1300:]), batch_size=497)

    pruner = dataprune.prune(1300, keep=options.keep, epochs=options.epochs)
    saves = ModelCheckpoint("runs/lightning_loop", every_n_train_steps=10, save_last=True, enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=pruner.epochs, callbacks=[PruneCallback(pruner), saves], use_distributed_sampler=False,
        accelerator="cpu", devices=options.devices, logger=False, enable_model_summary=False,
        enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    module = Digits(pruner)
    resume = "runs/lightning_loop/last.ckpt" if options.resume else None
    trainer.fit(module, dataprune.prune_loader(train_loader, pruner), test_loader, ckpt_path=resume)
    accuracy = trainer.validate(module, test_loader, verbose=False)[0]["accuracy"]
    samples = trainer.global_step * BATCH * trainer.world_size
    if trainer.is_global_zero:
        print(f"accuracy {accuracy:.3f} on {samples} samples trained in {trainer.global_step} steps, "
              f"{1 - samples / (1300 * options.epochs):.0%} fewer than in full epochs")  # fmt: skip
    if dist.is_initialized():
        dist.destroy_process_group()  # Lightning leaves gloo's threads running, which abort when Python ends.


if __name__ == "__main__":
    main()
