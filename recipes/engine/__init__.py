"""What the recipes share: configuration, building, checkpoints, tracking, and everything about the machine."""
