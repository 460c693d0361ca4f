"""The two models of the reference workload, as a user of PyTorch would write them."""

from __future__ import annotations

from importlib.resources import files
from typing import ClassVar

import torch
from safetensors.torch import load
from torch import Tensor, nn


class DeepLearningModel(nn.Module):
    """Classifier of 28x28 digits: three Linear layers, ReLU between them, softmax over the ten classes.

    Input ``[B, 784]``, output ``[B, 10]`` (rows sum to 1), both in the dtype of the parameters (float32 as built);
    ``argmax(dim=1)`` is the class.
    """

    input_shape: ClassVar[tuple[int, ...]] = (1, 784)

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(784, 512)
        self.layer2 = nn.Linear(512, 256)
        self.layer3 = nn.Linear(256, 10)
        self.relu = nn.ReLU()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities ``[B, 10]`` of the images ``x`` ``[B, 784]``."""
        x = self.relu(self.layer1(x))
        x = self.relu(self.layer2(x))
        x = self.layer3(x)
        return self.softmax(x)

    @classmethod
    def pretrained(cls) -> DeepLearningModel:
        """The model in eval mode, float32 on the CPU, with the weights that are shipped with the package.

        Held-out accuracy: 98.6 % (350 of the 355 scans of ``fastgraph.data.digits("held_out")``). Trained by
        ``python -m fastgraph.pretrained.train`` on the other 1,442 scans: 60 epochs of Adam, each scan shifted, turned
        and stretched a little at random, smoothed labels, seeded; 16 s on one core.
        """
        model = cls()
        weights = files("fastgraph.pretrained").joinpath("deep_learning_model.safetensors").read_bytes()
        model.load_state_dict(load(weights))
        return model.eval()


class Net(nn.Module):
    """Convolution, max-pool, and a two-layer perceptron over each pooled image row.

    Input ``[B, 3, 720, 480]`` (a photograph, mean and standard deviation 0.5), output ``[B * 16 * 358, 1]``: one value
    in [0.5, 1] for each of the 16 channels and 358 pooled rows. Both in the dtype of the parameters (float32 as built).
    """

    input_shape: ClassVar[tuple[int, ...]] = (1, 3, 720, 480)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.pool = nn.MaxPool2d(3, 2)
        self.fc1 = nn.Linear(238, 120)
        self.fc2 = nn.Linear(120, 1)
        self.fc3 = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """One value in [0.5, 1] for each pooled row of the images ``x`` ``[B, 3, 720, 480]``."""
        x = self.pool(torch.relu(self.conv1(x)))
        x = x.view(-1, 238)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return torch.relu(self.fc3(x))
