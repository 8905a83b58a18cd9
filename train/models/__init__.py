"""Encoders and students, one file each, and how they are saved."""
