"""How long a steering study takes, beside what else could be used for it: `make bench`."""
