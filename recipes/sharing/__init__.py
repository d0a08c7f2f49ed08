"""Models for others and from others: cards, pipelines, the hub, and models of diffusers."""
