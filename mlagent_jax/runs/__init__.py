"""One run: its workdir, devices, workers, and the export of its policy."""
