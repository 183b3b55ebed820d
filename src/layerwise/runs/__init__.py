"""What a training leaves behind: its folder, its measurements, its machine."""
