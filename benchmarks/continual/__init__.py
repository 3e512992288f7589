"""GFIPlugin in continual learning, beside Avalanche's own plugins."""
