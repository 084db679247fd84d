"""Run time of a steering study with tl_steer and with other libraries: `make bench`."""
