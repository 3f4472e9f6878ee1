"""The reference: a shallow FashionMNIST network trained in PyTorch, and the contract that its ports obey."""
