"""Generated pages, one module for each kind of page or section."""
