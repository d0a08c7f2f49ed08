"""The machine: devices and precision, distributed processes, and performance."""
