"""The command line: `infinity-matrix`, short `imx`."""
