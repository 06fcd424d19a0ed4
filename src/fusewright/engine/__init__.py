"""TensorRT and TensorRT-RTX: building an engine and reading back what it became."""
