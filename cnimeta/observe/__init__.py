"""What monitoring sees: metrics as values, and the text they are written in."""
