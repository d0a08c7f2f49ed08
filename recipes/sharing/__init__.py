"""Sharing models: cards, pipelines, the hub, and models of diffusers."""
