"""Labelled clips: where they are, how they are split, and how they become batches."""
