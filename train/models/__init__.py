"""Encoders and students, one file each, and how they are saved."""

from train.models.store import Card, Loaded, Model, build, load_model, save_model

__all__ = ["Card", "Loaded", "Model", "build", "load_model", "save_model"]
