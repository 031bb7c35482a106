"""What operators see: `cnimeta ports` and `cnimeta wrap`. Never on the path of an ADD."""
