"""PyTorch Lightning: a module and a Trainer."""

import logging

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.data import BATCH_SIZE, LR, Data, Done


class Network(lightning.LightningModule):
    def __init__(self, done: Done) -> None:
        super().__init__()
        self.fc1, self.fc2, self.done, self.correct = nn.Linear(784, 16), nn.Linear(16, 10), done, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.correct += (self(images).argmax(1) == labels).sum().item()

    def on_validation_epoch_end(self):
        self.done(self.correct / len(self.trainer.val_dataloaders.dataset))
        self.correct = 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def fit(data: Data, epochs: int, done: Done) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model = Network(done)
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in data.start.items()})
    tensors = [torch.tensor(array) for array in data[:4]]
    training, testing = (DataLoader(TensorDataset(*pair), batch_size=BATCH_SIZE) for pair in (tensors[:2], tensors[2:]))
    off = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=epochs, num_sanity_val_steps=0, **off)
    trainer.fit(model, training, testing)
