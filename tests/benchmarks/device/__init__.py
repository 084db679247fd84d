"""The benchmark on an accelerator, with random weights in the shapes of large models."""
