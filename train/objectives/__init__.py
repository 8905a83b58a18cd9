"""Self-supervised objectives, one file each, each citing its paper."""
