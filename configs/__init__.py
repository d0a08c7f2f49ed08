"""Hydra groups that mirror the nouns of the project; `multisagd train --help` lists them."""
