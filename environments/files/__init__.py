"""Files of untrusted scripts and of states: hostile folders, snapshots, blobs, caches."""
