"""What is told to the Pod: its annotation, and when it is written."""
