"""What `multisagd adopt` reads of a model of diffusers."""
