"""The zoo: networks as people bring them, by the name that ``--model zoo:NAME`` takes."""

from __future__ import annotations

from fastgraph.bench.zoo import images, libraries, rows, sequences
from fastgraph.bench.zoo.entry import Entry, clicks, ids, normal, photos, uniform

MANY = (1, 64, 1024)  # rows: one, some, an image's

ZOO: dict[str, Entry] = {
    "lenet5": Entry("LeNet-5", images.lenet, photos(1, 32, 32)),
    "mnist": Entry("MNIST example", images.MnistExample, photos(1, 28, 28)),
    "dqn": Entry("Atari DQN", images.atari_dqn, photos(4, 84, 84)),
    "cifar_vgg": Entry("CIFAR VGG", images.cifar_vgg, photos(3, 32, 32)),
    "resnet18": libraries.torchvision_entry("resnet18", "ResNet-18"),
    "resnet50": libraries.torchvision_entry("resnet50", "ResNet-50"),
    "mobilenet_v2": libraries.torchvision_entry("mobilenet_v2", "MobileNetV2"),
    "efficientnet_b0": libraries.torchvision_entry("efficientnet_b0", "EfficientNet-B0"),
    "vgg16": libraries.torchvision_entry("vgg16", "VGG-16"),
    "unet": Entry("U-Net 128²", images.UNet, photos(3, 128, 128), (1,), 16),
    "convnext_tiny": libraries.torchvision_entry("convnext_tiny", "ConvNeXt-T"),
    "vit_b_16": libraries.torchvision_entry("vit_b_16", "ViT-B/16"),
    "text_cnn": Entry("text CNN", sequences.TextCnn, ids(64, sequences.TextCnn.vocabulary)),
    "audio_cnn": Entry("audio CNN", sequences.AudioNet, normal(1, 8000)),
    "tabular": Entry("ReLU-BN tabular", rows.tabular, normal(32)),
    "layer_norm_mlp": Entry("LayerNorm MLP", rows.layer_norm_mlp, normal(64)),
    "tabular_resnet": Entry("tabular ResNet", rows.TabularResNet, normal(32)),
    "nerf": Entry("NeRF", rows.NeRF, uniform(90), MANY),
    "siren": Entry("SIREN", rows.Siren, uniform(2), MANY),
    "sac_actor": Entry("SAC actor", rows.SacActor, normal(17)),
    "dlrm": Entry("DLRM", rows.Dlrm, clicks),
    "encoder": Entry("transformer d 64", sequences.Encoder, normal(32, 64)),
}
