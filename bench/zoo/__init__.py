"""Networks as people use them, by name: the zoo's own, torchvision's and timm's, all with random weights."""
