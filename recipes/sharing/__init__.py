"""Sharing models: cards, pipelines, the Hugging Face Hub, and diffusers models."""
