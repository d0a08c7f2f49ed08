"""The machine: devices and precision, several processes, and how fast they go."""
