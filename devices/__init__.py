"""What a hardware target is: profiles, probing, placement."""
