"""What is computed: one room a family; an op is a decorated PyTorch function with samples, tolerance and cost."""
