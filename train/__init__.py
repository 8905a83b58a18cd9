"""The server side: data, encoders, objectives, the training loop and compression. Needs torch."""
